"""Files that appear whole or not at all, and the user's cache folder."""

import os
import socket
from contextlib import suppress
from pathlib import Path

from dcgan_dist.errors import UserError


def cache_folder() -> Path:
    """Where things are kept that can be made again: $XDG_CACHE_HOME/dcgan_dist, else ~/.cache/dcgan_dist."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dcgan_dist"


def temporary_path(path: Path) -> Path:
    """The name under which this process writes a file until it is whole."""
    return path.with_name(f"{_temporary_prefix(path)}{os.getpid()}.tmp")


def _temporary_prefix(path: Path) -> str:
    return f".{path.name}.{socket.gethostname()}."


def remove_abandoned(path: Path) -> None:
    """Removes what processes of this machine that were killed in writing this same file have left."""
    prefix = _temporary_prefix(path)
    for found in path.parent.iterdir():
        pid = found.name.removeprefix(prefix).removesuffix(".tmp")
        if found.name == f"{prefix}{pid}.tmp" and pid.isdecimal() and not _lives(int(pid)):
            found.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # a process of another user
        pass
    return True


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that any process, also after a crash, sees the old content or the new, never a part."""
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        with suppress(OSError):  # what made the writing fail may fail here too
            temporary.unlink(missing_ok=True)
