"""Images of a corpus into the rows of a batch: from the file into the batch's memory, with no step between.

Pixels that lie in the shard at training size are copied once, from the file's map; JPEG files of that size are decoded
straight into the batch. What an image is, and whether its bytes are those that were written, is checked when it is
touched for the first time, and remembered.
"""

import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcgan_dist.config.groups import Damaged
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.images.codecs import netpbm_header
from dcgan_dist.data.images.jpeg import decode_jpeg
from dcgan_dist.data.reading.counters import Counters
from dcgan_dist.data.reading.open_shard import JPEG, LIKELY, PIXELS, Bytes, DamageError, OpenShard
from dcgan_dist.data.reading.pixels import PixelTable
from dcgan_dist.data.shards.files import ShardFile, read_together, same_file
from dcgan_dist.errors import UserError

MOST_OPEN = 4_096  # shards; the lanes of an order are in about half as many at a time
OPEN_THREADS = 16  # remote shards
RELEASE_EVERY = 64  # calls of fill after which shards that are in the cache by now are closed


def most_open(wanted: int) -> int:
    """How many files may be open, of `wanted`; raises this process's soft limit, of which half is for other things."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted if hard == resource.RLIM_INFINITY else min(2 * wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        soft = needed
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft // 2))


class _Target(NamedTuple):
    """Where the images go; one row each."""

    samples: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


Places = list[tuple[int, int]]  # of every row the shard and the member of it
Shards = dict[int, OpenShard]
Views = dict[int, memoryview | None]
Image = tuple[OpenShard, int, tuple[int, int]]  # of a shard a member, and its span when it was read
Bad = list[tuple[int, DamageError]]  # rows whose image cannot be used


class Fetcher:
    """Reads images by their numbers in the corpus. `fill` may be called by several threads for rows of their own."""

    def __init__(
        self, corpus: Corpus, shape: tuple[int, int], damaged: Damaged = "raise", most_damaged: int = 100
    ) -> None:
        """`shape`: height (and width), channels.

        `damaged`: an image that cannot be used ends the run (raise), or the next intact one of its shard takes its
        place, always the same one (substitute), until there are more than `most_damaged` different ones.
        """
        self.corpus, self.shape = corpus, shape
        self.damages: dict[int, str] = {}
        """Number of each damaged image and what is wrong with it, in the order in which they were met."""
        self._header = len(netpbm_header(shape[0], *shape))
        self._policy, self._most_damaged = damaged, most_damaged
        self._most_open = most_open(min(MOST_OPEN, len(corpus.shards)))
        self._open: dict[int, OpenShard] = {}
        self._pixels = PixelTable(corpus.size)
        self._discarded: dict[int, ShardFile] = {}
        self._fills = 0
        self._remote = any(shard.source is not None for shard in corpus.shards)
        self._lock = threading.Lock()  # of all of these
        self._arguments = (corpus, shape, damaged, most_damaged)

    def __reduce__(self) -> tuple[type["Fetcher"], tuple[Any, ...]]:
        """In another process: one that has read nothing yet."""
        return Fetcher, self._arguments

    def fill(self, samples: NDArray[np.int64], pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> Counters:
        """Puts the images of these numbers into `pixels`, uint8 (n, H, W, C), C-contiguous, and their labels.

        A substitute's number takes the place of the damaged one's in `samples`. Returns what was read for them. Raises
        UserError.
        """
        target, counters = _Target(samples, pixels, labels), Counters(images=len(samples))
        self._fills += 1
        if self._fills % RELEASE_EVERY == 0 and self._remote:
            self._release_remote()
        for row, error in self._fill(target, counters):
            sample, one = int(samples[row]), _Target._make(part[row : row + 1] for part in target)
            if self._retry_damaged(sample) and not self._fill(one, Counters()):
                continue
            if self._policy == "raise":
                raise error
            self.note({sample: str(error)})
            counters.substituted += 1
            self._substitute(one)
        return counters

    def note(self, damages: dict[int, str]) -> None:
        """Remembers damaged images, perhaps those that another process met. Raises UserError when they are too many."""
        with self._lock:
            self.damages |= damages
            if len(self.damages) > self._most_damaged:
                most = f"more than --data.most_damaged {self._most_damaged} damaged images"
                raise UserError(f"{most}, the last: {list(self.damages.values())[-1]}")

    def _fill(self, target: _Target, counters: Counters) -> Bad:
        numbers = self.corpus.shards_of(target.samples)
        if not self._remote and self._pixels.copy(*target, numbers, lambda number: self._open_one(number).view()):
            counters.bytes += target.pixels.nbytes + self._header * len(target.samples)
            return []
        places = self.corpus.locate_all(target.samples, numbers)
        shards = self._opened({number for number, _ in places})
        views = {number: shard.view() for number, shard in shards.items()}
        bad = self._fill_mapped(places, shards, views, target, counters)
        if None in views.values():
            unmapped = [(row, *place) for row, place in enumerate(places) if views[place[0]] is None]
            bad += self._fill_unmapped(unmapped, shards, target, counters)
        if self._remote:
            ranged = [shards[number].ranged for number, _ in places if shards[number].remote]
            counters.from_remote += sum(ranged)
            counters.from_cache += len(ranged) - sum(ranged)
        return bad

    def _fill_mapped(self, places: Places, shards: Shards, views: Views, target: _Target, counters: Counters) -> Bad:
        bad: Bad = []
        pixels, labels = target.pixels, target.labels
        flat, channels, header = pixels.data.cast("B"), pixels.shape[3], self._header
        each = len(flat) // len(pixels)
        raw: list[int] = []  # rows; of each where it begins, and its label
        begins: list[int] = []
        found: list[int] = []
        for row, (number, member) in enumerate(places):
            shard, view = shards[number], views[number]
            if view is None:
                continue
            # the hot path; errors are handled below
            kind, begin = shard.kind[member], shard.offset[member]
            try:
                if kind == PIXELS or (kind == LIKELY and shard.is_pixels(member, view)):
                    begin += header
                    flat[row * each : (row + 1) * each] = view[begin : begin + each]
                    raw.append(row)
                    begins.append(begin)
                    found.append(shard.label[member])
                    continue
                if kind == JPEG:
                    length = shard.length[member]
                    decode_jpeg(view[begin : begin + length], channels, pixels[row])
                    labels[row] = shard.label[member]
                    counters.bytes += length
                    continue
            except ValueError:  # too few bytes, or damaged since
                pass
            first, count = span = shard.span(member)
            bad += self._put(row, (shard, member, span), view[first : first + count], target, counters)
        if raw:
            labels[raw] = found
            self._pixels.put(target.samples[raw], begins, labels[raw])
            counters.bytes += len(raw) * (each + header)
        return bad

    def _fill_unmapped(
        self, unmapped: list[tuple[int, int, int]], shards: Shards, target: _Target, counters: Counters
    ) -> Bad:
        """Reads all remote images at the same time."""
        bad: Bad = []
        wanted = [(shards[number], member, shards[number].span(member)) for _, number, member in unmapped]
        blobs = read_together([(shard.file, *span) for shard, _, span in wanted])
        for (row, *_), image, data in zip(unmapped, wanted, blobs, strict=True):
            bad += self._put(row, image, data, target, counters)
        return bad

    @staticmethod
    def _put(row: int, image: Image, data: Bytes, target: _Target, counters: Counters) -> Bad:
        shard, member, span = image
        try:
            shard.put(member, span, data, target.pixels[row])
        except DamageError as error:
            return [(row, error)]
        target.labels[row] = shard.label[member]
        counters.bytes += shard.length[member]
        return []

    # ---- open shards

    def _opened(self, numbers: set[int]) -> Shards:
        """Shards that are open, or are opened now: remote ones, whose index is asked for, several at a time."""
        missing = [number for number in numbers if number not in self._open] if self._remote else []
        if len(missing) > 1:
            with ThreadPoolExecutor(OPEN_THREADS) as pool:
                list(pool.map(self._open_one, missing))
        shards = {number: self._open_one(number) for number in numbers}
        for shard in shards.values():
            shard.used = self._fills
        return shards

    def _open_one(self, number: int) -> OpenShard:
        if (shard := self._open.get(number)) is not None:
            return shard
        file = self.corpus.opener.open(self.corpus.shards[number])
        remote = self.corpus.shards[number].source is not None
        shard = OpenShard(file, self.corpus.index(number), self.shape, remote)
        if same_file(file, self._discarded.get(number)):  # another thread discarded it meanwhile
            return self._open_one(number)
        with self._lock:
            while len(self._open) >= self._most_open:
                del self._open[next(iter(self._open))]
            return self._open.setdefault(number, shard)

    def _release_remote(self) -> None:
        """Closes remote shards that are in the cache by now, or whose place in it other shards may need."""
        with self._lock:
            for number, shard in list(self._open.items()):
                if shard.remote and (shard.ranged or self._fills - shard.used > RELEASE_EVERY):
                    del self._open[number]

    # ---- damaged images

    def _retry_damaged(self, sample: int) -> bool:
        """Whether to read a damaged image again, because its shard was removed from the cache, where it may be damaged.

        This happens once for each shard. Other rows and threads may have found the damage before it was removed.
        """
        number, _ = self.corpus.locate(sample)
        described, found = self.corpus.shards[number], self._open.get(number)
        if described.source is None:
            return False
        if number in self._discarded or found is None:
            return True
        if found.ranged:
            return False
        self.corpus.opener.discard(described, found.file)
        with self._lock:
            self._discarded[number] = found.file  # kept open, so that its inode number is not used again
            self._open.pop(number, None)
        return True

    def _substitute(self, row: _Target) -> None:
        """The next intact image of the same shard, round its end, or of the next shards: the same one on any rank."""
        bad = int(row.samples[0])
        for sample in self._after(bad):
            row.samples[0] = sample
            if not self._fill(row, Counters()):
                return
        raise UserError(f"no image of the corpus can be used; {self.damages[bad]}")

    def _after(self, sample: int) -> Iterator[int]:
        number, _ = self.corpus.locate(sample)
        first, count = self.corpus.first_sample(number), self.corpus.lengths[number]
        yield from (first + (sample - first + step) % count for step in range(1, count))
        yield from ((first + count + step) % self.corpus.size for step in range(self.corpus.size - count))
