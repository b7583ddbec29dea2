"""Packs a folder again and again, each time killed before another change of the disk, then once more to the end.

    python shard_killer.py FOLDER WORK [OLD]

WORK takes one folder for each kill. With OLD, each is first a copy of that set of shards, which is then overwritten.
Writes one JSON object a line: what was there after the kill, and what the second command did.
"""

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import xxhash

from dcgan_dist.data.sources import find_source
from dcgan_dist.data.writing.packing import Packing
from dcgan_dist.data.writing.publish import Summary
from dcgan_dist.data.writing.writer import write_shards

STEPS: tuple[tuple[object, str], ...] = (
    (os, "fsync"),
    (os, "link"),
    (Path, "replace"),
    (Path, "unlink"),
    (shutil, "rmtree"),
)


def die_at(step: int) -> None:
    """Lets this process be killed before the step-th change of the disk, counted from 1."""
    left = step

    def counted(original: Callable) -> Callable:
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    for owner, name in STEPS:
        setattr(owner, name, counted(getattr(owner, name)))


def pack(folder: Path, out: Path, overwrite: bool) -> Summary:
    packing = Packing(size=12, shard_size=6, processes=1, overwrite=overwrite)
    return write_shards(find_source(str(folder)), out, packing)


def killed(folder: Path, out: Path, overwrite: bool, step: int) -> bool:
    """Whether a child that packs was killed; it may have been too quick."""
    child = os.fork()
    if not child:
        die_at(step)
        pack(folder, out, overwrite)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def finished(out: Path) -> set[int]:
    """The inodes of the shards that need not be written again."""
    shards = (path.with_suffix(".tar") for path in out.rglob("*.receipt"))
    return {path.stat().st_ino for path in shards if path.exists()}


def visible(out: Path) -> dict[str, str]:
    """Checksum of every file that people see in OUT."""
    return {path.name: xxhash.xxh3_128_hexdigest(path.read_bytes()) for path in out.glob("*") if path.is_file()}


def main(folder: Path, work: Path, old: Path | None = None) -> None:
    for step in itertools.count(1):
        out = work / str(step)
        if old:
            shutil.copytree(old, out)
        if not killed(folder, out, bool(old), step):
            return
        complete = (out / "manifest.json").exists() and not any(out.glob(".partial/*/plan.json"))
        shards, shown = finished(out), visible(out)
        summary = pack(folder, out, overwrite=bool(old) or complete)
        kept = shards <= {path.stat().st_ino for path in out.glob("*.tar")}
        report = {
            "shown": shown,
            "finished": len(shards),
            "kept": kept,
            "wrote": summary.written,
            "after": visible(out),
        }
        print(json.dumps(report | {"left": [path.name for path in out.iterdir() if path.is_dir()]}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
