"""Tars packed with gzip, bzip2, xz or Zstandard, unpacked as they arrive, in bounded memory."""

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from dcgan_dist.errors import UsageError, UserError

GZIP_STEP, STEP = 2**14, 2**10  # packed bytes taken at once; gzip makes 1 KiB of one, Zstandard 128 KiB of 4
LARGEST = 2**20  # bytes that bzip2 and xz give at once
KINDS = {"gz": "gz", "tgz": "gz", "bz2": "bz2", "tbz2": "bz2", "tbz": "bz2", "xz": "xz", "txz": "xz"}
KINDS |= {"zst": "zst", "tzst": "zst"}  # by the end of a file name
TAR_ENDINGS = (".tar", *(f".{end}" if end.startswith("t") else f".tar.{end}" for end in KINDS))
"""What the names of shards end with, in small letters."""
CODECS: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "gz": (partial(zlib.decompressobj, 31), zlib.error),
    "bz2": (bz2.BZ2Decompressor, OSError),
    "xz": (lzma.LZMADecompressor, lzma.LZMAError),
}
MAGICS = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zst"}  # first bytes
BLOCK, MAGIC_AT = 512, 257  # of a tar
_PACKED = re.compile(rf"(\.tar)?\.({'|'.join(KINDS)})$", re.IGNORECASE)


def packing(name: str) -> str | None:
    """'gz', 'bz2', 'xz' or 'zst' by the end of a file name (.tar.gz, .tgz and so on); None for a tar."""
    match = _PACKED.search(name)
    return KINDS[match[2].lower()] if match else None


def packing_of(path: str | Path) -> str | None:
    """The same of a local file, by its first bytes; by its name where they show neither a packed file nor a tar.

    webdataset's ShardWriter writes packed files named .tar (compress=True), and plain ones named .tar.gz.
    """
    head = b""
    with suppress(OSError):  # reported where it is opened
        if Path(path).is_file():
            with Path(path).open("rb") as file:
                head = file.read(BLOCK)
    by_name = None if head[MAGIC_AT:].startswith(b"ustar") else packing(str(path))
    return next((kind for magic, kind in MAGICS.items() if head.startswith(magic)), by_name)


def unpacked_name(name: str) -> str:
    """'a.tar' of 'a.tar.gz' and of 'a.tgz'."""
    return _PACKED.sub(".tar", name)


def unpacked(packed: Iterable[bytes], kind: str, name: str) -> Iterator[bytes]:
    """Unpacks bytes as they arrive, also those of a file that consists of several streams.

    `kind`: as of packing(). `name`: for messages. Raises UserError when they are damaged, cut, or not packed so.
    """
    new, damage = _zstd(name) if kind == "zst" else CODECS[kind]
    step, stream, padding = GZIP_STEP if kind == "gz" else STEP, None, b""
    for piece in (part[at : at + step] for part in packed for at in range(0, len(part), step)):
        while piece := piece.lstrip(padding) if stream is None else piece:
            if stream is None:
                stream, padding = new(), b"\0"  # with which some tools fill up the file
            try:
                yield from _decompressed(stream, piece)
            except damage as error:
                raise UserError(f"{name}: is damaged, or has the wrong ending ({error}); copy it again") from error
            piece, stream = (stream.unused_data, None) if stream.eof else (b"", stream)
    if stream is not None or not padding:
        raise UserError(f"{name}: the packed file is cut or empty; copy it again")


def _decompressed(stream: Any, piece: bytes) -> Iterator[bytes]:
    if not hasattr(stream, "needs_input"):  # gzip and Zstandard
        yield stream.decompress(piece)
        return
    yield stream.decompress(piece, LARGEST)
    while not (stream.needs_input or stream.eof):
        yield stream.decompress(b"", LARGEST)


def _zstd(name: str) -> tuple[Callable[[], Any], type[Exception]]:
    try:
        import zstandard
    except ImportError as error:
        raise UsageError(f"{name}: needs a package that is missing: pip install 'dcgan_dist[zstd]'") from error
    return zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError
