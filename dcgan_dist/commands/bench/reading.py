"""The readers that `bench loader` measures: ours with its numbers of workers, and plain webdataset."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch

from dcgan_dist.commands.bench import webdataset as bench_webdataset
from dcgan_dist.commands.bench.turns import Turn, Turns, cpu_seconds, until
from dcgan_dist.config import Config
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.loading import make_reader, open_data
from dcgan_dist.data.reading.reader import Split
from dcgan_dist.data.workers import available_cores

LONGEST_EPOCH = 5  # times the length of a turn; a first epoch that takes longer is not read to its end
AS_TRAINED = "loader, as in training"
FIRST, LATER = "first epoch", "later epochs"


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One of the processes that would train here."""

    config: Config
    """With its part of the batch, and as many shards as are measured."""
    local_ranks: int
    """How many of them share this machine."""
    device: torch.device
    names: tuple[str, ...]
    """The shards."""
    images: int
    """In the shards."""
    encoded: float
    """Part of the images, 0 to 1, that are not stored as pixels; of the first shard."""


def open_rank(config: Config, device: torch.device, local_ranks: int, samples: int) -> Rank:
    """Opens all shards, and takes of them as many as hold so many images. Raises UserError for a bad shard."""
    data = open_data(config, print)
    assert isinstance(data, Corpus)
    # for what it says of its choices
    make_reader(config, data, local_ranks=local_ranks, pinned=device.type == "cuda", say=print)
    count = 1 + sum(images < samples for images in accumulate(data.lengths[:-1]))
    names, images = tuple(shard.name for shard in data.shards[:count]), sum(data.lengths[:count])
    if count < len(data.shards):
        print(f"measured: the first {count} of {len(data.shards):,} shards, {images:,} images")
    index = data.index(0)
    pixels = sum(int((index.suffix == n).sum()) for n, suffix in enumerate(index.suffixes) if suffix in ("ppm", "pgm"))
    return Rank(
        config=replace(config, data=replace(config.data, shards=names)),
        local_ranks=local_ranks,
        device=device,
        names=names,
        images=images,
        encoded=1 - pixels / len(index),
    )


def workers_of(rank: Rank) -> dict[str, Config]:
    """The options with every number of workers that makes sense here; none where the user has chosen one.

    The names are options of the command line.
    """
    data = rank.config.data
    if data.workers:
        return {}
    most = max(1, available_cores() // rank.local_ranks)
    counts = sorted({most, *(2**power for power in range(most.bit_length()))})
    kinds: list[Any] = ["threads", "processes"] if data.decode == "auto" else [data.decode]
    return {
        f"--data.decode {kind} --data.workers {count}": with_workers(rank.config, kind, count)
        for kind in kinds
        for count in counts
        if count > 1 or kind == "threads"  # one process is one thread with more to do
    }


def with_workers(config: Config, kind: Literal["threads", "processes"], count: int) -> Config:
    """The same options with so many decoding workers."""
    return replace(config, data=replace(config.data, decode=kind, workers=count))


def loader_contenders(rank: Rank, seconds: float) -> dict[str, Callable[[], Turns]]:
    """Our loader as it would be in training, and with every number of workers."""
    contenders: dict[str, Callable[[], Turns]] = {
        AS_TRAINED: partial(_loader_turn, rank, AS_TRAINED, rank.config, seconds)
    }
    for options, config in workers_of(rank).items():
        contenders[named(options)] = partial(_loader_turn, rank, named(options), config, seconds)
    return contenders


def webdataset_contenders(rank: Rank, seconds: float) -> dict[str, Callable[[], Turns]]:
    """Plain webdataset without workers, and with one for each core."""
    model = rank.config.model
    task = {"shards": list(rank.names), "shape": [model.image_size, model.channels], "seconds": seconds}
    contenders: dict[str, Callable[[], Turns]] = {}
    for kind in bench_webdataset.KINDS:
        for workers in (0, max(1, available_cores() // rank.local_ranks)):
            name = f"webdataset {kind}, {workers} workers"
            contenders[name] = partial(
                _webdataset_turn, name, task | {"kind": kind, "workers": workers, "batch": rank.config.batch_size}
            )
    return contenders


def named(options: str) -> str:
    """The loader with other options, as the table names it."""
    return f"loader, {options}"


def _webdataset_turn(name: str, task: dict[str, Any]) -> Turns:
    return {name: bench_webdataset.in_own_process(**task)}


def _loader_turn(rank: Rank, name: str, config: Config, seconds: float) -> Turns:
    """The first epoch, as cold as can be had, and later ones, of a reader of its own; both from the second batch on."""
    _forget(rank.names)
    began = time.perf_counter()
    data = open_data(config, _quiet)
    reader = make_reader(config, data, local_ranks=rank.local_ranks, pinned=rank.device.type == "cuda", say=_quiet)
    split = Split(batch=config.batch_size, micro_batches=config.accumulate, rank=0, world_size=1)
    batches = reader.batches(0, split)
    counts = (len(batch.images) for batch in batches)
    seen = next(counts)
    first = time.perf_counter() - began
    try:
        begin, cpu, before = time.perf_counter(), cpu_seconds(), seen
        while seen == before or (seen < rank.images and time.perf_counter() - begin < LONGEST_EPOCH * seconds):
            seen += next(counts)
        epoch = Turn(seen - before, time.perf_counter() - begin, cpu_seconds() - cpu, first)
        turns = {row_name(name, FIRST): epoch}
        if seen >= rank.images:
            turns[row_name(name, LATER)] = until(seconds, counts)
        return turns
    finally:
        batches.close()


def row_name(name: str, epochs: str) -> str:
    """A row of the table."""
    return f"{name}; {epochs}"


def _forget(names: Sequence[str]) -> None:
    """Asks the system to drop local files from its memory, so that the first epoch reads them from the disk."""
    if not hasattr(os, "posix_fadvise"):
        return
    for name in names:
        with suppress(OSError), Path(name).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _quiet(_line: str) -> None:
    pass
