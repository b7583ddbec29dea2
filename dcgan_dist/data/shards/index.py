"""The shard format: a plain WebDataset tar whose last member `__index__` gives the place of every image.

    KEY.jpg, KEY.png and so on                  the encoded image, as it was; see formats.py for all suffixes
    KEY.ppm | KEY.pgm                           pixels at training size, so that the tar itself is an array
    KEY.cls                                     the label, where there is one
    __index__                                   arrays (safetensors), zeros, FOOTER, ending with its 512-byte block
    two zero blocks                             tar's end mark

webdataset skips names of the form `__x__`. The footer is at a fixed distance from the end: one read of some bytes
opens a shard of any size, and a cut or foreign file is known at once; the arrays are read with the first image.
"""

import json
import os
import re
import struct
import tarfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.numpy
import xxhash
from numpy.typing import NDArray

from dcgan_dist.data.images.formats import IMAGE_SUFFIXES
from dcgan_dist.data.shards.notes import Notes, from_dict
from dcgan_dist.data.system.storage import atomic_file, remove_abandoned
from dcgan_dist.errors import UserError, os_error_as_user_error

INDEX = "__index__"  # name of the member
BLOCK = 512  # tar's unit
NAME_FIELD = 100  # bytes of a tar header
END_MARK = bytes(2 * BLOCK)
# magic; of the arrays: offset, length, xxh3-64; number of samples; fingerprint; xxh3-64 of all these
FOOTER = struct.Struct("<8sQQQQQQ")
MAGIC = b"DCGANIX2"  # ends with the version; shards of version 1 are read as tars of other programs
TAIL = FOOTER.size + len(END_MARK)
SKIPPED = re.compile(r"__[^/]*__($|/)")  # names that webdataset leaves out
NO_LABEL = -1
ARRAYS = ("suffix", "offset", "length", "label", "start", "checksum", "sampled")  # of ShardIndex, as they are stored
TEMPLATE = tarfile.TarInfo("").tobuf(tarfile.PAX_FORMAT)
# a header's checksum is the sum of its bytes, its own field taken as spaces; here without name and size
REST_OF_CHECKSUM = sum(TEMPLATE[NAME_FIELD:124]) + sum(TEMPLATE[136:148]) + 8 * ord(" ") + sum(TEMPLATE[156:])

ReadAt = Callable[[int, int], bytes]  # offset and length -> bytes of one file; fewer where the file ends


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The places of the n images of one tar. The arrays have n entries, except the last three."""

    name: str  # path or URL
    suffixes: tuple[str, ...]  # the image suffixes that occur
    suffix: NDArray[np.uint8]  # position in `suffixes`
    offset: NDArray[np.int64]  # first byte of the image in the tar
    length: NDArray[np.int64]  # bytes of the image
    label: NDArray[np.int64]  # NO_LABEL: none
    key_text: bytes  # the keys, joined by newlines
    # n + 1: first byte of every sample with its tar headers, and the end of the last; or none
    start: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    # xxh3-64 of the bytes of every sample, start[i] to start[i + 1]; or none
    checksum: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    # one xxh3-64 of bytes of many images, where there are no checksums; or none
    sampled: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
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


Row = tuple[str, str, int, int, int]  # of an image: key, suffix, offset, length, label


def make_index(name: str, rows: Sequence[Row], **others: Any) -> ShardIndex:
    """The index of these images; `others`: the fields of ShardIndex that follow key_text."""
    keys, suffix, offset, length, label = zip(*rows, strict=True) if rows else ((),) * 5
    suffixes = tuple(sorted(set(suffix)))
    return ShardIndex(
        name=name,
        suffixes=suffixes,
        suffix=np.array([suffixes.index(each) for each in suffix], dtype=np.uint8),
        offset=np.array(offset, dtype=np.int64),
        length=np.array(length, dtype=np.int64),
        label=np.array(label, dtype=np.int64),
        key_text="\n".join(keys).encode(errors="surrogateescape"),  # file names may not be UTF-8
        **others,
    )


def corpus_fingerprint(shards: Iterable[int]) -> str:
    """Of the fingerprints of several shards in their order, 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(repr(list(shards)).encode())


