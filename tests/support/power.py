"""What a power cut would leave, as far as programs can know it: seen at the functions of `os` that they call.

What was written is on the disk when the file was synced after it; a new name is, when its folder was. Until then the
system may have kept either, both or neither, in any order: a file that gets its name before it is synced may be there
and empty.
"""

import hashlib
import os
import re
import socket
import stat
from pathlib import Path

import pytest

TEMPORARY = re.compile(rf"\.(.+)\.{re.escape(socket.gethostname())}\.\d+\.tmp")


class Disk:
    """Everything below `root`. Its calls go on to the system."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        """`sync PATH` of a file, `sync PATH/` of a folder, `name PATH`; ~FILE: a temporary file of that name."""
        self.torn: list[str] = []
        """What got its name before it was on the disk."""
        self._root = root.resolve()
        self._contents: dict[int, str] = {}  # inode -> checksum when it was synced last
        self._names: dict[int, dict[str, int]] = {}  # inode of a folder -> its names, and their inodes
        real = {name: getattr(os, name) for name in ("fsync", "rename", "replace", "link")}

        def fsync(descriptor) -> None:
            real["fsync"](descriptor)
            self._synced(descriptor)

        def naming(name: str):
            def act(source, target, *, src_dir_fd=None, dst_dir_fd=None) -> None:
                old, new = _place(source, src_dir_fd), _place(target, dst_dir_fd)
                if not self._is_durable(old):
                    self.torn.append(self._shown(new))
                folders = {"src_dir_fd": src_dir_fd, "dst_dir_fd": dst_dir_fd}
                real[name](source, target, **{key: value for key, value in folders.items() if value is not None})
                self.events.append(f"name {self._shown(new)}")

            return act

        patch.setattr(os, "fsync", fsync)
        for name in ("rename", "replace", "link"):
            patch.setattr(os, name, naming(name))

    def at_risk(self) -> set[str]:
        """Files and folders whose name or content a power cut may take now."""
        found = set()
        for path in [self._root, *self._root.rglob("*")]:
            about = path.lstat()
            named = self._names.get(path.parent.stat().st_ino, {}).get(path.name) == about.st_ino
            if not (named and (path.is_dir() or self._contents.get(about.st_ino) == _checksum(path))):
                found.add(self._shown(path))
        return found

    def _synced(self, descriptor) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        about, path = os.fstat(number), Path(f"/proc/self/fd/{number}").readlink()
        if stat.S_ISDIR(about.st_mode):
            self._names[about.st_ino] = _listing(path)
            self.events.append(f"sync {self._shown(path)}/")
        else:
            self._contents[about.st_ino] = _checksum(Path(f"/proc/self/fd/{number}"))
            self.events.append(f"sync {self._shown(path)}")

    def _is_durable(self, path: Path) -> bool:
        """With all that is below a folder."""
        about = path.stat()
        if not path.is_dir():
            return self._contents.get(about.st_ino) == _checksum(path)
        return self._names.get(about.st_ino) == _listing(path) and all(map(self._is_durable, path.iterdir()))

    def _shown(self, path: Path) -> str:
        if not path.is_relative_to(self._root):
            return "outside"
        shown = str(path.relative_to(self._root))
        return TEMPORARY.sub(r"~\1", shown) if "(deleted)" not in shown else "nameless"


def _place(path, folder: int | None) -> Path:
    path = Path(path)
    return path if folder is None or path.is_absolute() else Path(f"/proc/self/fd/{folder}").readlink() / path


def _listing(folder: Path) -> dict[str, int]:
    return {entry.name: entry.inode() for entry in os.scandir(folder)}


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
