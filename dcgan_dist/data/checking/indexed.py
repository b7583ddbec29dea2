"""Shards that carry an index, sample by sample: is each what was written?"""

import tarfile
from functools import cached_property
from typing import BinaryIO

import numpy as np
import xxhash

from dcgan_dist.data.index import BLOCK, FOOTER, NO_LABEL, Footer, Read, ShardIndex, load_index, read_footer
from dcgan_dist.errors import UserError

INDEX = "__index__"
NAME_FIELD = 100  # bytes of a tar header
TEMPLATE = tarfile.TarInfo("").tobuf(tarfile.PAX_FORMAT)
# a header's checksum is the sum of its bytes, its own field taken for spaces; here without name and size
REST_OF_CHECKSUM = sum(TEMPLATE[NAME_FIELD:124]) + sum(TEMPLATE[136:148]) + 8 * ord(" ") + sum(TEMPLATE[156:])


def find_index(name: str, size: int, read: Read) -> tuple[Footer, ShardIndex] | None:
    """What a shard says of itself; None where it says nothing. Raises UserError when that is damaged."""
    footer = read_footer(name, size, read)
    if footer is None:
        return None
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
    return footer, index


def member_bytes(name: str, data: bytes) -> bytes:
    """A tar member as ShardWriter writes it."""
    if name.isascii() and len(name) < NAME_FIELD:  # the same bytes as below, in a tenth of the time
        raw, size = name.encode(), b"%011o\0" % len(data)
        checksum = b"%06o\0 " % (sum(raw) + sum(size) + REST_OF_CHECKSUM)
        head = raw.ljust(NAME_FIELD, b"\0") + TEMPLATE[NAME_FIELD:124] + size + TEMPLATE[136:148]
        return b"".join((head, checksum, TEMPLATE[156:], data, bytes(-len(data) % BLOCK)))
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % BLOCK)


class IndexedSample:
    """A sample of a shard with an index, and what the index says of it."""

    def __init__(self, file: BinaryIO, index: ShardIndex, number: int) -> None:
        self._start = int(index.start[number])
        offset, length = int(index.offset[number]) - self._start, int(index.length[number])
        file.seek(self._start)
        self._bytes = file.read(int(index.start[number + 1]) - self._start)
        self._suffix, self._label = index.suffixes[index.suffix[number]], int(index.label[number])
        self.data = self._bytes[offset : offset + length]
        """Of the image."""
        self._image = member_bytes(f"{index.keys[number]}.{self._suffix}", self.data)
        label = member_bytes(f"{index.keys[number]}.cls", b"%d" % self._label) if self._label != NO_LABEL else b""
        self._wanted = self._image + label
        checksum = int(index.checksum[number])
        self.whole = xxhash.xxh3_64_intdigest(self._bytes) == checksum
        """All its bytes are as they were written."""
        self._data_at = len(self._image) - -(-length // BLOCK) * BLOCK
        self.agrees = self._wanted == self._bytes and self._data_at == offset
        """Its tar headers and its label are what the index says."""
        self.image_whole = self.whole or xxhash.xxh3_64_intdigest(self._wanted) == checksum
        """The image is as it was written, even where its tar headers or its label in the tar are not."""

    @cached_property
    def damaged_at(self) -> int:
        """First byte in the shard that is known to be wrong, or the first of the image."""
        length = min(len(self._bytes), len(self._wanted))
        found, wanted = (np.frombuffer(part, dtype=np.uint8, count=length) for part in (self._bytes, self._wanted))
        different = np.flatnonzero(found != wanted)
        return self._start + (int(different[0]) if len(different) else self._data_at)

    @property
    def damage(self) -> str:
        """What is wrong, in words."""
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
