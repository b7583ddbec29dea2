"""A bounded folder of whole shards on a node's own disk, shared by all its processes.

What is in it are plain tars: remote ones, and unpacked ones of .tar.gz and the like, remote or local. A file that
changed is another entry. See `room` for how the processes agree.
"""

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from dcgan_dist.data.remote.client import Remote
from dcgan_dist.data.remote.fill import PIECE, Source, Wanted, fill, wanted_of
from dcgan_dist.data.remote.room import ENTRY, Claim, NextUse, Room, open_pinned
from dcgan_dist.data.storage import NewFile, cache_folder
from dcgan_dist.errors import UserError

GROWTH = 16 * 2**20  # bytes of room that unpacking asks for at once
Identity = tuple[int, int]
"""st_dev and st_ino of an open file."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def shard_folder() -> Path:
    """Where shards are kept unless the user names another folder."""
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


class CachedShard:
    """An entry that stays in the cache until this is closed, or its process ends. Reading needs no lock."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    @property
    def identity(self) -> Identity:
        """Of the file, while anything has it open."""
        about = os.fstat(self.descriptor)
        return about.st_dev, about.st_ino

    def close(self) -> None:
        """Lets the entry go."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> "CachedShard":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class BeingMadeError(Exception):
    """Another thread or process is making this entry."""


class _GivenUpError(Exception):
    """Stopped, or what is unpacked turned out longer than there is room for."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How an entry is to be made."""

    next_use: NextUse = lambda _: None
    """Says of entries when they are read next, also of the new one: what is needed sooner is not removed for it."""
    check: Callable[[Path], object] | None = None
    """Raises UserError when the new file, at the path that it is given, is not good. It is not kept then."""
    stop: threading.Event | None = None
    """Once set, what is being made is given up."""


ANY = Wish()


class ShardCache:
    """At most `limit` bytes of shards in `folder`. Threads and processes may use one folder at the same time."""

    def __init__(self, folder: Path, limit: int, remote: Remote) -> None:
        """Raises UserError when the folder cannot be made."""
        self.folder, self._remote = folder, remote
        with self._readable_errors():
            folder.mkdir(parents=True, exist_ok=True)
        self._room = Room(folder, limit)

    def names(self) -> set[str]:
        """Of all entries that are there now."""
        with self._readable_errors(), os.scandir(self.folder) as found:
            return {entry.name for entry in found if ENTRY.fullmatch(entry.name)}

    def get(self, source: Source) -> CachedShard | None:
        """The entry of a source if it is there now."""
        return self._open(wanted_of(source))

    def acquire(self, source: Source, wish: Wish = ANY) -> CachedShard | None:
        """The entry of a source, made if it is not there: once, however many ask for it; the others wait.

        Returns None when there is no room, or it was given up. Raises UserError for what cannot be read, is damaged,
        or unpacks to more than the cache may hold.
        """
        shard = self.get(source)
        while shard is None:
            try:
                return self.bring(source, wish)
            except BeingMadeError:
                wanted = wanted_of(source)
                self._room.wait(wanted.name)
                shard = self._open(wanted)
        return shard

    def bring(self, source: Source, wish: Wish = ANY) -> CachedShard | None:
        """The same for who looks ahead: raises BeingMadeError instead of waiting for others."""
        wanted = wanted_of(source)
        if wanted.packed and wanted.size > self._room.limit:
            raise self._too_large(wanted)
        with self._readable_errors():
            while (shard := self._open(wanted)) is None:
                try:
                    claim = self._room.claim(wanted.name, wanted.size, wish.next_use)
                except FileExistsError:
                    continue
                except BlockingIOError:
                    raise BeingMadeError(wanted.name) from None
                return None if claim is None else self._make(source, wanted, claim, wish)
            return shard

    def discard(self, shard: CachedShard, only: Identity | None = None) -> bool:
        """Closes an entry, and removes it, so that it is brought anew. Who else reads it may go on.

        Args:
            shard: was found to be damaged. What was brought in its place meanwhile stays.
            only: the file that was found to be damaged, which the caller has still open, when that may be another than
                the one that `shard` has open. Then nothing is removed.

        Returns whether the entry was removed.
        """
        with self._readable_errors(), shard:
            return only in (None, shard.identity) and self._room.remove(shard.path.name, shard.descriptor)

    def _open(self, wanted: Wanted) -> CachedShard | None:
        path = self.folder / wanted.name
        with self._readable_errors():
            descriptor = open_pinned(path)
        if descriptor is None:
            return None
        with suppress(OSError):  # another user's file
            os.utime(descriptor)  # what was used last goes last, among those whose next use is not known
        return CachedShard(path, descriptor)

    def _make(self, source: Source, wanted: Wanted, claim: Claim, wish: Wish) -> CachedShard | None:
        file: NewFile | None = None
        try:
            file = NewFile(claim.temporary)
            with open(file.descriptor, "wb", PIECE, closefd=False) as plain:
                fill(source, wanted, self._remote, _Bounded(plain, lambda size: self._allow(size, wanted, claim, wish)))
            if wish.check is not None:
                _checked(wish.check, file.path, wanted.shown)
            os.fsync(file.descriptor)  # here, and not while everybody waits for the room's lock
            fcntl.flock(file.descriptor, fcntl.LOCK_SH)  # pinned as soon as it has a name
            claim.drop(file)
            return self._open(wanted)
        except _GivenUpError:
            return None
        except OSError as error:
            if error.errno not in FULL or wanted.packed:
                raise
            self._room.shrink()
            return None
        finally:
            if file is not None:
                file.discard()
            claim.drop()

    def _allow(self, size: int, wanted: Wanted, claim: Claim, wish: Wish) -> None:
        """Asked before an entry grows to `size` bytes."""
        if wanted.packed and size > self._room.limit:
            raise self._too_large(wanted)
        room = size <= claim.size or claim.grow(size + GROWTH) or claim.grow(size)
        if not room or (wish.stop is not None and wish.stop.is_set()):
            raise _GivenUpError

    def _too_large(self, wanted: Wanted) -> UserError:
        problem = f"unpacks to more than the {self._room.limit} bytes that the cache may hold"
        return UserError(f"{wanted.shown}: {problem}; let it hold more, or unpack the shards")

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            advice = "free some room there" if error.errno in FULL else "check that this program may write there"
            problem = f"the cache cannot be used ({error.strerror})"
            raise UserError(f"{self.folder}: {problem}; {advice}, or name another folder") from error


class _Bounded:
    """A file that asks before it grows."""

    def __init__(self, file: BinaryIO, allow: Callable[[int], None]) -> None:
        self._file, self._allow = file, allow
        self.seek, self.truncate = file.seek, file.truncate

    def write(self, data: bytes | bytearray, /) -> None:
        self._allow(self._file.tell() + len(data))
        self._file.write(data)


def _checked(check: Callable[[Path], object], path: Path, shown: str) -> None:
    try:
        check(path)
    except UserError as error:
        raise type(error)(str(error).replace(str(path), shown)) from error
