"""A bounded folder of complete shards on a node's own disk, shared by all its processes.

It holds plain tars: remote ones, and unpacked ones of .tar.gz and the like, remote or local. A file that changed is
another entry. See `quota` for how the processes agree.
"""

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from dcgan_dist.data.remote.client import Remote
from dcgan_dist.data.remote.fill import PIECE, Source, Wanted, fill, wanted_of
from dcgan_dist.data.remote.quota import ENTRY, NextUse, Quota, Reservation, open_pinned
from dcgan_dist.data.system.storage import cache_folder
from dcgan_dist.errors import UserError

GROWTH = 16 * 2**20  # bytes that unpacking reserves at once
Identity = tuple[int, int]
"""st_dev and st_ino of an open file."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def shard_folder() -> Path:
    """The default folder of the cache."""
    return cache_folder() / "shards"


def default_limit(folder: Path) -> int:
    """Bytes for a cache there: 80 % of what its disk has free, with what the cache holds already."""
    held = 0
    for path in folder.iterdir() if folder.is_dir() else ():
        if not ENTRY.fullmatch(path.name):
            continue
        with suppress(FileNotFoundError):  # other jobs' files come and go
            held += path.stat().st_size
    disk = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return (shutil.disk_usage(disk).free + held) * 8 // 10


def entry_name(source: Source) -> str:
    """The name of a source's entry, which is what `next_use` is asked about."""
    return wanted_of(source).name


class CachedShard(FileIO):
    """An entry that stays in the cache until this is closed, or its process ends. Reading needs no lock."""

    def __init__(self, path: Path, descriptor: int) -> None:
        super().__init__(descriptor)
        self.path = path

    @property
    def descriptor(self) -> int:
        """Of the open file."""
        return self.fileno()

    @property
    def identity(self) -> Identity:
        """Of the file, while anything has it open."""
        about = os.fstat(self.descriptor)
        return about.st_dev, about.st_ino

    def __del__(self) -> None:
        self.close()


class BeingMadeError(Exception):
    """Another thread or process is making this entry."""


class _AbandonedError(Exception):
    """Stopped, or what is unpacked turned out longer than the quota allows."""


@dataclass(frozen=True, kw_only=True)
class EntryRequest:
    """How an entry is to be made."""

    next_use: NextUse = lambda _: None
    """When entries are read next, the new one included: what is needed sooner is not removed for it."""
    check: Callable[[Path], object] | None = None
    """Given the path of the new file, raises UserError when it is damaged. Then it is not kept."""
    stop: threading.Event | None = None
    """Once set, the work is abandoned."""


ANY = EntryRequest()


class ShardCache:
    """At most `limit` bytes of shards in `folder`. Threads and processes may use one folder at the same time."""

    def __init__(self, folder: Path, limit: int, remote: Remote) -> None:
        """Raises UserError when the folder cannot be made."""
        self.folder, self._remote = folder, remote
        with self._readable_errors():
            folder.mkdir(parents=True, exist_ok=True)
        self._quota = Quota(folder, limit)

    def names(self) -> set[str]:
        """Of all entries that are there now."""
        with self._readable_errors(), os.scandir(self.folder) as found:
            return {entry.name for entry in found if ENTRY.fullmatch(entry.name)}

    def get(self, source: Source) -> CachedShard | None:
        """The entry of a source if it is there now."""
        return self._open(wanted_of(source))

    def acquire(self, source: Source, request: EntryRequest = ANY) -> CachedShard | None:
        """The entry of a source, made if it is not there: once, however many ask for it; the others wait.

        Returns None when the quota is used up, or the work was abandoned. Raises UserError for what cannot be read, is
        damaged, or unpacks to more than the cache may hold.
        """
        shard = self.get(source)
        while shard is None:
            try:
                return self.try_acquire(source, request)
            except BeingMadeError:
                wanted = wanted_of(source)
                self._quota.wait(wanted.name)
                shard = self._open(wanted)
        return shard

    def try_acquire(self, source: Source, request: EntryRequest = ANY) -> CachedShard | None:
        """The same without waiting: raises BeingMadeError when another thread or process is making the entry."""
        wanted = wanted_of(source)
        if wanted.packed and wanted.size > self._quota.limit:
            raise self._too_large(wanted)
        with self._readable_errors():
            while (shard := self._open(wanted)) is None:
                try:
                    reservation = self._quota.reserve(wanted.name, wanted.size, request.next_use)
                    return None if reservation is None else self._make(source, wanted, reservation, request)
                except FileExistsError:
                    continue
                except BlockingIOError:
                    raise BeingMadeError(wanted.name) from None
                except OSError as error:
                    if error.errno not in FULL or wanted.packed:
                        raise
                    self._quota.shrink()
                    return None
            return shard

    def discard(self, shard: CachedShard, only: Identity | None = None) -> bool:
        """Closes an entry, and removes it, so that it is downloaded again. Others that read it may go on.

        Args:
            shard: was found to be damaged. What has replaced it meanwhile stays.
            only: the file that was found to be damaged, which the caller has still open, when that may be another than
                the one that `shard` has open. Then nothing is removed.

        Returns whether the entry was removed.
        """
        with self._readable_errors(), shard:
            return only in (None, shard.identity) and self._quota.remove(shard.path.name, shard.descriptor)

    def _open(self, wanted: Wanted) -> CachedShard | None:
        path = self.folder / wanted.name
        with self._readable_errors():
            descriptor = open_pinned(path)
        if descriptor is None:
            return None
        with suppress(OSError):  # another user's file
            os.utime(descriptor)  # what was used last goes last, among those whose next use is not known
        return CachedShard(path, descriptor)

    def _make(
        self, source: Source, wanted: Wanted, reservation: Reservation, request: EntryRequest
    ) -> CachedShard | None:
        try:
            with open(reservation.descriptor, "wb", PIECE, closefd=False) as file:
                fill(source, wanted, self._remote, _Bounded(file, partial(self._allow, wanted, reservation, request)))
                file.truncate()
            if request.check is not None:
                _checked(request.check, reservation.path, wanted.shown)
            reservation.publish()
            return self._open(wanted)
        except _AbandonedError:
            return None
        finally:
            reservation.close()

    def _allow(self, wanted: Wanted, reservation: Reservation, request: EntryRequest, size: int) -> None:
        """Asked before an entry grows to `size` bytes."""
        if wanted.packed and size > self._quota.limit:
            raise self._too_large(wanted)
        enough = size <= reservation.size or reservation.grow(size + GROWTH) or reservation.grow(size)
        if not enough or (request.stop is not None and request.stop.is_set()):
            raise _AbandonedError

    def _too_large(self, wanted: Wanted) -> UserError:
        problem = f"unpacks to more than the {self._quota.limit} bytes that the cache may hold"
        return UserError(f"{wanted.shown}: {problem}; let it hold more, or unpack the shards")

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            advice = "free some space there" if error.errno in FULL else "check that this program may write there"
            problem = f"the cache cannot be used ({error.strerror})"
            raise UserError(f"{self.folder}: {problem}; {advice}, or name another folder") from error


class _Bounded:
    """A file that asks before it grows."""

    def __init__(self, file: BinaryIO, allow: Callable[[int], None]) -> None:
        self._file, self._allow = file, allow

    def write(self, data: bytes, /) -> None:
        self._allow(self._file.tell() + len(data))
        self._file.write(data)


def _checked(check: Callable[[Path], object], path: Path, shown: str) -> None:
    try:
        check(path)
    except UserError as error:
        raise type(error)(str(error).replace(str(path), shown)) from error
