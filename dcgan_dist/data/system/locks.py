"""Locks between processes; the kernel releases them when a process ends for any reason.

`lock` and `locked` exclude threads and processes (flock, shared or exclusive). `lock_for_process` excludes processes
(POSIX), on more file systems also those of other hosts.
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
    """Holds an exclusive lock. Yields True; with `wait` False and the lock taken, False immediately, without it."""
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
    """A descriptor of the file at a path, locked by `fcntl.flock` until it is closed. Raises OSError.

    `how`: of flock. `flags`: of os.open; None: open_shared. The holder of a lock may remove its file while others have
    opened it; a lock of a removed file excludes no one, so the file that is now at the path is locked instead.
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
    """A descriptor of a lock file, created if it is missing. Raises OSError.

    All users who can write in its folder can lock it, regardless of the creator's umask. In folders like /tmp Linux
    refuses O_CREAT for an existing file of another user, so it is first opened without.
    """
    while True:
        with suppress(FileNotFoundError):
            try:
                return os.open(path, os.O_RDWR)
            except PermissionError:  # on a local disk a lock needs no more
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
    """Locks an open file for this process, not for its forks; retries for `seconds`.

    Returns whether it has the lock; None if the file system has no locks.
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
