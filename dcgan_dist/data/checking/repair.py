"""The good samples of a damaged shard with an index, written to a new one: nothing that is known to be damaged."""

import io
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dcgan_dist.data.checking.access import CHUNK, Job, Passage, UnreadableError, opened
from dcgan_dist.data.checking.indexed import IndexedSample, find_index, find_moved_index
from dcgan_dist.data.checking.verify import decoded_size
from dcgan_dist.data.shards.index import NO_LABEL, ShardIndex, ShardWriter
from dcgan_dist.errors import UserError

LISTED = 20  # lost samples


@dataclass(frozen=True, kw_only=True)
class RepairJob:
    """A damaged shard, and the folder for the new one."""

    job: Job
    path: Path
    """Of the new shard."""


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What became of a damaged shard."""

    name: str
    path: str | None = None
    """The new shard; None where nothing could be saved."""
    kept: int = 0
    lost: tuple[str, ...] = ()
    """Keys of the samples that cannot be saved."""
    problem: str = ""
    """Why it was not repaired, and what to do."""

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same for people."""
        if self.problem:
            return [f"{self.name}: not repaired: {self.problem}"]
        if not self.kept:
            return [f"{self.name}: there is nothing to save"]
        lost = f", {len(self.lost):,} lost" if self.lost else ""
        lines = [f"{self.name}: {self.kept:,} samples saved in {self.path}{lost}"]
        if self.lost:
            more = len(self.lost) - LISTED
            lines += [f"  lost: {', '.join(self.lost[:LISTED])}{f' and {more:,} more' if more > 0 else ''}"]
        return lines


class _Good(NamedTuple):
    key: str
    suffix: str
    data: bytes
    label: int | None


def repair_shard(job: RepairJob, tick: Callable[[int], None]) -> Repaired:
    """Writes the good samples of a damaged shard to a new one, and says which are lost.

    Good are those whose images have their checksum, even where tar headers are damaged, and can be decoded. Keys and
    labels survive. A shard without an intact index is not repaired. Raises UserError when the shard cannot be read or
    the new one not written.
    """
    with opened(job.job) as (read, size):
        try:
            found = find_index(job.job.name, size, read)
        except UnreadableError:
            raise
        except UserError:
            found = None
        placed = (*found, 0) if found else find_moved_index(job.job.name, size, read)
        if placed is None:
            return Repaired(name=job.job.shown, problem="it has no intact index")
        _, index, moved = placed
        lost: list[str] = []
        with io.BufferedReader(Passage(read, size, tick), CHUNK) as file:
            kept = _write(job.path, _good(file, index, moved, lost))
    path = str(job.path) if kept else None
    return Repaired(name=job.job.shown, path=path, kept=kept, lost=tuple(lost))


def _good(file: BinaryIO, index: ShardIndex, moved: int, lost: list[str]) -> Iterator[_Good]:
    samples = IndexedSample.all(file, index, moved)
    for key, suffix, label, sample in zip(index.keys, index.suffix, index.label.tolist(), samples, strict=True):
        if sample.image_intact and _decodes(sample.data):
            yield _Good(key, index.suffixes[suffix], sample.data, None if label == NO_LABEL else label)
        else:
            lost.append(key)


def _write(path: Path, good: Iterator[_Good]) -> int:
    """Writes a shard of these samples, if there are any; returns how many there are."""
    first = next(good, None)
    if first is None:
        return 0
    kept = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ShardWriter(path, new=True) as shard:
            for sample in chain([first], good):
                shard.add(*sample)
                kept += 1
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    return kept


def _decodes(data: bytes) -> bool:
    try:
        decoded_size(data)
    except UserError:
        return False
    return True
