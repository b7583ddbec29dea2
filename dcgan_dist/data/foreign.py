"""Tars made by others (webdataset's ShardWriter, `tar`, img2dataset): indexed once by walking their headers, used as they are.

The grouping of members into samples is webdataset's own: a key ends at the first dot of the file name, the suffix is lower
case, members of one sample stand together, names like `__x__` are skipped.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash

from dcgan_dist.data.index import BLOCK, IMAGE_SUFFIXES, ShardIndex, arrays_to_bytes, index_from_bytes
from dcgan_dist.data.storage import cache_folder, write_atomically
from dcgan_dist.errors import UserError

KEY_AND_SUFFIX = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
SKIPPED = re.compile(r"__[^/]*__($|/)")

Members = dict[str, tarfile.TarInfo]


def foreign_index(path: Path) -> ShardIndex:
    """The index of a tar that carries none, from the cache if this very file (size, time) was walked before.

    Raises UserError when the file is no tar, is cut or damaged, or holds no images.
    """
    stat = path.stat()
    name = xxhash.xxh3_128_hexdigest(f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}")
    cached = cache_folder() / "indexes" / f"{name}.safetensors"
    if cached.exists():
        return index_from_bytes(path, cached.read_bytes())
    index = walk(path)
    write_atomically(cached, arrays_to_bytes(index, checksums=()))
    return index


def walk(path: Path) -> ShardIndex:
    """Builds the index of a tar from its headers; reads no image data."""
    rows: list[tuple[str, str, tarfile.TarInfo, int]] = []
    with path.open("rb") as file:
        for key, members in _samples(path, file):
            suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in members), None)
            if suffix is not None:
                rows.append((key, suffix, members[suffix], _label(file, members.get("cls"))))
    if not rows:
        raise UserError(f"{path}: holds no images ({', '.join('.' + suffix for suffix in IMAGE_SUFFIXES)})")
    suffixes = tuple(sorted({row[1] for row in rows}))
    return ShardIndex(
        path=path,
        suffixes=suffixes,
        suffix=np.array([suffixes.index(row[1]) for row in rows], dtype=np.uint8),
        offset=np.array([row[2].offset_data for row in rows], dtype=np.int64),
        length=np.array([row[2].size for row in rows], dtype=np.int64),
        label=np.array([row[3] for row in rows], dtype=np.int64),
        key_text="\n".join(row[0] for row in rows).encode(),
    )


def _samples(path: Path, file: "tarfile._Fileobj") -> Iterator[tuple[str, Members]]:
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
            raise UserError(f"{path}: two members named {info.name}, the second at byte {info.offset}")
        members[suffix] = info
    if key is not None:
        yield key, members


def _members(path: Path, file: "tarfile._Fileobj") -> Iterator[tarfile.TarInfo]:
    """All members; unlike tarfile alone, refuses an archive that ends without an end mark or stops at a bad header."""
    head = file.read(BLOCK)
    if not head:
        raise UserError(f"{path}: is empty")
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            yield from tar
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        looks = "an HTML page" if head.lstrip()[:1] == b"<" else f"{path.stat().st_size} bytes"
        raise UserError(f"{path}: not a readable tar, or cut ({error}; the file is {looks})") from error
    file.seek(end)
    if file.read(BLOCK) != bytes(BLOCK):
        what = "is cut" if end >= file.seek(0, os.SEEK_END) else "is damaged"
        raise UserError(f"{path}: {what} at byte {end}: no tar header and no end mark there")


def _label(file: "tarfile._Fileobj", info: tarfile.TarInfo | None) -> int:
    if info is None:
        return -1
    file.seek(info.offset_data)
    text = file.read(info.size)
    return int(text) if text.strip().isdigit() else -1
