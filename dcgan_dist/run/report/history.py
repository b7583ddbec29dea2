"""`metrics.jsonl` as arrays, and as few points as a chart needs."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcgan_dist.run.jsonl import NOT_FINITE

MOST_IMAGES = 2**53  # of a report; no run sees as many
LOOK_EVERY = 1_000  # lines between two looks at the clock


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """The state went back to a checkpoint."""

    images: int  # of the checkpoint
    since: int  # images seen when it happened
    reason: str
    time: str | None  # UTC, ISO 8601; older versions did not write it


@dataclass(kw_only=True)
class History:
    """The reports of a run, in the order of the file."""

    images: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # (reports,) real images seen
    scalars: dict[str, NDArray[np.float64]] = field(
        default_factory=dict
    )  # name -> (reports,); NaN: not in this report, or not finite
    texts: dict[str, str] = field(default_factory=dict)  # the last of the values that are words, by name
    rollbacks: list[Rollback] = field(default_factory=list)
    not_finite: dict[int, list[str]] = field(default_factory=dict)  # images -> names of scalars
    unread: int = 0  # lines that are no reports

    def last(self, name: str) -> float | None:
        """The last finite value of a scalar."""
        values = self.scalars.get(name, np.empty(0))
        finite = values[np.isfinite(values)]
        return float(finite[-1]) if len(finite) else None

    def hours(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Images, and the hours of training that they took; of the reports that have them."""
        hours = self.scalars.get("time/run_hours", np.full(len(self.images), math.nan))
        known = np.isfinite(hours)
        return self.images[known], hours[known]


def read_history(path: Path, until: float = math.inf) -> History:
    """The reports in a file, also in one that is being written; none if there is no file.

    `until`: time.monotonic() at which to give up. Raises OSError and TimeoutError.
    """
    rows: list[dict[str, Any]] = []
    found = History()
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # the end of a file that is being written
    for number, line in enumerate(lines):
        if number % LOOK_EVERY == 0 and time.monotonic() > until:
            raise TimeoutError(f"{path.name} has {len(lines):,} lines")
        try:
            row = json.loads(line, parse_int=float)  # as large as a damaged line may have them
            row["images"] = int(row["images"])
            if abs(row["images"]) > MOST_IMAGES:
                raise ValueError
            if "rollback_from" in row:
                since, reason, at = int(row["rollback_from"]), row.get("rollback_reason"), row.get("rollback_time")
                at = at if isinstance(at, str) else None
                found.rollbacks.append(Rollback(images=row["images"], since=since, reason=str(reason), time=at))
            else:
                rows.append(row)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            found.unread += 1
    found.images = np.array([row.pop("images") for row in rows], dtype=np.int64)
    _collect(rows, found)
    return found


def _collect(rows: Sequence[dict[str, Any]], found: History) -> None:
    for number, row in enumerate(rows):
        for name, value in row.items():
            if isinstance(value, str) and value in NOT_FINITE:
                found.not_finite.setdefault(int(found.images[number]), []).append(name)
            elif isinstance(value, str):
                found.texts[name] = value
            elif isinstance(value, int | float):
                if name not in found.scalars:
                    found.scalars[name] = np.full(len(rows), math.nan)
                found.scalars[name][number] = value


def thinned(values: NDArray[np.float64], most: int) -> NDArray[np.intp]:
    """The places, in order, of at most `most` of (n,) values: the first, the last, and the extremes between."""
    count = len(values)
    if count <= most:
        return np.arange(count)
    buckets = max((most - 2) // 2, 1)
    width = -(-count // buckets)
    padded = np.full(buckets * width, math.nan)
    padded[:count] = values
    table = padded.reshape(buckets, width)
    low = np.where(np.isnan(table), math.inf, table).argmin(1)
    high = np.where(np.isnan(table), -math.inf, table).argmax(1)
    places = np.arange(buckets) * width
    chosen = np.unique(np.concatenate([places + low, places + high, [0, count - 1]]))
    return chosen[chosen < count]


def averaged(values: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Means of (n,) values over at most `most` runs of neighbours, of equal length but for the last."""
    width = max(-(-len(values) // most), 1)
    starts = np.arange(0, len(values), width)
    known = np.isfinite(values)
    counts = np.add.reduceat(known.astype(np.int64), starts)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts)
    return np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)
