"""Tars packed with gzip, bzip2, xz or Zstandard, unpacked as they arrive, in bounded memory."""

import bz2
import lzma
import re
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from dcgan_dist.data.system.storage import Output
from dcgan_dist.errors import UsageError, UserError

PIECE = 2**20  # bytes that gzip unpacks at once
GZIP_STEP, STEP = 2**16, 2**10  # packed bytes taken at once; Zstandard makes up to 128 KiB of 4 bytes
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
_PACKED = re.compile(r"(\.tar)?\.(gz|bz2|xz|zst)$|\.(tgz|tbz2?|txz|tzst)$")


def packing(name: str) -> str | None:
    """'gz', 'bz2', 'xz' or 'zst' by the end of a file name (.tar.gz, .tgz and so on); None for a tar."""
    match = _PACKED.search(name.lower())
    return None if match is None else KINDS[match[0].rpartition(".")[2]]


def packing_of(path: str | Path) -> str | None:
    """The same of a local file, by its first bytes; by its name where they show neither a packed file nor a tar.

    webdataset's ShardWriter writes packed files named .tar (compress=True), and plain ones named .tar.gz.
    """
    head = b""
    with suppress(OSError):  # whoever opens it reports that
        if Path(path).is_file():
            with Path(path).open("rb") as file:
                head = file.read(BLOCK)
    by_name = None if head[MAGIC_AT:].startswith(b"ustar") else packing(str(path))
    return next((kind for magic, kind in MAGICS.items() if head.startswith(magic)), by_name)


def unpacked_name(name: str) -> str:
    """'a.tar' of 'a.tar.gz' and of 'a.tgz'."""
    match = _PACKED.search(name.lower())
    return name if match is None else name[: match.start()] + ".tar"


class Unpacker:
    """Takes packed bytes in order and writes unpacked ones; files made of several streams are read on."""

    def __init__(self, kind: str, name: str, to: Output) -> None:
        """`kind` as of packing(); `name` for messages."""
        self._limit = () if kind == "zst" else (PIECE,)
        self._step = GZIP_STEP if kind == "gz" else STEP
        self._new, self._error = _zstd(name) if kind == "zst" else CODECS[kind]
        self._name, self._to = name, to
        self._stream: Any = None
        self._begun = False

    def write(self, data: bytes, /) -> None:
        """Raises UserError when the bytes are damaged, or no packed file at all."""
        view, at = memoryview(data), 0
        while at < len(view):
            piece = bytes(view[at : at + self._step])
            at += len(piece)
            if self._stream is None:
                piece = piece.lstrip(b"\0") if self._begun else piece  # some tools fill up with zeros
                if not piece:
                    continue
                self._stream, self._begun = self._new(), True
            at -= self._unpack(self._stream, piece)

    def _unpack(self, stream: Any, piece: bytes) -> int:
        """Returns how many bytes at the end of `piece` are not of this stream."""
        more = True
        while more and not stream.eof:  # at its end, zlib may give what follows as unconsumed too
            try:
                data = stream.decompress(piece, *self._limit)
            except self._error as error:
                problem = "is damaged, or not packed as its name says"
                raise UserError(f"{self._name}: {problem} ({error}); copy it again") from error
            self._to.write(data)
            piece = getattr(stream, "unconsumed_tail", b"")  # bzip2 and xz keep it to themselves
            more = bool(piece) or not getattr(stream, "needs_input", True)
        if not stream.eof:
            return 0
        self._stream = None
        return len(stream.unused_data)

    def finish(self) -> None:
        """Raises UserError when the last stream is cut, or there was none."""
        if self._stream is not None or not self._begun:
            raise UserError(f"{self._name}: the packed file is cut or empty; copy it again")


def _zstd(name: str) -> tuple[Callable[[], Any], type[Exception]]:
    try:
        import zstandard
    except ImportError as error:
        raise UsageError(f"{name}: needs a package that is missing: pip install 'dcgan_dist[zstd]'") from error
    return zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError
