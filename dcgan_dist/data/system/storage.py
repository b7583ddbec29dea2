"""Atomic writes of files, and the user's cache folder."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import psutil

from dcgan_dist.errors import UserError, os_error_as_user_error

LARGEST_PID = 2**31 - 1
NO_FILE = "no regular file, but a pipe, a socket or a device"


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/dcgan_dist, else ~/.cache/dcgan_dist. Raises UserError for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "dcgan_dist"
    except RuntimeError as error:
        raise UserError("this user has no home folder; set HOME or XDG_CACHE_HOME") from error


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading. Raises OSError, also for a pipe, a socket or a device, which may never end."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, NO_FILE, str(path))
    return file


def temporary_path(path: Path, pid: str = "") -> Path:
    """The name under which this process, or another one of this host, writes a file until it is complete."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{pid or os.getpid()}.tmp")


def remove_abandoned(path: Path) -> None:
    """Removes temporary files of killed processes of this host that wrote the same file."""
    for found in path.parent.iterdir():
        pid = found.stem.rpartition(".")[2]
        if pid.isdecimal() and found == temporary_path(path, pid) and not process_exists(int(pid)):
            found.unlink(missing_ok=True)


def process_exists(pid: int) -> bool:
    """Whether there is such a process on this host."""
    return pid <= LARGEST_PID and psutil.pid_exists(pid)


def write_atomically(path: Path, data: bytes, *, private: bool = False, new: bool = False) -> None:
    """Writes a file so that any process, also after a crash, sees the old content or the new, never a part.

    `private`: only the owner can read it, at any moment. `new`: an existing file is not replaced.
    """
    with os_error_as_user_error(path, "cannot be written"):
        make_folder(path.parent)
        with atomic_file(path, 0o600 if private else 0o666, new) as file:
            file.write(data)


@contextmanager
def atomic_file(path: Path, mode: int = 0o666, new: bool = False) -> Iterator[BinaryIO]:
    """A file that gets its name when it is complete and on disk; an exception leaves nothing behind.

    `mode`: its permissions from the beginning, less the umask. `new`: see write_atomically.
    """
    temporary = temporary_path(path)
    try:
        temporary.unlink(missing_ok=True)  # of a killed process with the same pid, with other permissions
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if new:
            move_to_free(temporary, path)
        else:
            temporary.replace(path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):  # may fail for the same reason as the writing
            temporary.unlink(missing_ok=True)


def move_to_free(source: Path, path: Path) -> None:
    """Renames a file to a name that must be free, else raises FileExistsError.

    On a file system without hard links, a killed process may leave an empty file there.
    """
    try:
        os.link(source, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links in this file system
        path.touch(exist_ok=False)
        try:
            source.replace(path)
        except OSError:
            path.unlink()
            raise
    else:
        source.unlink()


def sync_folder(folder: Path) -> None:
    """Makes changes of names in a folder durable (they survive a power cut), if the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that is writable but not readable
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a network file system that cannot sync folders
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Creates a folder and its missing parents, durably."""
    missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)
