"""Tars of other programs (webdataset's ShardWriter, `tar`, img2dataset), indexed once by reading all headers.

tar_walker.py decides which members are images. Labels may be stored apart from their images, as in a tar of all images
and then all labels.
"""

import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from dcgan_dist.data.shards.index import BLOCK, NO_LABEL, ShardIndex, arrays_to_bytes, index_from_bytes, make_index
from dcgan_dist.data.shards.labels import number_labels
from dcgan_dist.data.shards.samples import MemberChoice, escape_newlines
from dcgan_dist.data.shards.tar_walker import TarWalker
from dcgan_dist.data.shards.tarfiles import Header, compression, tar_members
from dcgan_dist.data.system.storage import cache_folder, write_atomically
from dcgan_dist.errors import UserError

CHECKSUM_BYTES = 8  # at the beginning of a cached index
SAMPLED_IMAGES, SAMPLED_BYTES = 256, 4096  # of each; they distinguish tars with the same names and lengths
CACHE_VERSION = "dcgan_dist/8"  # changes with the arrays and with the choice of samples
EMPTY_BYTES = 20 * BLOCK  # of a tar without members
DEFAULT = MemberChoice()


def foreign_index(path: Path, choice: MemberChoice = DEFAULT) -> ShardIndex:
    """The index of a tar without one, from the cache if this file (by path, size, times) is known.

    Raises UserError when the file is no tar, is cut or damaged.
    """
    stat = path.stat()
    # also st_ctime_ns, because `cp -p` of another tar preserves the time of modification
    identity = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}\n{stat.st_ctime_ns}"
    return cached_index(f"{identity}\n{choice}", str(path), lambda: walk(path, choice))


def cached_index(identity: str, name: str, make: Callable[[], ShardIndex]) -> ShardIndex:
    """The index of the file with this identity, for a shard of this name: the cached one, or a new one by `make`."""
    file = f"{xxhash.xxh3_128_hexdigest(os.fsencode(f'{CACHE_VERSION}/{identity}'))}.index"
    path = cache_folder() / "indexes" / file
    with suppress(OSError):
        cached = path.read_bytes()
        if cached[:CHECKSUM_BYTES] == xxhash.xxh3_64_digest(cached[CHECKSUM_BYTES:]):
            return index_from_bytes(name, cached[CHECKSUM_BYTES:])
    index = make()
    blob = arrays_to_bytes(index)
    with suppress(UserError):  # a full or read-only home costs the next start the same work, nothing else
        write_atomically(path, xxhash.xxh3_64_digest(blob) + blob)
    return replace(index, name=name)


def walk(path: Path, choice: MemberChoice = DEFAULT) -> ShardIndex:
    """Builds the index of a tar from its headers, and a fingerprint from a small part of the image data."""
    with path.open("rb") as file:
        headers = members(str(path), file, os.fstat(file.fileno()).st_size)
        found = TarWalker(str(path), headers, partial(read_member, file), choice)
        rows = found.joined(list(found.images()))  # a label may follow all images
        sampled = _sample_bytes(file, [(row.offset, row.size) for row in rows])
    labels, words = number_labels([row.label for row in rows])
    notes = replace(found.notes(len(rows), int((labels != NO_LABEL).sum())), words=words)
    pairs = zip(rows, labels.tolist(), strict=True)
    places = [(escape_newlines(row.name), row.suffix, row.offset, row.size, label) for row, label in pairs]
    return make_index(str(path), places, sampled=np.array([sampled], dtype=np.uint64), notes=notes)


def _sample_bytes(file: BinaryIO, images: list[tuple[int, int]]) -> int:
    """xxh3-64 of the middle of images (offset, length) spread over the tar; their first bytes are often the same."""
    digest = xxhash.xxh3_64()
    for place in np.unique(np.linspace(0, len(images) - 1, min(len(images), SAMPLED_IMAGES)).astype(int)).tolist():
        offset, length = images[place]
        part = min(length, SAMPLED_BYTES)
        file.seek(offset + (length - part) // 2)
        digest.update(file.read(part))
    return digest.intdigest()


def read_member(file: BinaryIO, info: Header) -> bytes:
    """The bytes of a member of an open tar."""
    file.seek(info.offset_data)
    return file.read(info.size)


def members(name: str, file: BinaryIO, size: int) -> Iterator[Header]:
    """The members of an open tar of `size` bytes; `name`: of the file, for messages. Raises UserError and TarError."""
    head = file.read(BLOCK)
    if not head:
        raise UserError(f"{name}: is empty")
    file.seek(0)
    try:
        info = None
        for _, info in tar_members(file, "r:"):
            info.cut = not info.issparse() and info.offset_data + info.size > size
            yield info
        if info is None and size > EMPTY_BYTES:
            raise UserError(f"{name}: holds nothing but zeros; copy it again")
    except tarfile.TarError as error:
        looks = "an HTML page" if head.lstrip()[:1] == b"<" else compression(head) or f"{size} bytes"
        raise type(error)(f"{error}; the file is {looks}") from error
