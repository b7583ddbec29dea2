"""The room of a cache folder, shared by all processes that use it: what is there, what is coming, what may go.

    NAME            an entry, whole; whoever reads it holds a shared lock on it, so that a dead process holds nothing
    .NAME.lock      there while NAME is being made, locked by its maker; holds the number of bytes set aside for it
    .NAME.tmp       where the file system has no nameless files: what is written of NAME so far
    .lock           held while room is set aside or given back, so never for long

Room is set aside before anything is written, so that the bound holds at every moment.
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

from dcgan_dist.data.storage import NewFile, is_at, lock, locked, open_shared

ENTRY = re.compile(r"[0-9a-f]{32}-[A-Za-z0-9._-]*")  # see fill.wanted_of; other files are somebody else's
LOCK = re.compile(rf"\.{ENTRY.pattern}\.lock")
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


class Room:
    """At most `limit` bytes in a folder, which several users may share."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self._given, self._shrunk, self._until = folder, limit, limit, 0.0

    @property
    def limit(self) -> int:
        """Bytes that entries may take now."""
        return self._given if time.monotonic() >= self._until else self._shrunk

    def wait(self, name: str) -> None:
        """Until nobody is making this entry."""
        with suppress(FileNotFoundError), (self.folder / f".{name}.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)

    def claim(self, name: str, size: int, next_use: NextUse) -> "Claim | None":
        """Sets room aside for an entry that this thread is going to make.

        None: there is no room, for what is there is being read or is needed sooner. Raises FileExistsError when the
        entry is there by now, and BlockingIOError when another thread or process is making it.
        """
        with locked(self.folder / ".lock"):
            if (self.folder / name).exists():
                raise FileExistsError(name)
            path = self.folder / f".{name}.lock"
            descriptor = open_shared(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise
            claim = Claim(self, name, descriptor, next_use)
            if not claim.grow_locked(size):
                claim.drop_locked()
                return None
            return claim

    def make(self, need: int, name: str, next_use: NextUse) -> bool:
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
        with locked(self.folder / ".lock"):
            return is_at(path, descriptor) and _unlink(path)

    def shrink(self) -> None:
        """After the disk was full sooner than thought: what is there now is all that there will be, for a while."""
        with locked(self.folder / ".lock"):
            self._shrunk = min(self.limit, sum(entry.size for entry in self._look(lambda _: None)[0]))
            self._until = time.monotonic() + FULL_FOR

    def _unpinned(self, name: str) -> int | None:
        """A descriptor with the only lock on an entry; None when somebody reads it, or may alone remove it."""
        try:
            descriptor = os.open(self.folder / name, os.O_RDWR)  # NFS locks what is open for writing only
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        if not self._may_remove(descriptor):
            os.close(descriptor)
            return None
        return descriptor

    def _may_remove(self, descriptor: int) -> bool:
        """In a folder like /tmp, only the owner of a file, and that of the folder, may remove it."""
        about, me = self.folder.stat(), os.geteuid()
        return not about.st_mode & stat.S_ISVTX or me in (0, about.st_uid, os.fstat(descriptor).st_uid)

    def _look(self, next_use: NextUse) -> tuple[list[_Entry], int]:
        """All entries, and the bytes that are set aside; removes what killed makers have left. Under the lock."""
        entries, coming = [], 0
        for found in list(os.scandir(self.folder)):
            with suppress(FileNotFoundError):
                if ENTRY.fullmatch(found.name):
                    about = found.stat()
                    entries.append(_Entry(found.name, about.st_size, about.st_mtime, next_use(found.name)))
                elif LOCK.fullmatch(found.name):
                    coming += self._set_aside(Path(found.path))
        return entries, coming

    def _set_aside(self, path: Path) -> int:
        with os.fdopen(open_shared(path), "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0)
            _unlink(path.with_suffix(".tmp"))
            _unlink(path)
            return 0


class Claim:
    """Room set aside for one entry, and the right to make it."""

    def __init__(self, room: Room, name: str, descriptor: int, next_use: NextUse) -> None:
        self._room, self._descriptor, self._next_use = room, descriptor, next_use
        self.name, self.size = name, 0
        self._lock = room.folder / f".{name}.lock"

    @property
    def temporary(self) -> Path:
        """A name for what is written so far, if it needs one."""
        return self._lock.with_suffix(".tmp")

    def grow(self, size: int) -> bool:
        """Sets aside `size` bytes in all; False when there is no room for them."""
        with locked(self._room.folder / ".lock"):
            return self.grow_locked(size)

    def grow_locked(self, size: int) -> bool:
        """The same, under the lock."""
        if not self._room.make(size - self.size, self.name, self._next_use):
            return False
        os.pwrite(self._descriptor, b"%020d" % size, 0)
        self.size = size
        return True

    def drop(self, made: NewFile | None = None) -> None:
        """Gives the room back; in one go with that, gives what was made its name."""
        with locked(self._room.folder / ".lock"):
            try:
                if made is not None:
                    made.publish(self._room.folder / self.name)
            finally:
                self.drop_locked()

    def drop_locked(self) -> None:
        """The same, under the lock; a second time it does nothing."""
        if self._descriptor >= 0:
            _unlink(self.temporary)  # of a killed maker
            _unlink(self._lock)
            os.close(self._descriptor)
            self._descriptor = -1
