"""The quota of a cache folder, shared by all processes that use it: what is there, what is coming, what may go.

    NAME        a complete entry; each reader holds a shared lock on it, so that a dead process holds nothing
    .NAME.tmp   NAME while it is being made, locked by its maker; its length, a hole at first, is what is reserved
    .lock       held while bytes are reserved and an entry gets its name, so never for long

Bytes are reserved before anything is written, so that the bound holds at every moment. A process that reserves some
removes what killed processes have left.
"""

import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from dcgan_dist.data.system.locks import is_at, lock, locked

ENTRY = re.compile(r"[0-9a-f]{32}-[A-Za-z0-9._-]*")  # see source.wanted_of; other files do not belong to the cache
UNFINISHED = re.compile(rf"\.{ENTRY.pattern}\.tmp")
ONLY = fcntl.LOCK_EX | fcntl.LOCK_NB
FULL_FOR = 600.0  # seconds after which a disk that was full is tried again
NextUse = Callable[[str], float | None]
"""When an entry, by name, is read next, in any unit that all entries share; None: not known, so it goes first."""


def entries(folder: Path, names: re.Pattern[str] = ENTRY) -> Iterator[tuple[str, os.stat_result]]:
    """Name and status of the entries of a folder; what is removed meanwhile is left out."""
    for found in list(os.scandir(folder)):
        if names.fullmatch(found.name):
            with suppress(FileNotFoundError):
                yield found.name, found.stat()


def _unlink(path: Path) -> bool:
    """Removes a file, unless it is another user's in a folder like /tmp; whether it is gone."""
    with suppress(PermissionError):
        path.unlink(missing_ok=True)
        return True
    return False


class Quota:
    """At most `limit` bytes in a folder, which several users may share."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self._given, self._shrunk, self._until = folder, limit, limit, 0.0
        self.lock = folder / ".lock"

    @property
    def limit(self) -> int:
        """Bytes that entries may take now."""
        return self._given if time.monotonic() >= self._until else self._shrunk

    def temporary(self, name: str) -> Path:
        """Where an entry is made."""
        return self.folder / f".{name}.tmp"

    def wait(self, name: str) -> None:
        """Until no thread or process is making this entry."""
        with suppress(FileNotFoundError):
            os.close(lock(self.temporary(name), fcntl.LOCK_SH, os.O_RDONLY))

    def reserve(self, name: str, size: int, next_use: NextUse) -> "Reservation | None":
        """Reserves bytes for an entry that this thread is going to make.

        None: there are not enough, for what is there is being read or is needed sooner. Raises FileExistsError when the
        entry is there by now, and BlockingIOError when another thread or process is making it.
        """
        made, enough = Reservation(self, name, next_use), False
        try:
            os.ftruncate(made.descriptor, 0)  # it may be a dead process's
            if (self.folder / name).exists():
                raise FileExistsError(name)
            enough = self._may_remove(made.descriptor) and made.grow(size)
        finally:
            if not enough:
                made.close()
        return made if enough else None

    def make_space(self, need: int, name: str, next_use: NextUse) -> bool:
        """Removes entries until `need` more bytes fit for the entry `name`, or none if they cannot. Under the lock."""
        coming, there = self._coming(), dict(entries(self.folder))
        free = min(self.limit - sum(about.st_size for about in there.values()), shutil.disk_usage(self.folder).free)
        free -= coming
        own, uses = next_use(name), {entry: next_use(entry) for entry in there}

        def turn(entry: str) -> tuple[bool, float, float]:
            """Sorts: of unknown use the oldest first, then what is used last."""
            return uses[entry] is not None, -(uses[entry] or 0), there[entry].st_mtime

        removable = [entry for entry, use in uses.items() if use is None or (own is not None and use > own)]
        going = []
        with ExitStack() as locks:
            for entry in sorted(removable, key=turn):
                if free >= need:
                    break
                with suppress(OSError):  # it is being read
                    descriptor = lock(self.folder / entry, ONLY, os.O_RDWR)  # NFS needs what is open for writing
                    locks.callback(os.close, descriptor)
                    if self._may_remove(descriptor):
                        going.append(self.folder / entry)
                        free += there[entry].st_size
            if free >= need:
                for path in going:
                    path.unlink(missing_ok=True)
            return free >= need

    def remove(self, name: str, about: os.stat_result) -> bool:
        """Removes an entry if it is still this file."""
        path = self.folder / name
        with locked(self.lock), suppress(FileNotFoundError):
            return os.path.samestat(path.stat(), about) and _unlink(path)
        return False

    def shrink(self) -> None:
        """After the disk was full sooner than thought: what is there now is the limit, for a while."""
        with locked(self.lock):
            self._shrunk = min(self.limit, sum(about.st_size for _, about in entries(self.folder)))
            self._until = time.monotonic() + FULL_FOR

    def _may_remove(self, descriptor: int) -> bool:
        """In a folder like /tmp, only the owner of a file, and that of the folder, may remove it."""
        about, me = self.folder.stat(), os.geteuid()
        return not about.st_mode & stat.S_ISVTX or me in (0, about.st_uid, os.fstat(descriptor).st_uid)

    def _coming(self) -> int:
        """The bytes that are reserved; removes what killed makers have left. Under the lock."""
        coming = 0
        for name, about in entries(self.folder, UNFINISHED):
            try:
                descriptor = lock(self.folder / name, ONLY)
            except BlockingIOError:
                coming += about.st_size
            else:
                _unlink(self.folder / name)
                os.close(descriptor)
        return coming


class Reservation:
    """Bytes that are reserved for one entry, and the file in which it is made."""

    size = 0

    def __init__(self, quota: Quota, name: str, next_use: NextUse) -> None:
        """Raises BlockingIOError when there is one for this entry."""
        self._quota, self._name, self._next_use = quota, name, next_use
        self.path = quota.temporary(name)
        self.descriptor = lock(self.path, ONLY)

    def grow(self, size: int) -> bool:
        """Reserves `size` bytes in all; False when there are not enough."""
        with locked(self._quota.lock):
            enough = self._quota.make_space(size - self.size, self._name, self._next_use)
            if enough:
                os.ftruncate(self.descriptor, size)
                self.size = size
            return enough

    def publish(self) -> None:
        """Gives the file its name, with its content on disk. It is pinned until this is closed."""
        os.fsync(self.descriptor)  # here, and not while others wait for the lock
        with locked(self._quota.lock):
            self.path.rename(self._quota.folder / self._name)
            fcntl.flock(self.descriptor, fcntl.LOCK_SH)

    def close(self) -> None:
        """Gives back what was not used."""
        if is_at(self.path, self.descriptor):
            _unlink(self.path)
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)  # also of the copy that a process forked meanwhile has
        os.close(self.descriptor)
