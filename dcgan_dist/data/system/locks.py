"""Locks between processes: a lock ends with its process, however that ends.

`lock` and `locked` are for threads and processes (flock; shared or exclusive). `lock_for_process` belongs to the
process alone, and reaches other hosts on more file systems (POSIX).
"""

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

RETRY_EVERY = 0.05  # seconds


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Only one thread of all processes at a time is inside; a process that dies lets the next one in.

    Yields true; or false at once, without the lock, where another has it and this one is not to wait.
    """
    try:
        descriptor = lock(path, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(descriptor)


def lock(path: Path, how: int, flags: int | None = None) -> int:
    """A descriptor of the file at a path, locked as `fcntl.flock` does it until it is closed.

    `flags`: how it is opened; absent: as of `open_shared`.

    Whoever holds a lock may remove its file, and others may have opened that file by then: a lock of a file that is no
    longer at its path keeps nobody out, so the file that is there now is locked instead. Raises OSError.
    """
    while True:
        descriptor = open_shared(path) if flags is None else os.open(path, flags)
        try:
            fcntl.flock(descriptor, how)
            if is_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def open_shared(path: Path) -> int:
    """A descriptor of a file for locks, made if it is not there. Raises OSError.

    All users who may write in its folder may lock it, whatever the umask of the one who made it. In folders like /tmp
    Linux refuses to open the file of another user as if to make it, so an existing one is tried first.
    """
    while True:
        with suppress(FileNotFoundError):
            try:
                return os.open(path, os.O_RDWR)
            except PermissionError:  # made by an older version; on a local disk a lock needs no more than this
                return os.open(path, os.O_RDONLY)
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            with suppress(OSError):  # a file system without permissions
                os.fchmod(descriptor, stat.S_IMODE(path.parent.stat().st_mode) & 0o666 | 0o600)
            return descriptor


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one at this path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def lock_for_process(descriptor: int, seconds: float = 0.0, *, shared: bool = False) -> bool | None:
    """Locks an open file for this process, but for none that it forks; tries for so many `seconds`.

    Whether the lock was free; None where the file system has no locks.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.lockf(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            if time.monotonic() > end:
                return False
        except OSError:
            return None
        else:
            return True
        time.sleep(RETRY_EVERY)
