"""Files that appear whole or not at all, and the user's cache folder."""

import os
from pathlib import Path

from dcgan_dist.errors import UserError


def cache_folder() -> Path:
    """Where things are kept that can be made again: $XDG_CACHE_HOME/dcgan_dist, else ~/.cache/dcgan_dist."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dcgan_dist"


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that another process, or this one after a crash, sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
        temporary.unlink(missing_ok=True)
