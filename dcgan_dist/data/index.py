"""The shard format: a plain WebDataset tar whose last member `__index__` says where every image lies.

    KEY.jpg | KEY.jpeg | KEY.png | KEY.webp     the encoded image, as it was
    KEY.ppm | KEY.pgm                           pixels at training size, so that the tar itself is an array
    KEY.cls                                     the label, where there is one
    __index__                                   arrays (safetensors), zeros, FOOTER, ending with its 512-byte block
    two zero blocks                             tar's end mark

`tar`, webdataset and image viewers see an ordinary tar: webdataset skips names of the form `__x__`. The footer stands
at a fixed distance from the end: one read opens a shard of any size, and a cut or foreign file is known at once.
"""

import json
import os
import re
import struct
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import safetensors.numpy
import xxhash
from numpy.typing import NDArray

from dcgan_dist.data.storage import remove_abandoned, temporary_path
from dcgan_dist.errors import UserError

BLOCK = 512  # tar's unit
END_MARK = bytes(2 * BLOCK)
FOOTER = struct.Struct("<8sQQQ")  # magic, offset of the arrays, their length, their xxh3-64
MAGIC = b"DCGANIX1"
VERSION = 1  # of the arrays
CHECKED_TOGETHER = 64  # samples under one checksum
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "ppm", "pgm")
SKIPPED = re.compile(r"__[^/]*__($|/)")  # names that webdataset leaves out
NO_LABEL = -1


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Where the n images of one tar lie. All arrays have n entries."""

    path: Path
    suffixes: tuple[str, ...]  # the image suffixes that occur
    suffix: NDArray[np.uint8]  # position in `suffixes`
    offset: NDArray[np.int64]  # first byte of the image in the tar
    length: NDArray[np.int64]  # bytes of the image
    label: NDArray[np.int64]  # NO_LABEL: none
    key_text: bytes  # the keys, joined by newlines

    def __len__(self) -> int:
        return len(self.offset)

    @cached_property
    def keys(self) -> list[str]:
        """The name of every sample, without suffix."""
        return self.key_text.decode(errors="surrogateescape").split("\n") if len(self) else []

    @cached_property
    def fingerprint(self) -> int:
        """64 bits that change when a sample is added, removed, renamed, reordered or re-encoded to another length."""
        return xxhash.xxh3_64_intdigest(self.key_text + self.length.tobytes())

    def describe(self, member: int) -> str:
        """'shard.tar: KEY.jpg at byte 1536', for messages."""
        name = f"{self.keys[member]}.{self.suffixes[self.suffix[member]]}"
        return f"{self.path}: {name} at byte {self.offset[member]}"


def parse_label(text: bytes) -> int:
    """The label in a .cls member; NO_LABEL for what is not a number of at most 18 digits."""
    text = text.strip()
    return int(text) if text.isdigit() and len(text) <= 18 else NO_LABEL


def join_keys(keys: Sequence[str]) -> bytes:
    """The `key_text` of an index; file names that are not UTF-8 survive it."""
    return "\n".join(keys).encode(errors="surrogateescape")


def arrays_to_bytes(index: ShardIndex, checksums: Sequence[int]) -> bytes:
    """The index without its path. A single metadata entry, because safetensors does not keep the order of several."""
    arrays = {
        "suffix": index.suffix,
        "offset": index.offset,
        "length": index.length,
        "label": index.label,
        "keys": np.frombuffer(index.key_text, dtype=np.uint8),
        "checksum": np.asarray(checksums, dtype=np.uint64),
    }
    about = {"version": VERSION, "suffixes": list(index.suffixes), "checked_together": CHECKED_TOGETHER}
    return safetensors.numpy.save(arrays, metadata={"dcgan_dist": json.dumps(about)})


def index_from_bytes(path: Path, blob: bytes) -> ShardIndex:
    """The inverse of arrays_to_bytes. Raises ValueError when the bytes are something else."""
    arrays = safetensors.numpy.load(blob)
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    about = json.loads(header["__metadata__"]["dcgan_dist"])
    if about["version"] != VERSION:
        raise UserError(f"{path}: its index has version {about['version']}, this program reads {VERSION}; update it")
    return ShardIndex(
        path=path,
        suffixes=tuple(about["suffixes"]),
        suffix=arrays["suffix"],
        offset=arrays["offset"],
        length=arrays["length"],
        label=arrays["label"],
        key_text=arrays["keys"].tobytes(),
    )


def read_index(path: Path) -> ShardIndex | None:
    """The index that a shard carries; None when it carries none (a tar made by another program, or no tar at all).

    Raises UserError when the file is missing or unreadable, or its index is damaged.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            tail = FOOTER.size + len(END_MARK)
            if size < tail:
                return None
            file.seek(size - tail)
            magic, start, length, checksum = FOOTER.unpack(file.read(FOOTER.size))
            if magic != MAGIC or file.read() != END_MARK:
                return None
            if start + length > size:
                raise UserError(f"{path}: the last bytes of its index are damaged; copy or write this shard again")
            file.seek(start)
            blob = file.read(length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if xxhash.xxh3_64_intdigest(blob) != checksum:
        raise UserError(f"{path}: the index at byte {start} is damaged; copy or write this shard again")
    return index_from_bytes(path, blob)


class ShardWriter:
    """Writes one shard: `with ShardWriter(path) as shard: shard.add(key, "jpg", data, label)`.

    The file appears under its name only when it is complete and on disk; leaving by an exception leaves nothing. The
    bytes depend on the samples alone: no times, no owners.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = temporary_path(path)
        self._rows: list[tuple[int, int, str, int]] = []
        self._keys: dict[str, None] = {}
        self._checksums: list[int] = []
        self._running = xxhash.xxh3_64()
        self._file: BinaryIO

    def __enter__(self) -> "ShardWriter":
        remove_abandoned(self._path)
        self._file = self._temporary.open("wb")
        return self

    def add(self, key: str, suffix: str, data: bytes, label: int | None = None) -> None:
        """Appends one image and its label.

        Keys must be distinct; their last part holds no dot, for webdataset ends a key at the first, and their first
        part is not of the form `__x__`, which it skips. Raises ValueError for any other.
        """
        last = key.rsplit("/", 1)[-1]
        if not last or "." in last or "\n" in key or SKIPPED.match(f"{key}.") or suffix not in IMAGE_SUFFIXES:
            raise ValueError(f"not a sample name: {key!r} . {suffix!r}")
        if key in self._keys:
            raise ValueError(f"two samples named {key!r}")
        start = self._member(f"{key}.{suffix}", data)
        if label is not None:
            self._member(f"{key}.cls", str(label).encode())
        self._rows.append((start, len(data), suffix, NO_LABEL if label is None else label))
        self._keys[key] = None
        if len(self._rows) % CHECKED_TOGETHER == 0:
            self._end_of_checked()

    def _end_of_checked(self) -> None:
        self._checksums.append(self._running.intdigest())
        self._running = xxhash.xxh3_64()

    def _write(self, data: bytes) -> None:
        self._running.update(data)
        self._file.write(data)

    def _member(self, name: str, data: bytes) -> int:
        """Writes a tar member and returns the offset of its data."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._write(info.tobuf(tarfile.PAX_FORMAT))
        start = self._file.tell()
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))
        return start

    def _finish(self) -> None:
        if len(self._rows) % CHECKED_TOGETHER:
            self._end_of_checked()
        suffixes = tuple(sorted({row[2] for row in self._rows}))
        index = ShardIndex(
            path=self._path,
            suffixes=suffixes,
            suffix=np.array([suffixes.index(row[2]) for row in self._rows], dtype=np.uint8),
            offset=np.array([row[0] for row in self._rows], dtype=np.int64),
            length=np.array([row[1] for row in self._rows], dtype=np.int64),
            label=np.array([row[3] for row in self._rows], dtype=np.int64),
            key_text=join_keys(list(self._keys)),
        )
        blob = arrays_to_bytes(index, self._checksums)
        footer = FOOTER.pack(MAGIC, self._file.tell() + BLOCK, len(blob), xxhash.xxh3_64_intdigest(blob))
        self._member("__index__", blob + bytes(-(len(blob) + len(footer)) % BLOCK) + footer)
        self._file.write(END_MARK)
        self._file.flush()
        os.fsync(self._file.fileno())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
                self._file.close()
                self._temporary.replace(self._path)
        finally:
            with suppress(OSError):  # a full disk fails again at the bytes that are still to be written
                self._file.close()
            self._temporary.unlink(missing_ok=True)
