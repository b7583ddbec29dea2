"""The shard format: a plain WebDataset tar whose last member `__index__` says where every image lies.

    KEY.jpg, KEY.png and so on                  the encoded image, as it was; see formats.py for all suffixes
    KEY.ppm | KEY.pgm                           pixels at training size, so that the tar itself is an array
    KEY.cls                                     the label, where there is one
    __index__                                   arrays (safetensors), zeros, FOOTER, ending with its 512-byte block
    two zero blocks                             tar's end mark

webdataset skips names of the form `__x__`. The footer stands at a fixed distance from the end: one read of some bytes
opens a shard of any size, and a cut or foreign file is known at once; the arrays are read with the first image.
"""

import json
import os
import re
import struct
import tarfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors.numpy
import xxhash
from numpy.typing import NDArray

from dcgan_dist.data.images.formats import IMAGE_SUFFIXES
from dcgan_dist.data.shards.notes import Notes, from_dict
from dcgan_dist.data.system.storage import put_in_place, remove_abandoned, temporary_path
from dcgan_dist.errors import UserError

BLOCK = 512  # tar's unit
END_MARK = bytes(2 * BLOCK)
# magic; of the arrays: offset, length, xxh3-64; number of samples; fingerprint; xxh3-64 of all these
FOOTER = struct.Struct("<8sQQQQQQ")
MAGIC = b"DCGANIX2"  # ends with the version; shards of version 1 are read as tars of other programs
TAIL = FOOTER.size + len(END_MARK)
SKIPPED = re.compile(r"__[^/]*__($|/)")  # names that webdataset leaves out
NO_LABEL = -1
NO_CHECKSUMS = np.zeros(0, dtype=np.uint64)

ReadAt = Callable[[int, int], bytes]  # offset and length -> bytes of one file; fewer where the file ends


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Where the n images of one tar lie. The arrays have n entries, but for the last three."""

    name: str  # path or URL
    suffixes: tuple[str, ...]  # the image suffixes that occur
    suffix: NDArray[np.uint8]  # position in `suffixes`
    offset: NDArray[np.int64]  # first byte of the image in the tar
    length: NDArray[np.int64]  # bytes of the image
    label: NDArray[np.int64]  # NO_LABEL: none
    key_text: bytes  # the keys, joined by newlines
    start: NDArray[np.int64]  # n + 1: first byte of every sample with its tar headers, and the end of the last; or none
    checksum: NDArray[np.uint64]  # xxh3-64 of the bytes of every sample, start[i] to start[i + 1]; or none
    sampled: NDArray[np.uint64]  # one xxh3-64 of bytes of many images, where there are no checksums; or none
    notes: Notes = field(default_factory=Notes)

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def nbytes(self) -> int:
        """Of memory."""
        return len(self.key_text) + sum(array.nbytes for array in vars(self).values() if isinstance(array, np.ndarray))

    @property
    def checked(self) -> bool:
        """Whether it has checksums; tars made by other programs have none."""
        return len(self.checksum) > 0

    @cached_property
    def keys(self) -> list[str]:
        """The name of every sample, without suffix."""
        return self.key_text.decode(errors="surrogateescape").split("\n") if len(self) else []

    @cached_property
    def fingerprint(self) -> int:
        """64 bits that change when a sample is added, removed, renamed, reordered, replaced or labelled otherwise.

        Without checksums, a replacement is noticed only where bytes of the image are among those sampled.
        """
        content = self.checksum if self.checked else np.append(self.label, self.sampled.view(np.int64))
        words = "\n".join(self.notes.words).encode(errors="surrogateescape")
        return xxhash.xxh3_64_intdigest(self.key_text + self.length.tobytes() + content.tobytes() + words)

    def describe(self, member: int) -> str:
        """'shard.tar: KEY.jpg at byte 1536', for messages."""
        suffix = self.suffixes[self.suffix[member]]
        return f"{self.name}: {self.keys[member]}.{suffix} at byte {self.offset[member]}"


def corpus_fingerprint(shards: Iterable[int]) -> str:
    """Of the fingerprints of several shards in their order, 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(repr(list(shards)).encode())


