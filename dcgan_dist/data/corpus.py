"""A set of shards seen as one numbered list of images."""

import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from itertools import chain
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcgan_dist.data.remote.client import Remote, is_remote
from dcgan_dist.data.remote.unpack import packing
from dcgan_dist.data.shards.index import ShardIndex, corpus_fingerprint
from dcgan_dist.data.shards.labels import LabelMap, common_numbering, relabel
from dcgan_dist.data.shards.notes import merge_notes
from dcgan_dist.data.shards.opener import Opener, Shard
from dcgan_dist.data.shards.patterns import shards_of
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.location import Location
from dcgan_dist.text import listed

OPEN_THREADS = 16  # also the number of local shards that one task opens
INDEX_BYTES = 2**29  # of memory for indexes; the lanes of an order are in about 2,000 shards at a time
CLASSES_LISTED, BAD_LISTED = 20, 20


def expand_shards(patterns: Iterable[str], remote: Remote, passed: Counter[str] | None = None) -> list[str]:
    """Expands folders, brace lists and globs, of files and of remote objects, in a fixed order.

    `passed`: counts other files in folders by their extensions.

    Raises UsageError for a pattern without files, and for a file that is named twice.
    """
    found = [name for pattern in patterns for name in _expand(pattern, remote, passed)]
    seen: set[str] = set()
    for name in found:
        path = name if isinstance(name, Location) else os.path.abspath(name)  # noqa: PTH100, for thousands of names
        if path in seen:
            raise UsageError(f"--data.shards names {name} more than once")
        seen.add(path)
    return found


def _expand(pattern: str, remote: Remote, passed: Counter[str] | None) -> list[str]:
    pattern = Location(pattern)
    if pattern.startswith("pipe:"):
        return [pattern]
    try:
        names = shards_of(pattern, remote, passed)
    except UsageError as error:
        raise UsageError(f"--data.shards {error}") from error
    if any(name.startswith("pipe:") for name in names):
        raise UsageError(f"--data.shards '{pattern}': give every pipe:COMMAND by itself, not in a brace list")
    return names


