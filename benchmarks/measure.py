"""What the benchmarks share: interleaved rounds, and a JSON file that says where they ran."""

import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.turns import Turn
from dcgan_dist.location import redacted
from dcgan_dist.run.folder import environment

RESULTS = Path(__file__).parent / "results"


def interleave(contenders: dict[str, Callable[[], Turn]], rounds: int) -> dict[str, list[Turn]]:
    """Gives each contender one turn per round, in an order that rotates: a change of the machine's load hits all."""
    names = list(contenders)
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            turns[name].append(contenders[name]())
            print(f"  round {number + 1}/{rounds}  {name:<40} {speed(turns[name][-1]):>12,.1f} images/s", flush=True)
    return turns


def speed(turn: Turn) -> float:
    """Images per second."""
    return turn.images / turn.wall


def summary(turns: Sequence[Turn], reference: Sequence[Turn] | None = None) -> dict[str, Any]:
    """Medians over the rounds. `wall_ratio`, `cpu_ratio`: how many times cheaper than `reference` in the same round."""
    speeds = [speed(turn) for turn in turns]
    row: dict[str, Any] = {
        "images_per_second": statistics.median(speeds),
        "images_per_second_range": [min(speeds), max(speeds)],
        "cpu_us_per_image": 1e6 * statistics.median(turn.cpu / turn.images for turn in turns),
        "turns": [asdict(turn) for turn in turns],
    }
    if reference is not None:
        pairs = list(zip(turns, reference, strict=True))
        row["wall_ratio"] = statistics.median(speed(ours) / speed(theirs) for ours, theirs in pairs)
        row["cpu_ratio"] = statistics.median(
            (theirs.cpu / theirs.images) / (ours.cpu / ours.images) for ours, theirs in pairs
        )
    return row


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left and numbers to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(lines)


def save(folder: Path, name: str, module: str, results: Any) -> Path:
    """Writes FOLDER/NAME.json: results, and all that they depend on."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"about": about(module), "results": results}, indent=1) + "\n")
    return path


def about(module: str) -> dict[str, Any]:
    """Command, versions and machine."""
    known = environment()
    del known["machine"]  # a name says nothing to others
    return known | {
        "command": shlex.join(["python", "-m", module, *(redacted(word, word) for word in sys.argv[1:])]),
        "cpu": _cpu_model(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "load_before": _load_at_start,
        "load_after": os.getloadavg()[0],
        "variables": {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "KMP_"))},
        "seconds": time.monotonic() - _begun,
    }


_begun, _load_at_start = time.monotonic(), os.getloadavg()[0]


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
