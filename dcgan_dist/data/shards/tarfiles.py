"""A strict tarfile: only the end mark ends an archive."""

import tarfile
from collections.abc import Iterator
from tarfile import ReadError
from typing import Any, Literal, cast

from dcgan_dist.errors import UserError

ERRORS: Any = tarfile  # some of its errors are not in the type stubs
MAGIC = b"ustar"
MAGIC_AT = 257  # in a tar header
# zeros: the oldest tars. If a byte is missing before a header, the checksum of the shifted bytes may still be right;
# then `00003.cls` would be read as `0003.cls`
TAR_MAGICS = (MAGIC, bytes(len(MAGIC)))
COMPRESSED = {  # first bytes -> compression, and the file name with which it is unpacked
    b"\x1f\x8b": "gzip (.tar.gz)",
    b"\x28\xb5\x2f\xfd": "zstd (.tar.zst)",
    b"BZh": "bzip2 (.tar.bz2)",
    b"\xfd7zXZ": "xz (.tar.xz)",
    b"PK\3\4": "zip (.zip)",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
    b"\x04\x22\x4d\x18": "lz4",
}
CUT = "unexpected end of data"  # tarfile's message
CUT_HINT = "cut, or written without an end; --data.allow_cut (--allow_cut of shard and inspect) takes what is there"


class CutError(ReadError):
    """The file ends before the archive does."""


def compression(head: bytes) -> str:
    """The compression of a file by its first bytes; '': none is known."""
    return next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), "")


def tar_members(file: Any, mode: Literal["r:", "r|*"]) -> Iterator[tuple[tarfile.TarFile, "Header"]]:
    """All members of a tar, each with the open tar; "r|*" reads a stream, compressed or not, from first byte to last.

    tarfile takes a damaged header, and the end of the file, for the end of the archive, and silently loses the rest.
    Here only tar's end mark is the end, and only zeros may follow it. Raises tarfile.TarError for any damage, CutError
    after the last member, which may be incomplete, if the file is cut, and the errors of `file`.
    """
    end = 0
    try:
        with tarfile.open(fileobj=file, mode=mode, tarinfo=Header) as tar:
            for info in cast("Iterator[Header]", tar):
                size = info.size if info.isreg() and not info.issparse() else 0
                # a negative size would make tarfile loop for ever
                if not (end < tar.offset and 0 <= size <= tar.offset - info.offset_data):
                    raise ReadError(f"a size of {info.size} at byte {info.offset}")
                end = tar.offset
                yield tar, info
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # it would grow without bound
            assert tar.fileobj is not None
            while rest := tar.fileobj.read(2**20):
                if rest.strip(b"\0"):
                    raise ReadError(f"more data after the end mark at byte {end}; several tars in one?")
    except (OSError, UserError, tarfile.TarError) as error:
        if not (end and (isinstance(error, CutError) or str(error) == CUT)):
            raise
        raise CutError(f"it ends at byte {end} without tar's end mark: {CUT_HINT}") from error
    except Exception as error:  # on damaged headers tarfile raises errors of any kind
        raise ReadError(f"a header after byte {end} cannot be read: {error!r}") from error


class Header(tarfile.TarInfo):
    """A tar header. After the first member, anything else raises ReadError, where tarfile would see the end."""

    data = b""  # of a member of a stream, which can be read only once; set by the reader
    cut = False  # whether the file ends before the member does; set by the reader

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Header":
        """See tarfile.TarInfo; also requires the magic."""
        header = super().frombuf(buf, encoding, errors)
        if bytes(buf[MAGIC_AT : MAGIC_AT + len(MAGIC)]) not in TAR_MAGICS:
            raise ERRORS.InvalidHeaderError("no magic")
        return header

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> "Header":
        """See tarfile.TarInfo."""
        try:
            return super().fromtarfile(tarfile)
        except ERRORS.HeaderError as error:
            if tarfile.offset == 0 or isinstance(error, ERRORS.EOFHeaderError):
                raise
            kind = CutError if isinstance(error, ERRORS.EmptyHeaderError | ERRORS.TruncatedHeaderError) else ReadError
            raise kind(f"no tar header and no end mark at byte {tarfile.offset}") from error
