"""The quota of a cache folder, shared by all processes that use it: what is there, what is coming, what may go.

    NAME        a complete entry; each reader holds a shared lock on it, so that a dead process holds nothing
    .NAME.tmp   NAME while it is being made, locked by its maker; its length, a hole at first, is what is reserved
    .lock       held while bytes are reserved or given back, so never for long

Bytes are reserved before anything is written, so that the bound holds at every moment. Whoever reserves some removes
what killed processes have left.
"""

import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dcgan_dist.data.system.locks import is_at, lock, locked, open_shared

ENTRY = re.compile(r"[0-9a-f]{32}-[A-Za-z0-9._-]*")  # see fill.wanted_of; other files are somebody else's
UNFINISHED = re.compile(rf"\.{ENTRY.pattern}\.(tmp|lock)")  # earlier versions made .lock files
FULL_FOR = 600.0  # seconds after which a disk that was full is tried again
NextUse = Callable[[str], float | None]
"""When an entry, by name, is read next, in any unit that all entries share; None: not known, so it goes first."""


@dataclass(frozen=True)
class _Entry:
    name: str
    size: int
    changed: float
    use: float | None

    @property
    def turn(self) -> tuple[bool, float, float]:
        """Sorts by who goes first: of unknown use the oldest, then the farthest use."""
        return self.use is not None, -(self.use or 0), self.changed


def open_pinned(path: Path) -> int | None:
    """A descriptor that keeps an entry from being removed until it is closed; None when there is no entry."""
    with suppress(FileNotFoundError):
        return lock(path, fcntl.LOCK_SH, os.O_RDONLY)  # waits for one who looks whether it may go, which takes no time
    return None


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
        """Until nobody is making this entry."""
        with suppress(FileNotFoundError), self.temporary(name).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)

    def reserve(self, name: str, size: int, next_use: NextUse) -> "Reservation | None":
        """Reserves bytes for an entry that this thread is going to make.

        None: there are not enough, for what is there is being read or is needed sooner. Raises FileExistsError when the
        entry is there by now, and BlockingIOError when another thread or process is making it.
        """
        with locked(self.lock):
            if (self.folder / name).exists():
                raise FileExistsError(name)
            made = Reservation(self, name, lock(self.temporary(name), fcntl.LOCK_EX | fcntl.LOCK_NB), next_use)
            enough = False
            try:
                os.ftruncate(made.descriptor, 0)  # it may be a dead process's
                enough = self._may_remove(made.descriptor) and made.grow_locked(size)
            finally:
                if not enough:
                    made.close_locked()
            return made if enough else None

    def make_space(self, need: int, name: str, next_use: NextUse) -> bool:
        """Removes entries until `need` more bytes fit for the entry `name`, or none if they cannot. Under the lock."""
        entries, coming = self._look(next_use)
        free = min(self.limit - sum(entry.size for entry in entries), shutil.disk_usage(self.folder).free) - coming
        own = next_use(name)
        going: list[tuple[_Entry, int]] = []
        try:
            for entry in sorted(entries, key=lambda entry: entry.turn):
                if free >= need or (entry.use is not None and (own is None or entry.use <= own)):
                    break
                descriptor = self._unpinned(entry.name)
                if descriptor is not None:
                    going.append((entry, descriptor))
                    free += entry.size
            if free < need:
                return False
            for entry, _ in going:
                (self.folder / entry.name).unlink(missing_ok=True)
            return True
        finally:
            for _, descriptor in going:
                os.close(descriptor)

    def remove(self, name: str, descriptor: int) -> bool:
        """Removes an entry if it is still the file that is open there."""
        path = self.folder / name
        with locked(self.lock):
            return is_at(path, descriptor) and _unlink(path)

    def shrink(self) -> None:
        """After the disk was full sooner than thought: what is there now is the limit, for a while."""
        with locked(self.lock):
            self._shrunk = min(self.limit, sum(entry.size for entry in self._look(lambda _: None)[0]))
            self._until = time.monotonic() + FULL_FOR

    def _unpinned(self, name: str) -> int | None:
        """A descriptor with the only lock on an entry; None when somebody reads it, or may alone remove it."""
        descriptor = -1
        try:
            descriptor = os.open(self.folder / name, os.O_RDWR)  # NFS locks what is open for writing only
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._may_remove(descriptor):
                return descriptor
        except OSError:
            pass
        if descriptor >= 0:
            os.close(descriptor)
        return None

    def _may_remove(self, descriptor: int) -> bool:
        """In a folder like /tmp, only the owner of a file, and that of the folder, may remove it."""
        about, me = self.folder.stat(), os.geteuid()
        return not about.st_mode & stat.S_ISVTX or me in (0, about.st_uid, os.fstat(descriptor).st_uid)

    def _look(self, next_use: NextUse) -> tuple[list[_Entry], int]:
        """All entries, and the bytes that are reserved; removes what killed makers have left. Under the lock."""
        entries, coming = [], 0
        for found in list(os.scandir(self.folder)):
            with suppress(FileNotFoundError):
                if ENTRY.fullmatch(found.name):
                    about = found.stat()
                    entries.append(_Entry(found.name, about.st_size, about.st_mtime, next_use(found.name)))
                elif UNFINISHED.fullmatch(found.name):
                    coming += _reserved(Path(found.path))
        return entries, coming


def _reserved(path: Path) -> int:
    """The bytes of what is being made; what nobody makes any more is removed."""
    with os.fdopen(open_shared(path), "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.fstat(file.fileno()).st_size
        _unlink(path)
        return 0


class Reservation:
    """Bytes that are reserved for one entry, and the file in which it is made."""

    def __init__(self, quota: Quota, name: str, descriptor: int, next_use: NextUse) -> None:
        self._quota, self._name, self.descriptor, self._next_use = quota, name, descriptor, next_use
        self.path, self.size = quota.temporary(name), 0

    def grow(self, size: int) -> bool:
        """Reserves `size` bytes in all; False when there are not enough."""
        with locked(self._quota.lock):
            return self.grow_locked(size)

    def grow_locked(self, size: int) -> bool:
        """The same, under the lock."""
        if not self._quota.make_space(size - self.size, self._name, self._next_use):
            return False
        os.ftruncate(self.descriptor, size)
        self.size = size
        return True

    def publish(self) -> None:
        """Gives the file its name, with its content on disk. It is pinned until this is closed."""
        os.fsync(self.descriptor)  # here, and not while everybody waits for the lock
        with locked(self._quota.lock):
            self.path.rename(self._quota.folder / self._name)
            fcntl.flock(self.descriptor, fcntl.LOCK_SH)

    def close(self) -> None:
        """Gives back what was not used."""
        with locked(self._quota.lock):
            self.close_locked()

    def close_locked(self) -> None:
        """The same, under the lock."""
        if is_at(self.path, self.descriptor):
            _unlink(self.path)
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)  # also of the copy that a process forked meanwhile has
        os.close(self.descriptor)
