"""Reads a tar of any origin from its first byte to its last, and goes on behind whatever is damaged."""

import io
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import xxhash

from dcgan_dist.data.formats import ending_of
from dcgan_dist.data.index import BLOCK, END_MARK, SKIPPED, Read
from dcgan_dist.data.samples import BAD, KEY_AND_SUFFIX, LINKS, WEBDATASETS_OWN
from dcgan_dist.data.tarfiles import MAGIC, MAGIC_AT, Header, compression

CHUNK = 4 * 2**20  # bytes read at a time


class Member(NamedTuple):
    """A file in the tar, with all its data."""

    name: str
    start: int  # first byte of its headers
    data: int  # first byte of its data
    size: int
    end: int  # first byte behind its padding
    plain: bool  # an ordinary file, not a folder or a link
    refused: str  # why no image or label can be read from it; "": it can
    link: bool = False


class Gap(NamedTuple):
    """Bytes `start` to `end` that are damaged."""

    start: int
    end: int
    why: str
    name: str = ""  # of the member that is cut
    holds: bool = True  # something was, or may have been, there


@dataclass
class Sample:
    """Members of one key that stand together, as webdataset groups them."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)  # by suffix
    beside_gap: bool = False  # some of its members may have been there

    @property
    def is_bad(self) -> bool:
        """Whether webdataset leaves it out."""
        return BAD in self.members and self.members[BAD].size > 0


class Refused(NamedTuple):
    """A member with whose name neither webdataset nor training reads the tar."""

    name: str
    start: int
    why: str


class Passage(io.RawIOBase):
    """A file as something to be read from front to back, once, with the checksum of all that went by."""

    def __init__(self, read: Read, size: int, tick: Callable[[int], None]) -> None:
        """`tick` is told how much further than ever before the reading has come, in bytes."""
        self._read_at, self._size, self._tick = read, size, tick
        self._at = self._passed = self._furthest = 0
        self._whole = xxhash.xxh3_128()

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See io.RawIOBase."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        wanted = max(0, min(len(buffer), self._size - self._at))
        data = self._read_at(self._at, wanted) if wanted else b""
        buffer[: len(data)] = data
        if self._at <= self._passed < self._at + len(data):
            self._whole.update(data[self._passed - self._at :])
            self._passed = self._at + len(data)
        self._at += len(data)
        if self._at > self._furthest:
            self._tick(self._at - self._furthest)
            self._furthest = self._at
        return len(data)

    def checksum(self) -> str:
        """xxh3-128 of the whole file, hexadecimal; reads what nobody has read yet."""
        self.seek(self._passed)
        while self.readinto(bytearray(CHUNK)):
            pass
        return self._whole.hexdigest()


def scan(file: BinaryIO, size: int) -> Iterator[Member | Gap]:
    """All members of a tar of `size` bytes in their order, and all that is damaged; nothing is left out.

    Behind a damaged stretch it goes on with the next tar header, wherever that stands. Nothing of a member is read but
    its headers, except around damage.
    """
    tar = tarfile.TarFile(fileobj=io.BytesIO(END_MARK))
    tar.fileobj = file
    at, held = 0, None  # a member is held back until what follows it is known
    while True:
        found = _at(tar, file, at, size)
        if isinstance(found, Gap) and held is not None:
            # bytes are missing in the member before, if it holds a header: that of the member that should follow it
            lost = next_header(file, held.data, min(held.end + BLOCK - 1, size))
            if lost is not None:
                found, held = Gap(held.start, lost, "bytes are missing in the data", held.name), None
        if held is not None:
            yield held
        held = found if isinstance(found, Member) else None
        if isinstance(found, Gap):
            yield found
        if found is None:
            return
        at = found.end
        if at >= size and isinstance(found, Gap):
            return


def _at(tar: tarfile.TarFile, file: BinaryIO, at: int, size: int) -> Member | Gap | None:
    """What stands at a byte; None: the end mark and nothing else."""
    if at >= size:
        return Gap(size, size, "ends without tar's end mark: cut" if size else "is empty")
    file.seek(at)
    if file.read(BLOCK).strip(b"\0") == b"":
        return _zeros(file, at, size)
    file.seek(at)
    try:
        info = Header.fromtarfile(tar)
    except (tarfile.TarError, ValueError, LookupError, OverflowError):
        return _bad_header(file, at, size)
    if info.size < 0 or tar.offset <= at:
        return _bad_header(file, at, size)
    if info.isreg() and not info.issparse() and info.offset_data + info.size > size:
        missing = info.offset_data + info.size - size
        return Gap(at, size, f"is cut: {missing:,} of its {info.size:,} bytes are missing", info.name)
    refused = "is sparse; write this tar again without --sparse" if info.issparse() else ""
    link = info.islnk() or info.issym()
    return Member(info.name, at, info.offset_data, info.size, tar.offset, info.isreg(), refused, link)


def _zeros(file: BinaryIO, at: int, size: int) -> Gap | None:
    file.seek(at)
    place = at
    while chunk := file.read(CHUNK):
        rest = chunk.lstrip(b"\0")
        if rest:
            place += len(chunk) - len(rest)
            following = next_header(file, at + (place - at) // BLOCK * BLOCK, size)
            return Gap(at, size if following is None else following, "zeros, and more data behind them")
        place += len(chunk)
    return Gap(at, size, "tar's end mark is cut", holds=False) if size - at < len(END_MARK) else None


def _bad_header(file: BinaryIO, at: int, size: int) -> Gap:
    file.seek(at)
    head = file.read(BLOCK)
    following = next_header(file, at + 1, size)
    if following is None and at == 0:
        why = compression(head) and f"is compressed: {compression(head)}"
        if head.lstrip()[:1] == b"<":
            why = "an HTML page"
        return Gap(0, size, f"no tar{why and f': {why}'}")
    why = "the file is cut in a tar header" if size - at < BLOCK else "no readable tar header"
    return Gap(at, size if following is None else following, why)


def next_header(file: BinaryIO, start: int, end: int) -> int | None:
    """The first byte of the next whole tar header between two bytes of a file; None: there is none."""
    at = start
    while at + BLOCK <= end:
        file.seek(at)
        chunk = file.read(min(CHUNK, end - at))
        for hit in re.finditer(MAGIC, chunk[MAGIC_AT:]):
            if _is_header(chunk[hit.start() : hit.start() + BLOCK]):
                return at + hit.start()
        if len(chunk) < CHUNK:
            return None
        at += CHUNK - BLOCK + 1
    return None


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def _unused(part: Member) -> list[str]:
    """What a member that is of no sample is counted as."""
    if part.link:
        return [LINKS]
    return [ending_of(part.name)] if part.plain and not SKIPPED.match(part.name) else []


def group(parts: Iterable[Member | Gap], passed: Counter[str]) -> Iterator[Sample | Gap | Refused]:
    """The samples of a tar by webdataset's rules, also those without an image, between what is damaged.

    Members that belong to none are counted in `passed`.
    """
    sample: Sample | None = None
    after_gap = False
    for part in parts:
        if isinstance(part, Gap):
            after_gap = True
            if sample is not None:
                sample.beside_gap = True
            yield part
            continue
        match = KEY_AND_SUFFIX.match(part.name)
        if match is None or not part.plain or SKIPPED.match(part.name):
            passed.update(_unused(part))
            continue
        if sample is None or sample.key != match[1]:
            if sample is not None:
                yield sample
            sample = Sample(match[1])
        sample.beside_gap |= after_gap
        after_gap = False
        suffix = match[2].lower()
        if suffix in sample.members:
            yield Refused(part.name, part.start, "a second member of this name in one sample")
        elif suffix in WEBDATASETS_OWN:
            yield Refused(part.name, part.start, f"webdataset has {suffix!r} for its own use")
        else:
            sample.members[suffix] = part
    if sample is not None:
        yield sample
