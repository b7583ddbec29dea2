"""Images of a corpus into the rows of a batch: from the file into the batch's memory, with no step between.

Pixels that lie in the shard at training size are copied once, from the file's map; JPEG files of that size are decoded
straight into the batch. What an image is, and whether its bytes are those that were written, is checked when it is
touched for the first time, and remembered.
"""

import threading
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from dcgan_dist.data.codecs import decode_into, netpbm_header, plain_jpeg
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.files import RangedFile, ShardFile, read_together
from dcgan_dist.data.index import ShardIndex
from dcgan_dist.data.jpeg import decode_jpeg
from dcgan_dist.data.reading.counters import Counters
from dcgan_dist.data.reading.pixels import PixelTable
from dcgan_dist.errors import UserError

MOST_OPEN = 4_096  # shards; the lanes of an order are in about half as many at a time
LOOK_EVERY = 64  # calls of fill between two looks at what the cache has by now
UNKNOWN, PIXELS, JPEG, OTHER = range(4)  # kinds of images: not touched yet; at training size: raw, JPEG; all others
Policy = Literal["raise", "substitute"]
Bytes = memoryview | bytes


class DamageError(UserError):
    """One image that cannot be used; others of its shard may be whole."""


class _Open:
    """A shard in use. The tables are views of the index, whose single numbers cost less than an array's."""

    def __init__(self, file: ShardFile, index: ShardIndex) -> None:
        self.file, self.index = file, index
        self.afar = isinstance(file, RangedFile)
        self.used = 0  # in which call of fill
        self.kind = bytearray(len(index))
        self.offset, self.length, self.label = index.offset.data, index.length.data, index.label.data
        self.start, self.checksum = index.start.data, index.checksum.data
        self.checked = index.checked

    def view(self) -> memoryview | None:
        """All bytes of a mapped file, as it is now: nothing beyond the end of one that was cut may be touched."""
        view = self.file.view
        return view if view is None else view[: self.file.size()]

    def span(self, member: int) -> tuple[int, int]:
        """Where the bytes lie that are needed next: of an image that was touched before, itself, else its sample."""
        if self.kind[member] or not self.checked:
            return self.offset[member], self.length[member]
        start = self.start[member]
        return start, self.start[member + 1] - start


@dataclass
class _Target:
    """Where the images go; one row each."""

    samples: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


