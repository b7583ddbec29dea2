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
from braceexpand import UnbalancedBracesError, braceexpand
from numpy.typing import NDArray

from dcgan_dist.data.foreign import foreign_index
from dcgan_dist.data.index import ShardIndex, read_index
from dcgan_dist.errors import UsageError, UserError


def expand(patterns: Iterable[str]) -> list[str]:
    """Spells out brace lists and globs, in a fixed order. Raises UsageError for a pattern without files, or a file named twice."""
    found: list[str] = []
    for pattern in patterns:
        try:
            names = [pattern] if pattern.startswith("pipe:") else list(braceexpand(pattern))
        except UnbalancedBracesError as error:
            raise UsageError(f"--data.shards '{pattern}': the braces do not match ({error})") from error
        for name in names:
            files = sorted(glob(name)) if any(sign in name for sign in "*?[") else [name]
            if not files:
                raise UsageError(f"--data.shards '{name}': no such files (seen from {Path.cwd()})")
            found += files
    twice = sorted({name for name in found if found.count(name) > 1}) if len(set(found)) < len(found) else []
    if twice:
        raise UsageError(f"--data.shards names {twice[0]} twice")
    return found


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
    """Opens and checks every shard. Raises UserError that names each bad one; a run never starts on a part of its data."""
    paths = [_local(name) for name in expand(patterns)]
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(_open, paths))
    bad = [str(result) for result in results if isinstance(result, UserError)]
    if bad:
        more = f"\n({len(bad)} of {len(paths)} shards are bad)" if len(bad) > 1 else ""
        raise UserError("\n".join(bad[:20]) + more)
    shards = [shard for shard in results if isinstance(shard, ShardIndex) and len(shard)]
    if not shards:
        raise UserError(f"--data.shards: the {len(paths)} shards hold no images")
    return Corpus(shards)


def _local(name: str) -> Path:
    if "://" in name:
        raise UsageError(f"--data.shards {name}: the indexed reader needs local files; copy the shards to a disk that every node sees")
    return Path(name)


def _open(path: Path) -> ShardIndex | UserError:
    try:
        if not path.is_file():
            return UserError(f"{path}: no such file")
        return read_index(path) or foreign_index(path)
    except UserError as error:
        return error
    except OSError as error:
        return UserError(f"{path}: cannot be read ({error.strerror})")
