"""A set of shards seen as one numbered list of images."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from glob import glob
from itertools import accumulate
from pathlib import Path

import numpy as np
import xxhash
from braceexpand import braceexpand
from numpy.typing import NDArray

from dcgan_dist.data.foreign import foreign_index
from dcgan_dist.data.index import ShardIndex, read_index
from dcgan_dist.errors import UsageError, UserError


def expand(patterns: Iterable[str]) -> list[str]:
    """Spells out brace lists and globs, in a fixed order.

    Raises UsageError for a pattern without files, and for a file that is named twice.
    """
    found = [file for pattern in patterns for name in _without_braces(pattern) for file in _without_glob(name)]
    seen: set[Path] = set()
    for name in found:
        path = Path(name).absolute()
        if path in seen:
            raise UsageError(f"--data.shards names {name} twice")
        seen.add(path)
    return found


def _without_braces(pattern: str) -> list[str]:
    if pattern.startswith("pipe:"):
        return [pattern]
    try:
        names = list(braceexpand(pattern))
    except ValueError as error:
        raise UsageError(f"--data.shards '{pattern}': the braces do not match ({error})") from error
    if any(name.startswith("pipe:") for name in names):
        raise UsageError(f"--data.shards '{pattern}': give every pipe:COMMAND by itself, not in a brace list")
    return names


def _without_glob(name: str) -> list[str]:
    if name.startswith("pipe:") or "://" in name or not any(sign in name for sign in "*?["):
        return [name]
    files = sorted(glob(name))  # noqa: PTH207, for Path.glob takes no absolute pattern
    if not files:
        raise UsageError(f"--data.shards '{name}': no such files (seen from {Path.cwd()})")
    return files


class Corpus:
    """The images of all shards, numbered 0 .. size - 1 in the order of the shards."""

    def __init__(self, shards: Sequence[ShardIndex]) -> None:
        self.shards = list(shards)
        self.lengths = [len(shard) for shard in self.shards]
        self._end = list(accumulate(self.lengths))
        self.size = self._end[-1]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Label of every image, -1 where there is none."""
        return np.concatenate([shard.label for shard in self.shards])

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any shard's samples or with the order of the shards, but not with where they lie."""
        return xxhash.xxh3_64_hexdigest(repr([shard.fingerprint for shard in self.shards]).encode())

    def locate(self, sample: int) -> tuple[int, int]:
        """Shard and member of an image."""
        shard = bisect_right(self._end, sample)
        return shard, sample - (self._end[shard] - self.lengths[shard])

    def key(self, sample: int) -> str:
        """'shard.tar/KEY' of an image."""
        shard, member = self.locate(sample)
        return f"{self.shards[shard].path.name}/{self.shards[shard].keys[member]}"


def open_corpus(patterns: Iterable[str]) -> Corpus:
    """Opens and checks every shard; see open_shards."""
    return Corpus(open_shards(expand(patterns)))


def open_shards(names: Sequence[str]) -> list[ShardIndex]:
    """The indexes of all shards that hold images.

    Raises UserError that names each bad shard: a run never starts on a part of its data.
    """
    paths = [_local(name) for name in names]
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(_open, paths))
    bad = [str(result) for result in results if isinstance(result, UserError)]
    if bad:
        more = f"\n({len(bad)} of {len(paths)} shards are bad)" if len(bad) > 1 else ""
        raise UserError("\n".join(bad[:20]) + more)
    shards = [shard for shard in results if isinstance(shard, ShardIndex) and len(shard)]
    if not shards:
        raise UserError(f"--data.shards: the {len(paths)} shards hold no images")
    return shards


def _local(name: str) -> Path:
    if "://" in name:
        problem = "the indexed reader needs local files; copy the shards to a disk that every node sees"
        raise UsageError(f"--data.shards {name}: {problem}")
    return Path(name)


def _open(path: Path) -> ShardIndex | UserError:
    try:
        if path.is_dir():
            return UserError(f"{path}: is a folder; name the shards in it, as in '{path}/*.tar'")
        if not path.is_file():
            return UserError(f"{path}: no such file")
        index = read_index(path)
        return foreign_index(path) if index is None else index
    except UserError as error:
        return error
    except OSError as error:
        return UserError(f"{path}: cannot be read ({error.strerror})")
