"""Checks shards with an index, sample by sample."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from typing import BinaryIO

import numpy as np
import xxhash

from dcgan_dist.data.checking.access import UnreadableError
from dcgan_dist.data.shards.index import (
    BLOCK,
    FOOTER,
    INDEX,
    MAGIC,
    NO_LABEL,
    TAIL,
    Footer,
    ReadAt,
    ShardIndex,
    load_index,
    member_bytes,
    read_footer,
)
from dcgan_dist.errors import UserError

SEARCHED = 2**16  # bytes at the end of a damaged shard in which its footer is searched


def find_index(name: str, size: int, read: ReadAt) -> tuple[Footer, ShardIndex] | None:
    """The footer and the index of a shard; None if it has none. Raises UserError when they are damaged."""
    footer = read_footer(name, size, read)
    return None if footer is None else (footer, _consistent(name, footer, read))


def find_any_index(
    name: str, size: int, read: ReadAt, refuse: Callable[[UserError], object]
) -> tuple[Footer, ShardIndex, int] | None:
    """As find_index, also in a shard that has lost or gained bytes; and by how many bytes the samples have moved.

    `refuse`: called with what is wrong with the index where it should be.
    """
    try:
        if found := find_index(name, size, read):
            return *found, 0
    except UnreadableError:
        raise
    except UserError as error:
        refuse(error)
    begin = max(size - SEARCHED, 0)
    tail = read(begin, SEARCHED)
    place = tail.rfind(MAGIC)
    if place < 0 or place + FOOTER.size > len(tail):
        return None
    footer = Footer.unpack(tail[place:])
    moved = begin + place + TAIL - footer.file_size if footer else 0
    if footer is None or footer.start + moved < 0:
        return None
    with suppress(UserError):
        return footer, _consistent(name, footer, lambda offset, length: read(offset + moved, length)), moved
    return None


def _consistent(name: str, footer: Footer, read: ReadAt) -> ShardIndex:
    index = load_index(name, footer, read)
    arrays = (index.suffix, index.length, index.label, index.checksum, index.start[1:], index.keys)
    consistent = (
        all(len(array) == len(index) == footer.count for array in arrays)
        and index.fingerprint == footer.fingerprint
        and len(index.start) == len(index) + 1
        and index.start[0] == 0
        and index.start[-1] == footer.start - BLOCK
        and bool(np.all(np.diff(index.start) >= BLOCK + index.length))
        and bool(np.all(index.suffix < len(index.suffixes)))
    )
    if not consistent:
        raise UserError(f"{name}: the index at byte {footer.start} contradicts itself; write this shard again")
    return index


class IndexedSample:
    """A sample of a shard with an index, compared with the index."""

    def __init__(self, file: BinaryIO, index: ShardIndex, number: int, moved: int = 0) -> None:
        """`moved`: bytes by which the sample has moved, because bytes before it are missing or were added."""
        self._start = int(index.start[number])
        offset, length = int(index.offset[number]) - self._start, int(index.length[number])
        file.seek(max(self._start + moved, 0))
        self._bytes = file.read(int(index.start[number + 1]) - self._start)
        self._suffix, self._label = index.suffixes[index.suffix[number]], int(index.label[number])
        self.data = self._bytes[offset : offset + length]  # of the image
        self._image = member_bytes(f"{index.keys[number]}.{self._suffix}", self.data)
        label = member_bytes(f"{index.keys[number]}.cls", b"%d" % self._label) if self._label != NO_LABEL else b""
        self._wanted = self._image + label
        checksum = int(index.checksum[number])
        self.intact = xxhash.xxh3_64_intdigest(self._bytes) == checksum  # all its bytes have their checksum
        self._data_at = len(self._image) - -(-length // BLOCK) * BLOCK
        self.agrees = self._wanted == self._bytes and self._data_at == offset
        """Its tar headers and its label agree with the index."""
        self.image_intact = self.intact or xxhash.xxh3_64_intdigest(self._wanted) == checksum
        """The image is intact; its tar headers or its label in the tar may not be."""

    @classmethod
    def all(cls, file: BinaryIO, index: ShardIndex, moved: int) -> "Iterator[IndexedSample]":
        """Every sample, at its place or at the place it has moved to."""
        for number in range(len(index)):
            sample = cls(file, index, number)
            if moved and not sample.image_intact:
                elsewhere = cls(file, index, number, moved)
                sample = elsewhere if elsewhere.image_intact else sample
            yield sample

    @cached_property
    def damaged_at(self) -> int:
        """Offset in the shard of the first byte that is known to be wrong, or of the image."""
        length = min(len(self._bytes), len(self._wanted))
        found, wanted = (np.frombuffer(part, dtype=np.uint8, count=length) for part in (self._bytes, self._wanted))
        different = np.flatnonzero(found != wanted)
        return self._start + (int(different[0]) if len(different) else self._data_at)

    @property
    def damage(self) -> str:
        """What is wrong."""
        if self._bytes == self._wanted:
            return f"the bytes of the .{self._suffix} are not those that were written (checksum)"
        in_image = self.damaged_at - self._start < len(self._image)
        what = f"the tar header or padding of the .{self._suffix}" if in_image else "the .cls member"
        return f"{what} is not what was written"


def is_index_member(data: bytes, footer: Footer) -> bool:
    """Whether the last part of a shard is its index in a tar member, and the end mark."""
    blob = data[BLOCK : BLOCK + footer.length]
    padded = blob + bytes(-(len(blob) + FOOTER.size) % BLOCK) + data[-2 * BLOCK - FOOTER.size : -2 * BLOCK]
    return data == member_bytes(INDEX, padded) + bytes(2 * BLOCK)
