"""Folders of runs that never were, as training leaves them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.grid import grid, save_png

EVERY = 100  # images between two reports


def report(number: int, **others: Any) -> dict[str, Any]:
    """A line of metrics.jsonl, for `number` = 1, 2 .."""
    share = number / (number + 10)
    return {
        "images": EVERY * number,
        "loss/d": 1.4 - share,
        "loss/g": 0.7 + share,
        "d/real": 0.5 + share / 3,
        "d/fake": 0.5 - share / 3,
        "grad_norm/d": 10**share,
        "grad_norm/g": 10**-share,
        "health/ms_ssim": 0.9 - share / 2,
        "speed/images_per_second": 50.0,
        "time/data": 0.01,
        "time/g": 0.05,
        "time/d": 0.04,
        "time/other": 0.002,
        "time/run_hours": number / 36,
        "scale/g": 2.0**number,
        **others,
    }


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """A .jsonl file."""
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))


def make_run(root: Path, reports: int = 20, grids: int = 4, seed: int = 0) -> RunFolder:
    """A run that is done, with one restart after a kill, a rollback, and grids of 4 images of 16 pixels."""
    folder = RunFolder(root)
    folder.samples.mkdir(parents=True)
    rollback = {"images": 500, "rollback_from": 700, "rollback_reason": "loss/d is NaN", "health/rollbacks": 1}
    rows = [report(number + 1) for number in range(reports)]
    write_lines(folder.metrics, [*rows[:5], rollback | {"rollback_time": "2026-01-01T10:20:00+00:00"}, *rows[5:]])
    facts = {"world_size": 2, "device": "cpu", "precision": "fp32", "git_commit": "abc"}
    write_lines(
        folder.attempts,
        [
            {"attempt": 1, "begin": "2026-01-01T10:00:00+00:00", "images": 0} | facts,
            {"attempt": 2, "begin": "2026-01-01T12:00:00+00:00", "images": 1000, "reached": 1300}
            | {"reached_at": "2026-01-01T11:00:00+00:00"}
            | facts,
            {"attempt": 2, "end": "2026-01-01T13:00:00+00:00", "images": EVERY * reports, "reason": "done"},
        ],
    )
    folder.config.write_text(f"images: {EVERY * reports}\nbatch_size: 8\nseed: {seed}\nmodel:\n  image_size: 32\n")
    packages = {"torch": "2.14.1"}
    folder.environment.write_text(json.dumps({"machine": "node7", "packages": packages, "world_size": 2}))
    folder.done.write_text(f"{EVERY * reports}\n")
    random = np.random.default_rng(seed)
    places = [EVERY * reports * (number + 1) // grids for number in range(grids)]
    for path in [folder.real, *map(folder.sample, places)]:
        save_png(grid(random.integers(0, 256, (4, 3, 16, 16), dtype=np.uint8)), path)
    return folder
