"""Opens shards, local or remote: their description at the start of a run, their index, and their bytes."""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dcgan_dist.data.remote.cache import CachedShard, EntryRequest, ShardCache, entry_name
from dcgan_dist.data.remote.client import Remote, RemoteStat, is_remote
from dcgan_dist.data.remote.source import FileSource
from dcgan_dist.data.remote.unpack import packing, packing_of
from dcgan_dist.data.shards.files import LocalFile, RangedFile, ShardFile
from dcgan_dist.data.shards.foreign import cached_index, foreign_index, walk
from dcgan_dist.data.shards.index import Footer, ShardIndex, load_index, read_footer, read_index
from dcgan_dist.data.shards.notes import Notes
from dcgan_dist.data.shards.samples import MemberChoice
from dcgan_dist.data.system.storage import NO_FILE
from dcgan_dist.errors import UserError, os_error_as_user_error
from dcgan_dist.location import Location


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The description of a shard at the start of a run; small, so that there can be a million of them."""

    name: str  # path or URL, for messages
    count: int  # number of images
    fingerprint: int  # see ShardIndex
    checked: bool = False  # whether it has checksums; tars of other programs have none
    empty: str = ""  # a message about images of 0 bytes, if there are any
    footer: Footer | None = None  # of its index; None in a tar of another program
    source: FileSource | None = None  # the remote or compressed file that the cache fetches; None: a plain local tar
    identity: str = ""  # of a file without a footer: a local tar of another program, or a compressed one
    unpacked_size: int = 0  # least number of bytes of a compressed one when it is unpacked
    notes: Notes = field(default_factory=Notes)  # what is not used of a tar of another program

    @property
    def needs_cache(self) -> bool:
        """Whether it can only be read from the cache: it is compressed, or its server has no range requests."""
        return isinstance(self.source, Path) or (
            self.source is not None and (packing(self.name) is not None or not self.source.ranges)
        )


@dataclass(frozen=True)
class CachePlan:
    """The folder of the cache, and its limit in bytes."""

    folder: Path
    limit: int


@dataclass(eq=False)
class Opener:
    """Opens shards from a local disk, the node's cache, or a server. Can be pickled."""

    remote: Remote = field(default_factory=Remote)
    plan: CachePlan | None = None  # the cache; None: remote images are read by range
    choice: MemberChoice = field(default_factory=MemberChoice)  # how tars of other programs are read

    def __reduce__(self) -> tuple[type["Opener"], tuple[Remote, CachePlan | None, MemberChoice]]:
        return Opener, (self.remote, self.plan, self.choice)

    @cached_property
    def cache(self) -> ShardCache | None:
        """Opened by each process on first use."""
        return None if self.plan is None else ShardCache(self.plan.folder, self.plan.limit, self.remote)

    def describe(self, name: str) -> Shard:
        """Opens a shard for the first time. Raises UserError when it is missing, cut, damaged or no shard at all."""
        if is_remote(name):
            return self._describe_remote(name, self.remote.stat(name))
        path = Path(name)
        with os_error_as_user_error(path, "cannot be read"):
            if path.is_dir():
                raise UserError(f"{path}: is a folder; name the shards in it, as in '{path}/*.tar'")
            if not path.is_file():
                raise UserError(f"{path}: {NO_FILE if path.exists() else 'no such file'}")
            if packing_of(path) is not None:
                return self._describe_cached(name, path)
            with path.open("rb") as file:
                about = os.fstat(file.fileno())
                footer = read_footer(name, about.st_size, lambda start, length: os.pread(file.fileno(), length, start))
            if footer is None:
                return Shard(name=name, identity=_identity(about), **_facts(foreign_index(path, self.choice)))
        return _from_footer(name, footer)

    def _describe_remote(self, url: str, stat: RemoteStat) -> Shard:
        name = Location(url)
        footer = None
        if packing(name) is None and stat.ranges:
            footer = read_footer(name, stat.size, RangedFile(self.remote, stat).read)
        if footer is None:
            return self._describe_cached(name, stat)
        return _from_footer(name, footer, stat)

    def _describe_cached(self, name: str, source: FileSource) -> Shard:
        identity = entry_name(source)
        index = self._cached_index(name, source, identity)
        unpacked_size = int((index.offset + index.length).max()) if len(index) else 0
        return Shard(name=name, source=source, identity=identity, unpacked_size=unpacked_size, **_facts(index))

    def _cached_index(self, name: str, source: FileSource, identity: str) -> ShardIndex:
        """Fetches a shard whose index cannot be read by range into the cache once, and caches its index for good."""

        def make() -> ShardIndex:
            with self._download(name, source) as cached:
                try:
                    index = read_index(cached.path)
                    return walk(cached.path, self.choice) if index is None else index
                except UserError as error:
                    raise UserError(str(error).replace(str(cached.path), name)) from error

        return cached_index(f"{identity}\n{self.choice}", name, make)

    def _download(self, name: str, source: FileSource, request: EntryRequest | None = None) -> CachedShard:
        if self.cache is None:
            problem = "compressed or without index, so it needs the cache, which --data.cache_bytes 0 forbids"
            raise UserError(f"{name}: {problem}; allow one, or make shards of it by dcgan-dist shard")
        cached = self.cache.acquire(source, request or EntryRequest(check=read_index))
        if cached is None:
            raise UserError(f"{name}: not enough space in the cache {self.cache.folder}; allow more --data.cache_bytes")
        return cached

    def index(self, shard: Shard) -> ShardIndex:
        """The index of a shard. Raises UserError when it is damaged or was replaced since the start."""
        if shard.footer is not None:
            index = load_index(shard.name, shard.footer, self.open(shard).read)
        elif shard.source is not None:
            index = self._cached_index(shard.name, shard.source, shard.identity)
        else:
            with os_error_as_user_error(shard.name, "cannot be read any more"):
                index = foreign_index(Path(shard.name), self.choice)
        if index.fingerprint != shard.fingerprint:
            raise UserError(f"{shard.name}: was replaced by another file after the run began")
        return index

    def open(self, shard: Shard) -> ShardFile:
        """The bytes of a shard: local, cached, or by range requests. Raises UserError."""
        if shard.source is None:
            return _unchanged(shard, LocalFile(Path(shard.name)))
        if isinstance(shard.source, Path) and entry_name(shard.source) != shard.identity:
            raise UserError(f"{shard.name}: was replaced by another file after the run began")
        cached = self.cache.get(shard.source) if self.cache is not None else None
        if cached is None:
            if not shard.needs_cache:
                assert isinstance(shard.source, RemoteStat)
                return RangedFile(self.remote, shard.source)
            own = entry_name(shard.source)
            now = EntryRequest(next_use=lambda name: -1 if name == own else None, check=read_index)
            cached = self._download(shard.name, shard.source, now)
        with cached:
            # the lock that pins the entry belongs to the open file, not to the number of its descriptor
            return LocalFile(cached.path, os.dup(cached.fileno()))

    def discard(self, shard: Shard, file: ShardFile) -> None:
        """Removes a damaged shard from the cache, if its entry is still this file."""
        if self.cache is not None and shard.source is not None and isinstance(file, LocalFile):
            self.cache.discard(shard.source, file.about)


