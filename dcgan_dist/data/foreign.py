"""Tars made by others (webdataset's ShardWriter, `tar`, img2dataset): indexed once by walking their headers.

They are used as they are. The grouping of members into samples is webdataset's own: a key ends at the first dot of the
file name, the suffix is lower case, members of one sample stand together, names like `__x__` are skipped.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from dcgan_dist.data.index import (
    BLOCK,
    IMAGE_SUFFIXES,
    NO_LABEL,
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
CHECKSUM_BYTES = 8  # in front of a kept index

Members = dict[str, tarfile.TarInfo]


def foreign_index(path: Path) -> ShardIndex:
    """The index of a tar that carries none, from the cache if this very file (size, time) was walked before.

    Raises UserError when the file is no tar, is cut or damaged, or holds no images.
    """
    stat = path.stat()
    name = xxhash.xxh3_128_hexdigest(os.fsencode(f"2\n{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}"))
    cached = cache_folder() / "indexes" / f"{name}.index"
    with suppress(OSError):
        kept = cached.read_bytes()
        if kept[:CHECKSUM_BYTES] == xxhash.xxh3_64_digest(kept[CHECKSUM_BYTES:]):
            return index_from_bytes(str(path), kept[CHECKSUM_BYTES:])
    index = walk(path)
    blob = arrays_to_bytes(index)
    with suppress(UserError):  # a full or read-only home costs the next start a walk, and nothing else
        write_atomically(cached, xxhash.xxh3_64_digest(blob) + blob)
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
        name=str(path),
        suffixes=suffixes,
        suffix=np.array([suffixes.index(row[1]) for row in rows], dtype=np.uint8),
        offset=np.array([row[2].offset_data for row in rows], dtype=np.int64),
        length=np.array([row[2].size for row in rows], dtype=np.int64),
        label=np.array([row[3] for row in rows], dtype=np.int64),
        key_text=join_keys([row[0] for row in rows]),
        start=np.zeros(0, dtype=np.int64),
        checksum=np.zeros(0, dtype=np.uint64),
    )


def _samples(path: Path, file: BinaryIO) -> Iterator[tuple[str, Members]]:
    key, members = None, Members()
    for info in _members(path, file):
        match = KEY_AND_SUFFIX.match(info.name)
        if match is None or not info.isreg() or SKIPPED.match(info.name):
            continue
        if info.issparse() or "\n" in info.name:
            raise UserError(f"{path}: {info.name!r} at byte {info.offset} is sparse, or has a line break in its name")
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


def _members(path: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """All members; unlike tarfile alone, refuses an archive that stops at a bad header or goes on after its end."""
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
        what = "is cut" if end + BLOCK > file.seek(0, os.SEEK_END) else "is damaged"
        raise UserError(f"{path}: {what} at byte {end}: no tar header and no end mark there")
    while rest := file.read(2**20):
        if rest.strip(b"\0"):
            raise UserError(f"{path}: is damaged at byte {end}, or several tars in one: more data after the end mark")


def _label(file: BinaryIO, info: tarfile.TarInfo | None) -> int:
    if info is None:
        return NO_LABEL
    file.seek(info.offset_data)
    return parse_label(file.read(info.size))
