"""Tars made by others (webdataset's ShardWriter, `tar`, img2dataset): indexed once by walking their headers.

They are used as they are. The grouping of members into samples is webdataset's own: a key ends at the first dot of the
file name, the suffix is lower case, members of one sample stand together, names like `__x__` are skipped, and only
regular files count. The image of a sample is the member whose whole suffix stands first in IMAGE_SUFFIXES: of `1.png`,
`1.jpg`, `1.seg.png` and `1.txt` it is `1.jpg`. A sample without an image is left out.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tarfile import EOFHeaderError, HeaderError, InvalidHeaderError, ReadError  # pyright: ignore[reportAttributeAccessIssue]
from typing import Any, BinaryIO, Literal

import numpy as np
import xxhash

from dcgan_dist.data.formats import IMAGE_SUFFIXES
from dcgan_dist.data.index import (
    BLOCK,
    NO_LABEL,
    NO_SUMS,
    SKIPPED,
    ShardIndex,
    arrays_to_bytes,
    index_from_bytes,
    join_keys,
    parse_label,
)
from dcgan_dist.data.storage import cache_folder, write_atomically
from dcgan_dist.errors import UserError

KEY_AND_SUFFIX = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
WEBDATASETS_OWN = ("__key__", "__url__")  # in every sample, so that as suffixes they are there twice
BAD = "__bad__"  # a suffix by which webdataset leaves a sample out, unless the member is empty
MAGIC = b"ustar"
MAGIC_AT = 257  # in a tar header
# zeros: the oldest tars. Where a byte is missing before a header, the sum of the shifted bytes may still be right, and
# `00003.cls` would be read as `0003.cls`
MAGICS = (MAGIC, bytes(len(MAGIC)))
CHECKSUM_BYTES = 8  # in front of a kept index
SAMPLED_IMAGES, SAMPLED_BYTES = 256, 4096  # of each, that tell one tar from another with the same names and lengths
KEPT = "dcgan_dist/4"  # goes up with the arrays and with what is taken for a sample

Members = dict[str, tarfile.TarInfo]


def foreign_index(path: Path) -> ShardIndex:
    """The index of a tar that carries none, from the cache if this very file (size, times) was walked before.

    Raises UserError when the file is no tar, is cut or damaged, or holds no images.
    """
    stat = path.stat()
    # the time of change too: `cp -p` of another tar keeps the time of modification
    identity = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}\n{stat.st_ctime_ns}"
    index = kept_index(identity, str(path))
    if index is None:
        index = walk(path)
        keep_index(identity, index)
    return index


def kept_index(identity: str, name: str) -> ShardIndex | None:
    """The index that was kept of a file with this identity, for a shard of this name; None: there is none."""
    with suppress(OSError):
        kept = _kept(identity).read_bytes()
        if kept[:CHECKSUM_BYTES] == xxhash.xxh3_64_digest(kept[CHECKSUM_BYTES:]):
            return index_from_bytes(name, kept[CHECKSUM_BYTES:])
    return None


def keep_index(identity: str, index: ShardIndex) -> None:
    """Keeps an index; a full or read-only home costs the next start a walk, and nothing else."""
    blob = arrays_to_bytes(index)
    with suppress(UserError):
        write_atomically(_kept(identity), xxhash.xxh3_64_digest(blob) + blob)


def _kept(identity: str) -> Path:
    return cache_folder() / "indexes" / f"{xxhash.xxh3_128_hexdigest(os.fsencode(f'{KEPT}/{identity}'))}.index"


def walk(path: Path) -> ShardIndex:
    """Builds the index of a tar from its headers; of the image data it reads a small sample, for the fingerprint."""
    rows: list[tuple[str, str, int, int, int]] = []  # key, suffix, offset, length, label
    with path.open("rb") as file:
        for key, members in _samples(path, file):
            suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in members), None)
            if suffix is not None and not (BAD in members and members[BAD].size):
                image, label = members[suffix], members.get("cls")
                _check_usable(path, image, label)
                rows.append((key, suffix, image.offset_data, image.size, _label(file, label)))
        sampled = _sample_bytes(file, [(row[2], row[3]) for row in rows])
    if not rows:
        raise UserError(f"{path}: holds no images")
    suffixes = tuple(sorted({row[1] for row in rows}))
    return ShardIndex(
        name=str(path),
        suffixes=suffixes,
        suffix=np.array([suffixes.index(row[1]) for row in rows], dtype=np.uint8),
        offset=np.array([row[2] for row in rows], dtype=np.int64),
        length=np.array([row[3] for row in rows], dtype=np.int64),
        label=np.array([row[4] for row in rows], dtype=np.int64),
        key_text=join_keys([row[0] for row in rows]),
        start=np.zeros(0, dtype=np.int64),
        checksum=NO_SUMS,
        sampled=np.array([sampled], dtype=np.uint64),
    )


def _sample_bytes(file: BinaryIO, images: list[tuple[int, int]]) -> int:
    """xxh3-64 of the middle of images (offset, length) that are spread over the tar; headers are often all alike."""
    digest = xxhash.xxh3_64()
    for place in np.unique(np.linspace(0, len(images) - 1, min(len(images), SAMPLED_IMAGES)).astype(int)).tolist():
        offset, length = images[place]
        part = min(length, SAMPLED_BYTES)
        file.seek(offset + (length - part) // 2)
        digest.update(file.read(part))
    return digest.intdigest()


def _samples(path: Path, file: BinaryIO) -> Iterator[tuple[str, Members]]:
    key, members = None, Members()
    for info in _members(path, file):
        match = KEY_AND_SUFFIX.match(info.name)
        if match is None or not info.isreg() or SKIPPED.match(info.name):
            continue
        if match[1] != key:
            if key is not None:
                yield key, members
            key, members = match[1], Members()
        suffix = match[2].lower()
        if suffix in members:
            raise UserError(f"{path}: two members named {info.name!r}, the second at byte {info.offset}")
        if suffix in WEBDATASETS_OWN:
            raise UserError(f"{path}: {info.name!r} at byte {info.offset}: webdataset has {suffix!r} for its own use")
        members[suffix] = info
    if key is not None:
        yield key, members


def _members(path: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    head = file.read(BLOCK)
    if not head:
        raise UserError(f"{path}: is empty")
    file.seek(0)
    try:
        for _, info in tar_members(file, "r:"):
            yield info
    except tarfile.TarError as error:
        looks = "an HTML page" if head.lstrip()[:1] == b"<" else f"{path.stat().st_size} bytes"
        raise UserError(f"{path}: no readable tar, cut or damaged ({error}; the file is {looks})") from error


def tar_members(file: Any, mode: Literal["r:", "r|*"]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """All members of a tar, each with the open tar; "r|*" reads a stream, compressed or not, from first byte to last.

    tarfile alone takes a damaged header, and the end of the file, for the end of the archive, and what follows is lost
    without a word. Here only tar's end mark is an end, and nothing but zeros may follow it. Raises tarfile.TarError
    for any damage, and OSError when `file` does.
    """
    end = 0
    try:
        with tarfile.open(fileobj=file, mode=mode, tarinfo=Header) as tar:
            for info in tar:
                size = info.size if info.isreg() and not info.issparse() else 0
                # backwards tarfile would go round in circles
                if not (end < tar.offset and 0 <= size <= tar.offset - info.offset_data):
                    raise ReadError(f"a size of {info.size} at byte {info.offset}")
                end = tar.offset
                yield tar, info
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # they would grow without bound
            assert tar.fileobj is not None
            while rest := tar.fileobj.read(2**20):
                if rest.strip(b"\0"):
                    raise ReadError(f"more data after the end mark at byte {end}; several tars in one?")
    except (OSError, tarfile.TarError):
        raise
    except Exception as error:  # on damaged headers tarfile raises errors of any kind
        raise ReadError(f"a header after byte {end} cannot be read: {error!r}") from error


class Header(tarfile.TarInfo):
    """A tar header. What is none raises ReadError behind the first member, where tarfile alone would see the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Header":
        """See tarfile.TarInfo; the magic has to be there, too."""
        header = super().frombuf(buf, encoding, errors)
        if bytes(buf[MAGIC_AT : MAGIC_AT + len(MAGIC)]) not in MAGICS:
            raise InvalidHeaderError("no magic")
        return header

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> "Header":
        """See tarfile.TarInfo."""
        try:
            return super().fromtarfile(tarfile)
        except HeaderError as error:
            if tarfile.offset == 0 or isinstance(error, EOFHeaderError):
                raise
            raise ReadError(f"no tar header and no end mark at byte {tarfile.offset}") from error


def _check_usable(path: Path, image: tarfile.TarInfo, label: tarfile.TarInfo | None) -> None:
    for info in (image, label):
        if info is not None and info.issparse():
            problem = "is sparse; write this tar again without --sparse"
            raise UserError(f"{path}: {info.name!r} at byte {info.offset} {problem}")
    if "\n" in image.name:
        raise UserError(f"{path}: {image.name!r} at byte {image.offset} has a line break in its name; rename it")


def _label(file: BinaryIO, info: tarfile.TarInfo | None) -> int:
    if info is None:
        return NO_LABEL
    file.seek(info.offset_data)
    return parse_label(file.read(info.size))
