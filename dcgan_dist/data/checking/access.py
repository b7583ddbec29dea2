"""All bytes of one shard, local or remote, compressed or not."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EISDIR, ENOENT
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import xxhash

from dcgan_dist.data.remote.client import Remote, RemoteStat, base_name
from dcgan_dist.data.remote.source import contents, wanted_of
from dcgan_dist.data.remote.unpack import packing, packing_of
from dcgan_dist.data.shards.files import RangedFile
from dcgan_dist.data.shards.index import ReadAt
from dcgan_dist.data.shards.manifest import ShardEntry
from dcgan_dist.data.shards.samples import MemberChoice
from dcgan_dist.data.system.storage import open_regular
from dcgan_dist.errors import UserError
from dcgan_dist.location import Location

CHUNK = 4 * 2**20  # bytes read at a time
PART = 2**20  # bytes of one request; the requests of one read run concurrently


class UnreadableError(UserError):
    """The bytes of a shard cannot be read, so they cannot be checked."""


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """A shard to check."""

    name: str
    deep: bool = False  # decode every image
    entry: ShardEntry | None = None  # its entry in the manifest
    remote: Remote = field(default_factory=Remote)
    stat: RemoteStat | None = None  # of a remote shard
    choice: MemberChoice = field(default_factory=MemberChoice)  # how tars of other programs are read

    @property
    def shown(self) -> str:
        """The name in messages, without secrets."""
        return str(Location(self.name))


class HashingReader(io.RawIOBase):
    """A file that is read mostly in order; computes the checksum of the complete file on the way."""

    def __init__(self, read: ReadAt, size: int, tick: Callable[[int], None]) -> None:
        """`tick` is called with the number of bytes read for the first time."""
        self._read_at, self._size, self._tick = read, size, tick
        self._at = self._hashed = self.furthest = 0
        self._checksum = xxhash.xxh3_128()
        self.readable = self.seekable = lambda: True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See io.RawIOBase."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        wanted = max(0, min(len(buffer), self._size - self._at))
        data = self._read_at(self._at, wanted) if wanted else b""
        buffer[: len(data)] = data
        if self._at <= self._hashed < self._at + len(data):
            self._checksum.update(data[self._hashed - self._at :])
            self._hashed = self._at + len(data)
        self._at += len(data)
        if data and self._at > self.furthest:
            self._tick(self._at - self.furthest)
            self.furthest = self._at
        return len(data)

    def checksum(self) -> str:
        """xxh3-128 of the complete file, hexadecimal; reads the rest of the file."""
        self.seek(self._hashed)
        while self.readinto(bytearray(CHUNK)):
            pass
        return self._checksum.hexdigest()


@contextmanager
def opened(job: ShardJob) -> Iterator[tuple[ReadAt, int]]:
    """Access to the unpacked bytes of a shard, and their number. Opening and reading raise UnreadableError."""
    with _open_file(job) as file:

        def read(offset: int, length: int) -> bytes:
            try:
                if isinstance(file, RangedFile):
                    starts = range(offset, offset + length, PART)
                    parts = [file.part(start, min(PART, offset + length - start)) for start in starts]
                    return b"".join(job.remote.read_spans(parts))
                return os.pread(file.fileno(), length, offset)
            except (OSError, UserError) as error:
                raise _unreadable(job, error) from error

        yield read, file.size() if isinstance(file, RangedFile) else os.fstat(file.fileno()).st_size


@contextmanager
def _open_file(job: ShardJob) -> Iterator[BinaryIO | RangedFile]:
    kind = packing(base_name(job.name)) if job.stat else packing_of(job.name)
    if kind is None and job.stat is not None and job.stat.ranges:
        yield RangedFile(job.remote, job.stat)
        return
    try:
        with TemporaryFile() if kind or job.stat else open_regular(Path(job.name)) as file:
            if kind or job.stat:
                source = job.stat or Path(job.name)
                file.writelines(contents(source, wanted_of(source), job.remote))
                file.flush()
            yield file
    except OSError as error:
        raise _unreadable(job, error) from error


def _unreadable(job: ShardJob, error: OSError | UserError) -> UnreadableError:
    if isinstance(error, UserError):
        return UnreadableError(str(error))
    known = {ENOENT: "no such file", EISDIR: "is a folder; name the shards in it"}
    return UnreadableError(f"{job.shown}: {known.get(error.errno or 0) or f'cannot be read ({error.strerror})'}")
