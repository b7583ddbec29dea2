"""How a shard is opened: what it says of itself at the start of a run, its index, and its bytes, near or far."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from dcgan_dist.data.files import LocalFile, RangedFile, ShardFile
from dcgan_dist.data.foreign import foreign_index
from dcgan_dist.data.index import Footer, ShardIndex, load_index, read_footer
from dcgan_dist.data.remote import Remote, RemoteStat, is_remote
from dcgan_dist.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What is known of a shard when a run starts; small, so that a million of them can be."""

    name: str
    """Path or URL."""
    count: int
    """Number of images."""
    fingerprint: int
    """See ShardIndex."""
    footer: Footer | None = None
    """Where its own index lies; None in a tar made by another program."""
    kept: ShardIndex | None = None
    """The index of a tar made by another program."""
    stat: RemoteStat | None = None
    """Of a remote one."""


@dataclass(frozen=True)
class Opener:
    """The one who knows where shards are: on a disk, in the node's cache, or far away. Travels to other processes."""

    remote: Remote = field(default_factory=Remote)

    def look(self, name: str) -> Shard:
        """Opens a shard for the first time. Raises UserError when it is missing, cut, damaged or no shard at all."""
        if is_remote(name):
            return self._look_afar(name)
        path = Path(name)
        try:
            if path.is_dir():
                raise UserError(f"{path}: is a folder; name the shards in it, as in '{path}/*.tar'")
            if not path.is_file():
                raise UserError(f"{path}: no such file")
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                footer = read_footer(name, size, lambda offset, length: os.pread(file.fileno(), length, offset))
            if footer is None:
                index = foreign_index(path)
                return Shard(name=name, count=len(index), fingerprint=index.fingerprint, kept=index)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        return Shard(name=name, count=footer.count, fingerprint=footer.fingerprint, footer=footer)

    def _look_afar(self, name: str) -> Shard:
        stat = self.remote.stat(name)
        file = RangedFile(self.remote, stat)
        footer = read_footer(name, stat.size, file.read)
        if footer is None:
            raise UserError(f"{name}: has no index")
        return Shard(name=name, count=footer.count, fingerprint=footer.fingerprint, footer=footer, stat=stat)

    def index(self, shard: Shard) -> ShardIndex:
        """The index of a shard. Raises UserError when it is damaged or was replaced since the start."""
        if shard.footer is None:
            assert shard.kept is not None
            return shard.kept
        try:
            index = load_index(shard.name, shard.footer, self.open(shard).read)
        except OSError as error:
            raise UserError(f"{shard.name}: cannot be read any more ({error.strerror})") from error
        if index.fingerprint != shard.fingerprint:
            raise UserError(f"{shard.name}: was replaced by another after the run began")
        return index

    def open(self, shard: Shard) -> ShardFile:
        """The bytes of a shard. Raises OSError or UserError."""
        return LocalFile(Path(shard.name)) if shard.stat is None else RangedFile(self.remote, shard.stat)
