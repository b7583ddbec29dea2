"""The bytes of a shard: mapped from a local disk, read from a network file system, or requested by range.

A memory map needs no copy and no system call, but the process dies when the file shrinks or the disk fails. So files on
network file systems are read, and the size of a mapped file is checked before every batch.
"""

import mmap
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from dcgan_dist.data.remote.client import Remote, RemoteStat
from dcgan_dist.data.remote.stores import Span
from dcgan_dist.errors import UserError, os_error_as_user_error

NETWORK = (
    "9p", "afs", "beegfs", "ceph", "cifs", "davfs", "fuse", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "orangefs",
    "panfs", "pvfs", "smb", "weka",
)  # fmt: skip
LOST = "cannot be read any more"


class LocalFile:
    """A file of this machine or of a mounted file system. Closed when it is no longer referenced.

    Threads may read it at once. Errors are UserErrors that name the file.
    """

    _descriptor = -1  # when it could not be opened

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        """`descriptor`: of the open file; this object will close it."""
        self._path = path
        with os_error_as_user_error(path, LOST):
            self._descriptor = os.open(path, os.O_RDONLY) if descriptor is None else descriptor
            self.about = os.fstat(self._descriptor)
            self.view: memoryview | None = None  # all bytes, if the file is mapped
            if self.about.st_size and not on_network(self.about.st_dev):
                # the map keeps the file open as long as a part of it is referenced
                self._map = mmap.mmap(self._descriptor, self.about.st_size, prot=mmap.PROT_READ)
                self.view = memoryview(self._map)
                os.close(self._descriptor)
                self._descriptor = -1

    def size(self) -> int:
        """Current size in bytes."""
        try:  # called before every batch, for every shard
            return self._map.size() if self.view is not None else os.fstat(self._descriptor).st_size
        except OSError as error:
            raise UserError(f"{self._path}: {LOST} ({error.strerror})") from error

    def read(self, offset: int, length: int) -> bytes:
        """Returns fewer bytes where the file ends."""
        if self.view is not None:
            return bytes(self.view[offset : min(offset + length, self.size())])
        with os_error_as_user_error(self._path, LOST):
            return os.pread(self._descriptor, length, offset)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class RangedFile:
    """A remote file, read by range requests; as LocalFile."""

    view = None

    def __init__(self, remote: Remote, stat: RemoteStat) -> None:
        self.remote, self._stat = remote, stat

    def size(self) -> int:
        """Size in bytes."""
        return self._stat.size

    def read(self, offset: int, length: int) -> bytes:
        """Returns fewer bytes where the file ends."""
        return self.remote.read_spans([self.part(offset, length)])[0]

    def part(self, offset: int, length: int) -> Span:
        """The range to request."""
        return Span(self._stat.url, offset, min(length, self._stat.size - offset), self._stat.version)


ShardFile = LocalFile | RangedFile


def same_file(one: ShardFile, other: ShardFile | None) -> bool:
    """Whether both are the same local file."""
    return isinstance(one, LocalFile) and isinstance(other, LocalFile) and os.path.samestat(one.about, other.about)


def read_together(parts: Sequence[tuple[ShardFile, int, int]]) -> list[bytes]:
    """Reads parts (file, offset, length) of several files; remote parts concurrently."""
    remote = [(file, file.part(*span)) for file, *span in parts if isinstance(file, RangedFile)]
    fetched = iter(remote[0][0].remote.read_spans([part for _, part in remote]) if remote else [])
    return [next(fetched) if isinstance(file, RangedFile) else file.read(*span) for file, *span in parts]


def on_network(device: int) -> bool:
    """Whether a device number (st_dev) is that of a network file system; False if unknown."""
    try:
        return _on_network(device)
    except OSError:
        return False


@lru_cache
def _on_network(device: int) -> bool:
    wanted = f"{os.major(device)}:{os.minor(device)}"
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    kinds = [line.partition(" - ")[2].split(" ")[0] for line in mounts if line.split(" ")[2] == wanted]
    return any(kind.startswith(NETWORK) for kind in kinds)