def _from_footer(name: str, footer: Footer, source: FileSource | None = None) -> Shard:
    count, fingerprint = footer.count, footer.fingerprint
    return Shard(name=name, count=count, fingerprint=fingerprint, checked=True, footer=footer, source=source)


def _facts(index: ShardIndex) -> dict[str, Any]:
    """The description of a shard without a footer, from its index."""
    message, empty = "", np.flatnonzero(index.length == 0)
    if len(empty):
        more = f" ({len(empty):,} such images in this shard)" if len(empty) > 1 else ""
        message = f"{index.describe(int(empty[0]))} is an empty file{more}"
    facts = {"count": len(index), "fingerprint": index.fingerprint, "checked": index.checked}
    return facts | {"empty": message, "notes": index.notes}


def _identity(about: os.stat_result) -> str:
    return f"{about.st_ino}/{about.st_size}/{about.st_mtime_ns}"


def _unchanged(shard: Shard, file: LocalFile) -> LocalFile:
    """The file. Raises UserError when it is not the one that was opened at the start of the run."""
    if shard.footer is None:
        same = _identity(file.about) == shard.identity
    else:
        same = file.about.st_size < shard.footer.file_size  # it was cut: the rest may be read
        with suppress(UserError):
            same = same or read_footer(shard.name, file.about.st_size, file.read) == shard.footer
    if not same:
        raise UserError(f"{shard.name}: was replaced by another file after the run began")
    return file
