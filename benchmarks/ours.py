"""Our reader as the benchmarks measure it: alone, as the only rank, without its messages."""

from collections.abc import Generator
from dataclasses import replace
from typing import Literal

from dcgan_dist.config import Config
from dcgan_dist.data.loading import make_reader, open_data
from dcgan_dist.data.order import Split
from dcgan_dist.data.reading.prefetch_buffer import Batch


def with_workers(config: Config, kind: Literal["threads", "processes"], count: int) -> Config:
    """The same options with so many decoding workers."""
    return replace(config, data=replace(config.data, decode=kind, workers=count))


def open_batches(config: Config) -> Generator[Batch, None, None]:
    """Opens the shards; global batches without end. Its close() ends the decoding workers."""
    reader = make_reader(config, open_data(config, _quiet), local_ranks=1, pinned=False, say=_quiet)
    return reader.batches(0, Split(batch=config.batch_size, micro_batches=1, rank=0, world_size=1))


def _quiet(_line: str) -> None:
    pass