@dataclass(frozen=True, kw_only=True)
class Footer:
    """The footer: the last bytes of a shard."""

    start: int
    length: int
    checksum: int
    count: int  # of samples
    fingerprint: int  # that of the ShardIndex

    @property
    def file_size(self) -> int:
        """Size of the complete shard, bytes."""
        return self.start + -(-(self.length + FOOTER.size) // BLOCK) * BLOCK + len(END_MARK)


def join_keys(keys: Sequence[str]) -> bytes:
    """The `key_text` of an index; file names that are not UTF-8 survive it."""
    return "\n".join(keys).encode(errors="surrogateescape")


def arrays_to_bytes(index: ShardIndex) -> bytes:
    """The index without its name. A single metadata entry, because safetensors does not keep the order of several."""
    arrays = {
        "suffix": index.suffix,
        "offset": index.offset,
        "length": index.length,
        "label": index.label,
        "keys": np.frombuffer(index.key_text, dtype=np.uint8),
        "start": index.start,
        "checksum": index.checksum,
    }
    arrays |= {} if index.checked else {"sampled": index.sampled}
    about = {"suffixes": list(index.suffixes)} | index.notes.as_dict()
    return safetensors.numpy.save(arrays, metadata={"dcgan_dist": json.dumps(about)})


def index_from_bytes(name: str, blob: bytes) -> ShardIndex:
    """The inverse of arrays_to_bytes; `name` is the path or URL of the shard."""
    arrays = safetensors.numpy.load(blob)
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    about = json.loads(header["__metadata__"]["dcgan_dist"])
    return ShardIndex(
        name=name,
        suffixes=tuple(about["suffixes"]),
        suffix=arrays["suffix"],
        offset=arrays["offset"],
        length=arrays["length"],
        label=arrays["label"],
        key_text=arrays["keys"].tobytes(),
        start=arrays["start"],
        checksum=arrays["checksum"],
        sampled=arrays.get("sampled", NO_CHECKSUMS),
        notes=from_dict(about),
    )


def read_footer(name: str, size: int, read: ReadAt) -> Footer | None:
    """The footer of a shard of `size` bytes; None where there is none (a tar of another program, or no tar at all).

    Raises UserError when it is damaged.
    """
    tail = read(max(size - TAIL, 0), TAIL)
    if len(tail) < TAIL or tail[:8] != MAGIC or tail[FOOTER.size :] != END_MARK:
        return None
    _, start, length, checksum, count, fingerprint, own = FOOTER.unpack_from(tail)
    footer = Footer(start=start, length=length, checksum=checksum, count=count, fingerprint=fingerprint)
    if xxhash.xxh3_64_intdigest(tail[: FOOTER.size - 8]) != own or footer.file_size != size:
        raise UserError(f"{name}: its index is damaged, or bytes before it are missing; copy or write this shard again")
    return footer


def load_index(name: str, footer: Footer, read: ReadAt) -> ShardIndex:
    """The index that a footer announces. Raises UserError when it is damaged."""
    zeros = -(footer.length + FOOTER.size) % BLOCK
    data = read(footer.start, footer.length + zeros)
    blob = data[: footer.length]
    if xxhash.xxh3_64_intdigest(blob) != footer.checksum or data[footer.length :] != bytes(zeros):
        raise UserError(f"{name}: the index at byte {footer.start} is damaged; copy or write this shard again")
    return index_from_bytes(name, blob)


def read_index(path: Path) -> ShardIndex | None:
    """The index that a local shard carries; None when it carries none (a tar made by another program, or no tar).

    Raises UserError when the file is missing or unreadable, or its index is damaged.
    """
    try:
        with path.open("rb") as file:

            def read(offset: int, length: int) -> bytes:
                return os.pread(file.fileno(), length, offset)

            footer = read_footer(str(path), os.fstat(file.fileno()).st_size, read)
            return None if footer is None else load_index(str(path), footer, read)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


class ShardWriter:
    """Writes one shard: `with ShardWriter(path) as shard: shard.add(key, "jpg", data, label)`.

    The file appears under its name only when it is complete and on disk; leaving by an exception leaves nothing. Its
    bytes depend on the samples alone. Afterwards `size` (bytes), `checksum` (xxh3-128 of the file, hexadecimal) and
    `fingerprint` (of the index) say what was written.
    """

    size: int
    checksum: str
    fingerprint: int

    def __init__(self, path: Path, new: bool = False) -> None:
        """`new`: a file that is there is not replaced."""
        self._path, self._new = path, new
        self._temporary = temporary_path(path)
        self._rows: list[tuple[int, int, str, int]] = []  # offset, length, suffix, label
        self._keys: dict[str, None] = {}
        self._starts = [0]
        self._checksums: list[int] = []
        self._file_hash = xxhash.xxh3_128()
        self._sample = xxhash.xxh3_64()
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
        self._starts.append(self._file.tell())
        self._checksums.append(self._sample.intdigest())
        self._sample.reset()

    def _write(self, data: bytes) -> None:
        for write in (self._sample.update, self._file_hash.update, self._file.write):
            write(data)

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
        suffixes = tuple(sorted({row[2] for row in self._rows}))
        index = ShardIndex(
            name=str(self._path),
            suffixes=suffixes,
            suffix=np.array([suffixes.index(row[2]) for row in self._rows], dtype=np.uint8),
            offset=np.array([row[0] for row in self._rows], dtype=np.int64),
            length=np.array([row[1] for row in self._rows], dtype=np.int64),
            label=np.array([row[3] for row in self._rows], dtype=np.int64),
            key_text=join_keys(list(self._keys)),
            start=np.array(self._starts, dtype=np.int64),
            checksum=np.array(self._checksums, dtype=np.uint64),
            sampled=NO_CHECKSUMS,
        )
        blob = arrays_to_bytes(index)
        about = (self._file.tell() + BLOCK, len(blob), xxhash.xxh3_64_intdigest(blob), len(index), index.fingerprint)
        footer = FOOTER.pack(MAGIC, *about, 0)[:-8]
        footer += xxhash.xxh3_64_intdigest(footer).to_bytes(8, "little")
        self._member("__index__", blob + bytes(-(len(blob) + len(footer)) % BLOCK) + footer)
        self._write(END_MARK)
        self.size, self.checksum = self._file.tell(), self._file_hash.hexdigest()
        self.fingerprint = index.fingerprint
        self._file.flush()
        os.fsync(self._file.fileno())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
                self._file.close()
                put_in_place(self._temporary, self._path, self._new)
        finally:
            with suppress(OSError):  # a full disk fails again at the bytes that are still to be written
                self._file.close()
            self._temporary.unlink(missing_ok=True)
