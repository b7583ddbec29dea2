"""What our reader promises, as rows: the limit, what was measured, and whether it holds.

python -m benchmarks.promises     the two that need no comparison, measured in this process, as JSON
"""

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from benchmarks.corpora import face_corpus, many_shards
from benchmarks.ours import open_batches, with_workers
from benchmarks.turns import Turn
from dcgan_dist.config import Config
from dcgan_dist.config.groups import DataConfig, ModelConfig

REPOSITORY = Path(__file__).parent.parent
SIZES = (64, 178)  # pixels
FLOORS = {
    "jpg": ["bare decode"],
    "ppm": [
        "memory map, first pass",
        "memory map, later",
        "tar as memory map, first pass",
        "tar as memory map, later",
    ],
}
# kind of file, ours, the other, how many times the other's CPU time ours may take; at 64 pixels
CPU_LIMITS = (
    ("ppm", "ours, first epoch", "webdataset, documented", 1 / 15),
    ("ppm", "ours, later epochs", "webdataset, documented", 1 / 15),
    ("ppm", "ours, first epoch", "LitData, arrays", 1 / 4),
    ("ppm", "ours, later epochs", "LitData, arrays", 1 / 4),
    ("ppm", "ours, first epoch", "LitData, bytes", 1 / 4),
    ("ppm", "ours, later epochs", "LitData, bytes", 1 / 4),
    ("ppm", "ours, first epoch", "memory map, first pass", 1.5),
    ("ppm", "ours, later epochs", "memory map, later", 1.5),
    ("jpg", "ours, first epoch", "bare decode", 1.15),
    ("jpg", "ours, later epochs", "bare decode", 1.15),
)
SHARDS, IN_A_SHARD, SMALL = 1_000, 64, 32  # pixels
FIRST_BATCH = 0.2  # seconds
STARTS = 5
COPIED_OVER = 40  # batches

Turns = dict[str, list[Turn]]


def name_of(loader: str, workers: int) -> str:
    """A loader with its number of workers, as the tables name it."""
    if loader in FLOORS["jpg"] + FLOORS["ppm"]:
        return f"floor: {loader}"
    if loader.startswith("ours"):
        return f"{loader}, {max(workers, 1)} decoding"
    return f"{loader}, {workers} workers"


def ratio(turns: list[Turn], reference: list[Turn]) -> float:
    """CPU time per image of one as a multiple of the other's; the median over the rounds."""
    return statistics.median(
        (one.cpu / one.images) / (other.cpu / other.images) for one, other in zip(turns, reference, strict=True)
    )


def promises(tables: dict[tuple[str, int], Turns]) -> list[dict[str, Any]]:
    """All rows, from the turns of (kind of file, size)."""
    rows = []
    for kind, ours, other, limit in CPU_LIMITS:
        turns = tables[kind, SIZES[0]]
        if name_of(other, 0) in turns:  # a peer may not be installed
            measured = ratio(turns[name_of(ours, 0)], turns[name_of(other, 0)])
            rows.append(_row(f".{kind} at {SIZES[0]} px, CPU time: {ours} / {other}", limit, measured))
    alone = [_measured_alone() for _ in range(STARTS)]
    first = statistics.median(result["first_batch"] for result in alone)
    rows.append(_row(f"seconds to the first batch on {SHARDS:,} indexed shards", FIRST_BATCH, first))
    rows.append(_row("copies of a pixel between processes", 0, max(result["copies"] for result in alone)))
    return rows


def _row(promise: str, limit: float, measured: float) -> dict[str, Any]:
    return {"promise": promise, "limit": limit, "measured": measured, "holds": measured <= limit}


def show_promises(rows: list[dict[str, Any]]) -> str:
    """The rows, in Markdown."""
    lines = ["| promise | at most | measured | |", "|---|---:|---:|---|"]
    for row in rows:
        verdict = "holds" if row["holds"] else "BROKEN"
        lines.append(f"| {row['promise']} | {row['limit']:.3g} | {row['measured']:.3g} | {verdict} |")
    return "\n".join(lines)


def _measured_alone() -> dict[str, float]:
    many_shards(SHARDS, IN_A_SHARD, SMALL)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.promises"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def first_batch() -> float:
    """Seconds from the opening of many shards to the first batch, with the options of the trainer's defaults."""
    pattern = str(many_shards(SHARDS, IN_A_SHARD, SMALL) / "*.tar")
    config = Config(model=ModelConfig(image_size=SMALL), data=DataConfig(shards=(pattern,)))
    gc.freeze()  # as the trainer does
    began = time.perf_counter()
    batches = open_batches(config)
    next(batches)
    seconds = time.perf_counter() - began
    batches.close()
    return seconds


def copies() -> float:
    """How often a pixel is copied from one process to another, when two processes decode JPEG files. Linux.

    What this process reads, from pipes, sockets or files, as a part of the pixels that it delivers; and 1 more unless
    all batches lie in one piece of memory that the decoding processes have mapped too.
    """
    pattern = str(face_corpus(SIZES[1], 1_000) / "jpg" / "*.tar")
    size: Any = SIZES[1]  # no network has it
    config = Config(model=ModelConfig(image_size=size), data=DataConfig(shards=(pattern,)))
    batches = open_batches(with_workers(config, "processes", 2))
    next(batches)
    this, places, pixels = psutil.Process(), set(), 0
    decoders = [child for child in this.children() if "decode_worker" in " ".join(child.cmdline())]
    assert len(decoders) == 2
    before: Any = this.io_counters()
    for batch in islice(batches, COPIED_OVER):
        places.add(batch.images.data_ptr())
        pixels += batch.images.numel()
    after: Any = this.io_counters()
    mapped = list(_shared_memory(this.pid))
    rings = {piece for start, end, piece in mapped for at in places if start <= at < end}
    inside = all(any(start <= at < end for start, end, _ in mapped) for at in places)
    shared = all(rings <= {piece for _, _, piece in _shared_memory(decoder.pid)} for decoder in decoders)
    batches.close()
    return round((after.read_chars - before.read_chars) / pixels, 2) + (not (inside and shared))


def _shared_memory(process: int) -> Iterator[tuple[int, int, str]]:
    """First and last address, and a name that is the same in all processes, of what a process shares with others."""
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        addresses, access, _, device, number, *_ = line.split()
        if access.endswith("s"):
            start, end = (int(address, 16) for address in addresses.split("-"))
            yield start, end, f"{device} {number}"


if __name__ == "__main__":
    print(json.dumps({"first_batch": first_batch(), "copies": copies()}))
