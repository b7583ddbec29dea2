"""Tars made by others (webdataset's ShardWriter, `tar`, img2dataset): indexed once by walking their headers.

They are used as they are; tar_walker.py decides which members are images. A label may be stored away from its image,
as in a tar of all images and then all labels.
"""

import os
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
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

CHECKSUM_BYTES = 8  # in front of a kept index
SAMPLED_IMAGES, SAMPLED_BYTES = 256, 4096  # of each, that tell one tar from another with the same names and lengths
KEPT = "dcgan_dist/8"  # goes up with the arrays and with what is taken for a sample
EMPTY_BYTES = 20 * BLOCK  # of a tar without members
DEFAULT = MemberChoice()


def foreign_index(path: Path, choice: MemberChoice = DEFAULT) -> ShardIndex:
    """The index of a tar that carries none, from the cache if this very file (size, times) was walked before.

    Raises UserError when the file is no tar, is cut or damaged, or holds no images.
    """
    stat = path.stat()
    # the time of change too: `cp -p` of another tar keeps the time of modification
    identity = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}\n{stat.st_ctime_ns}"
    identity = f"{identity}\n{choice}"
    index = load_cached_index(identity, str(path))
    if index is None:
        index = walk(path, choice)
        save_cached_index(identity, index)
    return index


def load_cached_index(identity: str, name: str) -> ShardIndex | None:
    """The index that was kept of a file with this identity, for a shard of this name; None: there is none."""
    with suppress(OSError):
        kept = _kept(identity).read_bytes()
        if kept[:CHECKSUM_BYTES] == xxhash.xxh3_64_digest(kept[CHECKSUM_BYTES:]):
            return index_from_bytes(name, kept[CHECKSUM_BYTES:])
    return None


def save_cached_index(identity: str, index: ShardIndex) -> None:
    """Keeps an index; a full or read-only home costs the next start a walk, and nothing else."""
    blob = arrays_to_bytes(index)
    with suppress(UserError):
        write_atomically(_kept(identity), xxhash.xxh3_64_digest(blob) + blob)


def _kept(identity: str) -> Path:
    return cache_folder() / "indexes" / f"{xxhash.xxh3_128_hexdigest(os.fsencode(f'{KEPT}/{identity}'))}.index"


def walk(path: Path, choice: MemberChoice = DEFAULT) -> ShardIndex:
    """Builds the index of a tar from its headers; of the image data it reads a small sample, for the fingerprint."""
    with path.open("rb") as file:

        def load(info: Header) -> bytes:
            file.seek(info.offset_data)
            return file.read(info.size)

        found = TarWalker(str(path), members(str(path), file, os.fstat(file.fileno()).st_size), load, choice)
        rows = found.images_with_labels()
        sampled = _sample_bytes(file, [(row.offset, row.size) for row in rows])
    labels, words = number_labels([row.label for row in rows])
    notes = found.notes(len(rows), int((labels != NO_LABEL).sum()))
    return make_index(
        str(path),
        [
            (escape_newlines(row.name), row.suffix, row.offset, row.size, label)
            for row, label in zip(rows, labels.tolist(), strict=True)
        ],
        sampled=np.array([sampled], dtype=np.uint64),
        notes=replace(notes, words=words),
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
