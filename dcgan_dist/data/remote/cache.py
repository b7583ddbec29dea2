"""A bounded folder of complete shards on a node's own disk, shared by all its processes.

It holds plain tars: remote ones, and unpacked ones of .tar.gz and the like, remote or local. A file that changed is
another entry. See `quota` for how the processes agree.
"""

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from dcgan_dist.data.remote.client import Remote
from dcgan_dist.data.remote.quota import NextUse, Quota, Reservation, entries
from dcgan_dist.data.remote.source import PIECE, FileSource, Wanted, contents, wanted_of
from dcgan_dist.data.system.locks import lock
from dcgan_dist.errors import UserError

GROWTH = 16 * 2**20  # bytes that unpacking reserves at once
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def default_limit(folder: Path) -> int:
    """Bytes for a cache there: 80 % of what its disk has free, with what the cache holds already."""
    held = sum(about.st_size for _, about in entries(folder)) if folder.is_dir() else 0
    disk = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return (shutil.disk_usage(disk).free + held) * 8 // 10


def entry_name(source: FileSource) -> str:
    """The name of a source's entry, which is what `next_use` is asked about."""
    return wanted_of(source).name


class CachedShard(FileIO):
    """An entry that stays in the cache until this is closed, or its process ends. Reading needs no lock."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError when there is no such entry."""
        # waits for one that looks whether the entry may go: for no time
        super().__init__(path, opener=lambda _, flags: lock(path, fcntl.LOCK_SH, flags))
        self.path = path

    def __del__(self) -> None:
        self.close()


class BeingMadeError(Exception):
    """Another thread or process is making this entry."""


@dataclass(frozen=True, kw_only=True)
class EntryRequest:
    """How an entry is to be made."""

    next_use: NextUse = lambda _: None
    """When entries are read next, the new one included: what is needed sooner is not removed for it."""
    check: Callable[[Path], object] = lambda _: None
    """Given the path of the new file, raises UserError when it is damaged. Then it is not kept."""
    stop: threading.Event | None = None  # once set, the work is abandoned
    wait: bool = True  # for another thread or process that is making the entry; else BeingMadeError is raised


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
        with self._readable_errors():
            return {name for name, _ in entries(self.folder)}

    def get(self, source: FileSource) -> CachedShard | None:
        """The entry of a source if it is there now."""
        with self._readable_errors():
            return self._open(wanted_of(source))

    def acquire(self, source: FileSource, request: EntryRequest = ANY) -> CachedShard | None:
        """The entry of a source, made if it is not there: once, however many ask for it; the others wait.

        Returns None when the quota is used up, or the work was abandoned. Raises UserError for what cannot be read, is
        damaged, or unpacks to more than the cache may hold.
        """
        wanted = wanted_of(source)
        with self._readable_errors():
            while (shard := self._open(wanted)) is None:
                self._check_size(wanted, wanted.size)
                try:
                    made = self._quota.reserve(wanted.name, wanted.size, request.next_use)
                    return None if made is None else self._make(source, wanted, made, request)
                except FileExistsError:
                    continue
                except BlockingIOError:
                    if not request.wait:
                        raise BeingMadeError(wanted.name) from None
                    self._quota.wait(wanted.name)
                except OSError as error:
                    if error.errno not in FULL or wanted.packed:
                        raise
                    self._quota.shrink()
                    return None
            return shard

    def discard(self, source: FileSource, damaged: os.stat_result) -> bool:
        """Removes the entry of a source, so that it is downloaded again, and others that read it may go on.

        `damaged`: of the file, which the caller has still open; what has replaced it meanwhile stays. Returns whether
        the entry was removed.
        """
        with self._readable_errors():
            return self._quota.remove(wanted_of(source).name, damaged)

    def _open(self, wanted: Wanted) -> CachedShard | None:
        try:
            shard = CachedShard(self.folder / wanted.name)
        except FileNotFoundError:
            return None
        with suppress(OSError):  # another user's file
            os.utime(shard.fileno())  # what was used last goes last, among those whose next use is not known
        return shard

    def _make(self, source: FileSource, wanted: Wanted, made: Reservation, request: EntryRequest) -> CachedShard | None:
        with closing(made):
            with open(made.descriptor, "wb", PIECE, closefd=False) as file:
                for piece in contents(source, wanted, self._remote):
                    size = file.tell() + len(piece)
                    self._check_size(wanted, size)
                    enough = size <= made.size or made.grow(size + GROWTH) or made.grow(size)
                    if not enough or (request.stop is not None and request.stop.is_set()):
                        return None
                    file.write(piece)
                file.truncate()
            try:
                request.check(made.path)
            except UserError as error:
                raise type(error)(str(error).replace(str(made.path), wanted.shown)) from error
            made.publish()
            return self._open(wanted)

    def _check_size(self, wanted: Wanted, size: int) -> None:
        if wanted.packed and size > self._quota.limit:
            problem = f"unpacks to more than the {self._quota.limit} bytes that the cache may hold"
            raise UserError(f"{wanted.shown}: {problem}; let it hold more, or unpack the shards")

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            advice = "free some space there" if error.errno in FULL else "check that this program may write there"
            problem = f"the cache cannot be used ({error.strerror})"
            raise UserError(f"{self.folder}: {problem}; {advice}, or name another folder") from error