@dataclass(frozen=True)
class Footer:
    """The footer: the last bytes of a shard."""

    start: int
    length: int
    checksum: int
    count: int  # of samples
    fingerprint: int  # that of the ShardIndex

    @classmethod
    def unpack(cls, data: bytes) -> "Footer | None":
        """The footer that some bytes begin with; None when it is damaged."""
        _, *numbers, own = FOOTER.unpack_from(data)
        return cls(*numbers) if xxhash.xxh3_64_intdigest(data[: FOOTER.size - 8]) == own else None

    @property
    def file_size(self) -> int:
        """Size of the complete shard, bytes."""
        return self.start + -(-(self.length + FOOTER.size) // BLOCK) * BLOCK + len(END_MARK)


def arrays_to_bytes(index: ShardIndex) -> bytes:
    """The index without its name. A single metadata entry, because safetensors does not keep the order of several."""
    arrays = {name: getattr(index, name) for name in ARRAYS if name != "sampled" or not index.checked}
    arrays["keys"] = np.frombuffer(index.key_text, dtype=np.uint8)
    about = {"suffixes": list(index.suffixes)} | index.notes.as_dict()
    return safetensors.numpy.save(arrays, metadata={"dcgan_dist": json.dumps(about)})


def index_from_bytes(name: str, blob: bytes) -> ShardIndex:
    """The inverse of arrays_to_bytes; `name` is the path or URL of the shard."""
    arrays = safetensors.numpy.load(blob)
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    about = json.loads(header["__metadata__"]["dcgan_dist"])
    keys, suffixes, notes = arrays.pop("keys").tobytes(), tuple(about["suffixes"]), from_dict(about)
    return ShardIndex(name=name, suffixes=suffixes, key_text=keys, notes=notes, **arrays)


def read_footer(name: str, size: int, read: ReadAt) -> Footer | None:
    """The footer of a shard of `size` bytes; None where there is none (a tar of another program, or no tar at all).

    Raises UserError when it is damaged.
    """
    tail = read(max(size - TAIL, 0), TAIL)
    if len(tail) < TAIL or tail[:8] != MAGIC or tail[FOOTER.size :] != END_MARK:
        return None
    footer = Footer.unpack(tail)
    if footer is None or footer.file_size != size:
        raise UserError(f"{name}: its index is damaged, or bytes before it are missing; copy or write this shard again")
    return footer


def load_index(name: str, footer: Footer, read: ReadAt) -> ShardIndex:
    """The index that a footer refers to. Raises UserError when it is damaged."""
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
    with os_error_as_user_error(path, "cannot be read"), path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            return os.pread(file.fileno(), length, offset)

        footer = read_footer(str(path), os.fstat(file.fileno()).st_size, read)
        return None if footer is None else load_index(str(path), footer, read)


def member_bytes(name: str, data: bytes) -> bytes:
    """A member of a tar as ShardWriter writes it."""
    if name.isascii() and len(name) < NAME_FIELD:  # the same bytes as below, in a tenth of the time
        raw, size = name.encode(), b"%011o\0" % len(data)
        checksum = b"%06o\0 " % (sum(raw) + sum(size) + REST_OF_CHECKSUM)
        head = raw.ljust(NAME_FIELD, b"\0") + TEMPLATE[NAME_FIELD:124] + size + TEMPLATE[136:148]
        return b"".join((head, checksum, TEMPLATE[156:], data, bytes(-len(data) % BLOCK)))
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % BLOCK)


class ShardWriter:
    """Writes one shard: `with ShardWriter(path) as shard: shard.add(key, "jpg", data, label)`.

    The file appears under its name only when it is complete and on disk; an exception leaves nothing behind. Its bytes
    depend only on the samples. Afterwards `size` (bytes), `checksum` (xxh3-128 of the file, hexadecimal) and
    `fingerprint` (of the index) describe what was written.
    """

    size: int
    checksum: str
    fingerprint: int

    def __init__(self, path: Path, new: bool = False) -> None:
        """`new`: an existing file is not replaced."""
        self._path, self._new = path, new
        self._rows: list[Row] = []
        self._keys: set[str] = set()
        self._starts, self._checksums = [0], list[int]()
        self._file_hash = xxhash.xxh3_128()
        self._stack = ExitStack()
        self._file: BinaryIO

    def __enter__(self) -> "ShardWriter":
        remove_abandoned(self._path)
        self._file = self._stack.enter_context(atomic_file(self._path, new=self._new))
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
        start, image = self._starts[-1], member_bytes(f"{key}.{suffix}", data)
        sample = image if label is None else image + member_bytes(f"{key}.cls", str(label).encode())
        self._write(sample)
        offset = start + len(image) - -(-len(data) // BLOCK) * BLOCK
        self._rows.append((key, suffix, offset, len(data), NO_LABEL if label is None else label))
        self._keys.add(key)
        self._starts.append(start + len(sample))
        self._checksums.append(xxhash.xxh3_64_intdigest(sample))

    def _write(self, data: bytes) -> None:
        self._file_hash.update(data)
        self._file.write(data)

    def _finish(self) -> None:
        start, checksum = np.array(self._starts, dtype=np.int64), np.array(self._checksums, dtype=np.uint64)
        index = make_index(str(self._path), self._rows, start=start, checksum=checksum)
        blob = arrays_to_bytes(index)
        about = (self._starts[-1] + BLOCK, len(blob), xxhash.xxh3_64_intdigest(blob), len(index), index.fingerprint)
        footer = FOOTER.pack(MAGIC, *about, 0)[:-8]
        footer += xxhash.xxh3_64_intdigest(footer).to_bytes(8, "little")
        self._write(member_bytes(INDEX, blob + bytes(-(len(blob) + len(footer)) % BLOCK) + footer) + END_MARK)
        self.size, self.checksum = self._file.tell(), self._file_hash.hexdigest()
        self.fingerprint = index.fingerprint

    def __exit__(self, *error: Any) -> None:
        if error[0] is not None:
            self._stack.__exit__(*error)
            return
        with self._stack:
            self._finish()
