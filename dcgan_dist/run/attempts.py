"""`attempts.jsonl`: when each attempt of a run began and ended. It is for people; no attempt reads it to resume."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dcgan_dist.data.system.storage import sync_folder
from dcgan_dist.errors import UserError
from dcgan_dist.location import redacted
from dcgan_dist.run.lease import Lease
from dcgan_dist.text import Say

PAGE_SECONDS, PAGE_SECONDS_STOPPED = 20.0, 5.0
"""That the page at the end of an attempt may take; a launcher kills its ranks 30 s after a signal."""


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(kw_only=True)
class Attempt:
    """One attempt as the file has it."""

    number: int
    begin: str  # UTC, ISO 8601
    images: int  # seen at its begin
    facts: Mapping[str, Any]  # world_size, device, precision, git_commit
    reached: int | None = None  # images of the last report before its begin; more than `images`: they are trained again
    reached_at: str | None = None  # time of that report
    end: str | None = None  # None: it is running, or was killed
    end_images: int | None = None
    reason: str | None = None  # "done", or why it ended


class AttemptLog:
    """Appends to the file, on the main rank. A disk error costs one line, never the run."""

    def __init__(self, path: Path, lease: Lease, say: Say, on_end: Callable[[float], object]) -> None:
        """`on_end` is called at the end of the attempt with the seconds that it may take."""
        self._path, self._lease, self._say, self._on_end = path, lease, say, on_end
        self._begun: int | None = None  # images at the begin of this attempt

    def begin(self, images: int, metrics: Path, facts: Mapping[str, Any]) -> None:
        """The attempt begins at `images`; `metrics`: metrics.jsonl as the attempt before it has left it."""
        self._begun = images
        self._append({"begin": now(), "images": images, **_last_report(metrics), **facts})

    def end(self, images: int | None, reason: str, seconds: float) -> None:
        """The attempt ends at `images`; None: where it began. Does nothing before its begin, or a second time.

        Nor in a folder that a newer attempt owns.
        """
        seen = self._begun if images is None else images
        if self._begun is None:
            return
        with suppress(OSError, UserError):
            self._lease.check()
            self._append({"end": now(), "images": seen, "reason": redacted(reason)})
            self._on_end(seconds)
        self._begun = None

    def _append(self, record: Mapping[str, Any]) -> None:
        line = json.dumps({"attempt": self._lease.attempt} | dict(record)).encode()
        try:
            with self._path.open("a+b") as file:
                # what a full disk has cut must not spoil this line, too
                file.seek(max(file.seek(0, 2) - 1, 0))
                cut = file.read() not in (b"", b"\n")
                file.write(b"\n" * cut + line + b"\n")
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self._path.parent)
        except OSError as error:
            self._say(f"WARNING: {self._path}: cannot be written ({error.strerror}); the run goes on without this line")


def one_line(error: BaseException) -> str:
    """Why an attempt failed."""
    return " ".join(str(error).split()) or type(error).__name__


def _last_report(metrics: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, KeyError, TypeError), metrics.open("rb") as file:
        file.seek(max(file.seek(0, 2) - 65_536, 0))
        complete = file.read().rpartition(b"\n")[0]
        at = datetime.fromtimestamp(metrics.stat().st_mtime, UTC).isoformat(timespec="seconds")
        return {"reached": json.loads(complete.rpartition(b"\n")[2])["images"], "reached_at": at}
    return {}


KINDS = {"images": int, "reached": int, "world_size": int} | dict.fromkeys(
    ("begin", "end", "reached_at", "reason"), str
)


def read_attempts(path: Path) -> list[Attempt]:
    """The attempts in the file, without lines that are not complete, or damaged. Raises OSError."""
    found: list[Attempt] = []
    for line in path.read_bytes().splitlines():
        with suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            if not all(isinstance(record[name], kind) for name, kind in KINDS.items() if name in {*record, "images"}):
                continue
            if "begin" in record:
                named = {name: record.pop(name, None) for name in ("begin", "images", "reached", "reached_at")}
                found.append(Attempt(number=record.pop("attempt"), **named, facts=record))
            elif found and found[-1].number == record["attempt"]:
                found[-1].end, found[-1].end_images = record["end"], record["images"]
                found[-1].reason = record["reason"]
    return found