class Fetcher:
    """Reads images by their numbers in the corpus. `fill` may be called by several threads for rows of their own."""

    def __init__(
        self, corpus: Corpus, shape: tuple[int, int], damaged: Policy = "raise", most_damaged: int = 100
    ) -> None:
        """`shape`: height (and width), channels. `damaged`: what becomes of an image that cannot be used.

        raise: it ends the run, by its name. substitute: the next whole one of its shard takes its place, always the
        same; when more than `most_damaged` different ones are met, the run ends.
        """
        self.corpus = corpus
        self.damages: dict[int, str] = {}
        """Number of each damaged image and what is wrong with it, in the order in which they were met."""
        self._header = netpbm_header(shape[0], *shape)
        self._policy, self._most_damaged = damaged, most_damaged
        self._open: dict[int, _Open] = {}
        self._pixels = PixelTable(corpus.size)
        self._thrown_out: set[int] = set()
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
        if self._fills % LOOK_EVERY == 0 and self._remote:
            self._look_again()
        for row, error in self._fill(target, counters):
            sample, alone = int(samples[row]), slice(row, row + 1)
            one = _Target(samples[alone], pixels[alone], labels[alone])
            if self._brought_anew(sample) and not self._fill(one, Counters()):
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

    def _fill(self, target: _Target, counters: Counters) -> list[tuple[int, DamageError]]:
        """Returns the rows whose image is damaged."""
        numbers = self.corpus.shards_of(target.samples)
        if not self._remote and self._pixels.copy(target.samples, numbers, self._view, target.pixels, target.labels):
            counters.bytes += target.pixels.nbytes + len(self._header) * len(target.samples)
            return []
        shards: dict[int, list[tuple[int, int]]] = {}
        for row, (number, member) in enumerate(self.corpus.locate_all(target.samples, numbers)):
            shards.setdefault(number, []).append((row, member))
        bad: list[tuple[int, DamageError]] = []
        unmapped: list[tuple[int, int, _Open]] = []
        for number, rows in shards.items():
            shard = self._opened(number)
            shard.used = self._fills
            view = shard.view()
            if view is None:
                unmapped += [(row, member, shard) for row, member in rows]
            else:
                bad += self._fill_mapped(shard, view, rows, target)
            counters.bytes += sum([shard.length[member] for _, member in rows])
            if self.corpus.shards[number].source is not None:
                counters.from_afar += len(rows) * shard.afar
                counters.from_cache += len(rows) * (not shard.afar)
        blobs = read_together([(shard.file, *shard.span(member)) for _, member, shard in unmapped])
        for (row, member, shard), data in zip(unmapped, blobs, strict=True):
            try:
                self._image(shard, member, data, target, row)
            except DamageError as error:
                bad.append((row, error))
        return bad

    def _fill_mapped(
        self, shard: _Open, view: memoryview, rows: list[tuple[int, int]], target: _Target
    ) -> list[tuple[int, DamageError]]:
        bad: list[tuple[int, DamageError]] = []
        kind, offset, length, label = shard.kind, shard.offset, shard.length, shard.label
        pixels, labels = target.pixels, target.labels
        flat, channels, header = pixels.data.cast("B"), pixels.shape[3], len(self._header)
        each = len(flat) // len(pixels)
        for row, member in rows:
            # the images that were touched before, with as few steps as can be; what goes wrong is named further down
            try:
                begin = offset[member]
                if kind[member] == PIXELS:
                    flat[row * each : (row + 1) * each] = view[begin + header : begin + header + each]
                    labels[row] = label[member]
                    continue
                if kind[member] == JPEG:
                    decode_jpeg(view[begin : begin + length[member]], channels, pixels[row])
                    labels[row] = label[member]
                    continue
            except ValueError:  # too few bytes, or damaged since
                pass
            first, count = shard.span(member)
            try:
                self._image(shard, member, view[first : first + count], target, row)
            except DamageError as error:
                bad.append((row, error))
        return bad

    def _image(self, shard: _Open, member: int, data: Bytes, target: _Target, row: int) -> None:
        """One image from the bytes of its span. Raises DamageError."""
        if len(data) < shard.span(member)[1]:
            raise DamageError(f"{shard.index.describe(member)}: the file ends early; it was cut after the run began")
        out = target.pixels[row]
        if not shard.kind[member]:
            data = self._touch(shard, member, data, out)
        if shard.kind[member] == PIXELS:
            out[:] = np.frombuffer(data, dtype=np.uint8, offset=len(self._header)).reshape(out.shape)
            begin = shard.offset[member] + len(self._header)
            self._pixels.put(int(target.samples[row]), begin, shard.label[member])
        else:
            self._decode(shard, member, data, out)
        target.labels[row] = shard.label[member]

    def _touch(self, shard: _Open, member: int, data: Bytes, out: NDArray[np.uint8]) -> Bytes:
        """Checks a sample's bytes, finds out what its image is, and returns the image's bytes alone."""
        index = shard.index
        if shard.checked:
            if xxhash.xxh3_64_intdigest(data) != shard.checksum[member]:
                what = "its bytes are not those that were written; copy the shard again, or dcgan-dist verify --repair"
                raise DamageError(f"{index.describe(member)}: {what}")
            within = shard.offset[member] - shard.start[member]
            data = data[within : within + shard.length[member]]
        suffix = index.suffixes[index.suffix[member]]
        raw = suffix in ("ppm", "pgm") and len(data) == len(self._header) + out.nbytes
        if raw and data[: len(self._header)] == self._header:
            shard.kind[member] = PIXELS
        else:
            plain = suffix in ("jpg", "jpeg") and plain_jpeg(bytes(data), out.shape)
            shard.kind[member] = JPEG if plain else OTHER
        return data

    def _decode(self, shard: _Open, member: int, data: Bytes, out: NDArray[np.uint8]) -> None:
        try:
            if shard.kind[member] == JPEG:
                decode_jpeg(data, out.shape[2], out)
            else:
                where = shard.index.describe(member)
                decode_into(bytes(data), shard.index.suffixes[shard.index.suffix[member]], out, where)
        except ValueError as error:
            raise DamageError(f"{shard.index.describe(member)}: a damaged image ({error})") from error
        except UserError as error:
            raise DamageError(str(error)) from error

    def _view(self, number: int) -> memoryview | None:
        return self._opened(number).view()

    def _opened(self, number: int) -> _Open:
        shard = self._open.get(number)
        if shard is not None:
            return shard
        described = self.corpus.shards[number]
        try:
            shard = _Open(self.corpus.opener.open(described), self.corpus.index(number))
        except OSError as error:
            raise UserError(f"{described.name}: cannot be read any more ({error.strerror})") from error
        with self._lock:
            while len(self._open) >= MOST_OPEN:
                del self._open[next(iter(self._open))]
            return self._open.setdefault(number, shard)

    def _look_again(self) -> None:
        """Lets go of remote shards that are by now in the cache, or whose place in it others may need."""
        with self._lock:
            for number, shard in list(self._open.items()):
                if self.corpus.shards[number].source is not None and (
                    shard.afar or self._fills - shard.used > LOOK_EVERY
                ):
                    del self._open[number]

    # ---- damaged images

    def _brought_anew(self, sample: int) -> bool:
        """Whether the shard of a damaged image was thrown out of the cache, which may be at fault; once for each."""
        number, _ = self.corpus.locate(sample)
        shard = self.corpus.shards[number]
        with self._lock:
            if shard.source is None or number in self._thrown_out:
                return False
            self._thrown_out.add(number)
            self._open.pop(number, None)
        return self.corpus.opener.throw_out(shard)

    def _substitute(self, row: _Target) -> None:
        """The next whole image of the same shard, round its end: the same one on any rank, at any time."""
        bad = int(row.samples[0])
        number, _ = self.corpus.locate(bad)
        first, count = self.corpus.first_sample(number), self.corpus.lengths[number]
        for step in range(1, count):
            row.samples[0] = first + (bad - first + step) % count
            if not self._fill(row, Counters()):
                return
        raise UserError(f"{self.corpus.shards[number].name}: none of its images can be used; {self.damages[bad]}")
