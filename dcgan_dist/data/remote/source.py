"""The source of a cache entry: a remote file, or a packed one, remote or local."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import xxhash

from dcgan_dist.data.remote.client import Remote, base_name
from dcgan_dist.data.remote.stores import RemoteStat
from dcgan_dist.data.remote.unpack import packing, packing_of, unpacked, unpacked_name
from dcgan_dist.data.system.storage import open_regular
from dcgan_dist.errors import UserError, os_error_as_user_error
from dcgan_dist.location import Location

READABLE = 60  # characters of a file's own name that its entry keeps
PIECE = 2**20

# an ETag that covers every byte, or a generation; not a date, a length or a weak ETag
_RELIABLE = re.compile(r'"[^"]+"|\w+')

FileSource = RemoteStat | Path  # a remote file, or a local packed one


@dataclass(frozen=True)
class Wanted:
    """A source as the cache sees it."""

    identity: str  # the hash of address, version and size
    name: str  # of the entry: the identity, and the end of the file's own name
    shown: str  # for messages
    size: int  # bytes of the source, which are more when it is unpacked
    packed: str | None  # as of packing()


def wanted_of(source: FileSource) -> Wanted:
    """Raises UserError when a local file cannot be read."""
    if isinstance(source, RemoteStat):
        shown, version, size = Location(source.url), source.version, source.size
        # a URL with a new signature is the same file; but without a reliable version the query may name the file
        address = str(shown) if _RELIABLE.fullmatch(version) else shown.reveal()
    else:
        with os_error_as_user_error(source, "cannot be read"):
            about = source.stat()
        shown, address, version, size = str(source), str(source.resolve()), str(about.st_mtime_ns), about.st_size
    kind = packing(base_name(shown)) if isinstance(source, RemoteStat) else packing_of(source)
    text = re.sub(r"[^A-Za-z0-9._-]+", "_", unpacked_name(base_name(shown)))[-READABLE:]
    identity = xxhash.xxh3_128_hexdigest(f"{address}\n{version}\n{size}".encode(errors="surrogateescape"))
    return Wanted(identity, f"{identity}-{text}", shown, size, kind)


def contents(source: FileSource, wanted: Wanted, remote: Remote) -> Iterator[bytes]:
    """The bytes of a source, unpacked. Raises UserError when it cannot be read or unpacked, or is `wanted` no more."""
    pieces = remote.download(source) if isinstance(source, RemoteStat) else _pieces(source, wanted)
    return unpacked(pieces, wanted.packed, wanted.shown) if wanted.packed else pieces


def _pieces(path: Path, wanted: Wanted) -> Iterator[bytes]:
    with os_error_as_user_error(path, "cannot be read"), open_regular(path) as file:
        yield from iter(partial(file.read, PIECE), b"")
    if wanted_of(path) != wanted:
        raise UserError(f"{path}: changed while it was being read; start the run again when the file is complete")