class Corpus:
    """The images of all shards, numbered 0 .. size - 1 in the order of the shards.

    Can be pickled; another process reads an index again when it reads the first image of its shard.
    """

    def __init__(self, shards: Sequence[Shard], opener: Opener, members: list[NDArray[np.intp]] | None = None) -> None:
        """`members`: of every shard that holds images, the numbers of those that belong to the corpus; None: all."""
        self.shards = [shard for shard in shards if shard.count]
        self.without_images = [shard for shard in shards if not shard.count]
        self.opener, self.members = opener, members
        self.lengths = [shard.count for shard in self.shards] if members is None else list(map(len, members))
        self.size = sum(self.lengths)
        self._ends = np.cumsum(self.lengths, dtype=np.int64)
        self._begins = self._ends - self.lengths
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._held = 0  # bytes of them
        self._lock = Lock()  # of both

    def __reduce__(self) -> tuple[Any, ...]:
        return Corpus, (self.shards, self.opener, self.members), {"_numbering": self._numbering}

    def index(self, number: int) -> ShardIndex:
        """The index of a shard, read on first use. Raises UserError when it is damaged."""
        with self._lock:
            if number in self._indexes:
                self._indexes.move_to_end(number)
                return self._indexes[number]
        index = self.read_index(number)
        with self._lock:
            if number not in self._indexes:
                self._indexes[number] = index
                self._held += index.nbytes
            while self._held > INDEX_BYTES and len(self._indexes) > 1:
                self._held -= self._indexes.popitem(last=False)[1].nbytes
        return index

    def read_index(self, number: int) -> ShardIndex:
        """The index of a shard, not cached. Raises UserError when it is damaged."""
        index, (tables, _) = self.opener.index(self.shards[number]), self._numbering
        return index if tables is None else replace(index, label=relabel(index.label, tables[number]))

    @cached_property
    def _numbering(self) -> tuple[list[LabelMap] | None, dict[int, str]]:
        """If labels are words: for every shard, their labels in the corpus; and the class names."""
        if not any(shard.notes.words for shard in self.shards):
            return None, {}
        with ThreadPoolExecutor(OPEN_THREADS) as pool:
            labels = [(index.label, index.notes.words) for index in pool.map(self.opener.index, self.shards)]
        return common_numbering(labels, "--data.shards")

    @property
    def classes(self) -> dict[int, str]:
        """Class names, where labels are words in tars of other programs."""
        return self._numbering[1]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Label of every image, -1 where there is none; reads all indexes."""
        return np.concatenate([self._labels(number) for number in range(len(self.shards))])

    def _labels(self, number: int) -> NDArray[np.int64]:
        labels = self.read_index(number).label
        return labels if self.members is None else labels[self.members[number]]

    def of_classes(self, classes: Iterable[int]) -> "Corpus":
        """The images with one of these labels, in the same order. Raises UsageError when a class has no image."""
        wanted = sorted(set(classes))
        with ThreadPoolExecutor(OPEN_THREADS) as pool:
            labels = list(pool.map(self._labels, range(len(self.shards))))
        there = np.unique(np.concatenate(labels))
        if missing := sorted(set(wanted) - set(there.tolist())):
            known = there[there >= 0].tolist()
            have = f"there are {listed(known, CLASSES_LISTED)}" if known else "none has any"
            raise UsageError(f"--data.classes {missing[0]}: no image has this label; {have}")
        kept = [np.flatnonzero(np.isin(each, wanted)) for each in labels]
        chosen = [number for number, members in enumerate(kept) if len(members)]
        part = Corpus([self.shards[number] for number in chosen], self.opener, [kept[number] for number in chosen])
        tables, classes = self._numbering
        vars(part)["_numbering"] = tables and [tables[number] for number in chosen], classes
        return part

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any shard's samples or with the order of the shards, but not with their location."""
        return corpus_fingerprint(shard.fingerprint for shard in self.shards)

    def locate(self, sample: int) -> tuple[int, int]:
        """Shard and member of an image."""
        samples = np.array([sample])
        return self.locate_all(samples, self.shards_of(samples))[0]

    def shards_of(self, samples: NDArray[np.int64]) -> NDArray[np.intp]:
        """Shard of every image."""
        return np.searchsorted(self._ends, samples, side="right")

    def locate_all(self, samples: NDArray[np.int64], shards: NDArray[np.intp]) -> list[tuple[int, int]]:
        """Shard and member of every image; `shards`: as of shards_of."""
        pairs = zip(shards.tolist(), (samples - self._begins[shards]).tolist(), strict=True)
        return list(pairs) if self.members is None else [(shard, int(self.members[shard][n])) for shard, n in pairs]

    def first_sample(self, shard: int) -> int:
        """Number of a shard's first image."""
        return int(self._begins[shard])


def open_shards(names: Sequence[str], opener: Opener) -> list[Shard]:
    """All shards; some may hold no image.

    Raises UserError that names each bad shard: a run never starts on a part of its data.
    """
    # a task of a thread pool takes longer than opening a local shard; opening a remote one takes a round trip
    each = 1 if any(is_remote(name) or packing(name) for name in names) else OPEN_THREADS
    groups = [names[first : first + each] for first in range(0, len(names), each)]
    with ThreadPoolExecutor(OPEN_THREADS) as pool:
        results = list(chain.from_iterable(pool.map(lambda group: [_attempt(opener, name) for name in group], groups)))
    bad = [str(result) for result in results if isinstance(result, UserError)]
    if bad:
        more = f"\n({len(bad)} of {len(names)} shards are bad)" if len(bad) > 1 else ""
        raise UserError("\n".join(bad[:BAD_LISTED]) + more)
    shards = [shard for shard in results if isinstance(shard, Shard)]
    if not any(shard.count for shard in shards):
        who = f"{names[0]}: holds" if len(names) == 1 else f"--data.shards: the {len(names)} shards hold"
        raise UserError("; ".join([f"{who} no images", *merge_notes(shard.notes for shard in shards).lines()]))
    return shards


def _attempt(opener: Opener, name: str) -> Shard | UserError:
    try:
        return opener.describe(name)
    except UsageError:
        raise
    except UserError as error:
        return error
