"""Writes the intact samples of a damaged shard with an index to a new shard."""

import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from dcgan_dist.data.checking.access import CHUNK, HashingReader, ShardJob, opened
from dcgan_dist.data.checking.indexed import IndexedSample, find_any_index
from dcgan_dist.data.checking.verify import decoded_size
from dcgan_dist.data.shards.index import NO_LABEL, ShardIndex, ShardWriter
from dcgan_dist.errors import UserError, os_error_as_user_error
from dcgan_dist.text import counted, listed

LOST_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """The result for one damaged shard."""

    name: str
    path: str | None = None  # the new shard; None if no sample is intact
    kept: int = 0
    lost: tuple[str, ...] = ()  # keys of the samples that cannot be saved
    problem: str = ""  # why it was not repaired, and what to do

    def lines(self) -> list[str]:
        """The same as messages."""
        if self.problem:
            return [f"{self.name}: not repaired: {self.problem}"]
        if not self.kept:
            return [f"{self.name}: there is nothing to save"]
        lost = f", {len(self.lost):,} lost" if self.lost else ""
        line = f"{self.name}: {counted(self.kept, 'sample')} saved in {self.path}{lost}"
        return [line, *([f"  lost: {listed(self.lost, LOST_LISTED)}"] if self.lost else [])]


_Sample = tuple[str, str, bytes, int | None]  # key, suffix, image, label


def repair_shard(job: tuple[ShardJob, Path], tick: Callable[[int], None]) -> Repaired:
    """Writes the intact samples of a damaged shard to a new one at a path, with their keys and labels.

    A sample is intact when its image has its checksum, even if its tar header is damaged, and can be decoded. A shard
    without an intact index is not repaired. Raises UserError when the shard cannot be read or the new one not written.
    """
    damaged, path = job
    with opened(damaged) as (read, size):
        placed = find_any_index(damaged.name, size, read, lambda _error: None)
        if placed is None:
            return Repaired(name=damaged.shown, problem="it has no intact index")
        _, index, moved = placed
        lost: list[str] = []
        with io.BufferedReader(HashingReader(read, size, tick), CHUNK) as file:
            kept = _write(path, _intact(file, index, moved, lost))
    return Repaired(name=damaged.shown, path=str(path) if kept else None, kept=kept, lost=tuple(lost))


def _intact(file: BinaryIO, index: ShardIndex, moved: int, lost: list[str]) -> Iterator[_Sample]:
    samples = IndexedSample.all(file, index, moved)
    for key, suffix, label, sample in zip(index.keys, index.suffix, index.label.tolist(), samples, strict=True):
        with suppress(UserError):
            if sample.image_intact and decoded_size(sample.data):
                yield key, index.suffixes[suffix], sample.data, None if label == NO_LABEL else label
                continue
        lost.append(key)


def _write(path: Path, samples: Iterator[_Sample]) -> int:
    """Writes a shard of these samples, if there are any; returns their number."""
    first = next(samples, None)
    if first is None:
        return 0
    kept = 0
    with os_error_as_user_error(path, "cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with ShardWriter(path, new=True) as shard:
            for sample in chain([first], samples):
                shard.add(*sample)
                kept += 1
    return kept
