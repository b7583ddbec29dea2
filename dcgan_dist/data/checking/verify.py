"""Is a shard intact? Every tar header, checksum and index entry, what the manifest says, and if wanted every image."""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from dcgan_dist.data.checking.access import CHUNK, Job, Passage, UnreadableError, opened
from dcgan_dist.data.checking.indexed import IndexedSample, find_index, find_moved_index, is_index_member
from dcgan_dist.data.images.codecs import open_image, to_rgb_or_grey
from dcgan_dist.data.shards.foreign import members
from dcgan_dist.data.shards.index import INDEX, Footer, ReadAt, ShardIndex
from dcgan_dist.data.shards.tar_walker import FoundImage, TarWalker
from dcgan_dist.data.shards.tarfiles import Header
from dcgan_dist.errors import UserError

MOST_BYTES = 2**30  # of an image file that is decoded
AT_BYTE = re.compile(r" at byte (\d+)")
NETPBM = re.compile(rb"P([56])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong."""

    shard: str
    """Path or URL."""
    kind: str
    """missing, unreadable, structure, index, checksum, image, manifest or extra."""
    what: str
    key: str | None = None
    """Of the sample."""
    byte: int | None = None
    """Where in the shard."""

    def __str__(self) -> str:
        place = "" if self.byte is None or AT_BYTE.search(self.what) else f" at byte {self.byte}"
        return f"{self.shard}{f': {self.key}' if self.key else ''}{place}: {self.what}"


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What was found in one shard."""

    name: str
    bytes: int
    samples: int
    checked: bool
    """Whether the shard carries checksums; tars made by other programs carry none."""
    sizes: dict[str, int]
    """Images of each "WIDTHxHEIGHT", where all were decoded."""
    problems: tuple[Problem, ...]
    passed: dict[str, int] = field(default_factory=dict)
    """Members of a tar of another program that are not used, by their endings."""


def check_shard(job: Job, tick: Callable[[int], None]) -> ShardReport:
    """Everything that is wrong with one shard; read once, from front to back, a few megabytes at a time.

    `tick` is called with the number of bytes as they are read.
    """
    check = _Check(job)
    try:
        with opened(job) as (read, size):
            check.run(read, size, tick)
    except UserError as error:
        check.note("unreadable", str(error).removeprefix(f"{check.name}: "))
    return ShardReport(
        name=check.name,
        bytes=check.size,
        samples=check.samples,
        checked=check.checked,
        sizes=dict(check.sizes),
        problems=tuple(check.problems),
        passed=dict(check.passed),
    )


class _Check:
    def __init__(self, job: Job) -> None:
        self.job, self.name = job, job.shown
        self.size = self.samples = 0
        self.checked = False
        self.sizes, self.passed = Counter[str](), Counter[str]()
        self.problems: list[Problem] = []

    def note(self, kind: str, what: str, key: str | None = None, byte: int | None = None) -> None:
        # names in tars may hold line breaks, and what is no text
        key = None if key is None else key.encode(errors="replace").decode().replace("\n", " ")
        self.problems.append(Problem(shard=self.name, kind=kind, what=what, key=key, byte=byte))

    def run(self, read: ReadAt, size: int, tick: Callable[[int], None]) -> None:
        self.size, entry = size, self.job.entry
        if entry and size != entry.bytes:
            self.note("manifest", f"{size:,} bytes, but {entry.bytes:,} in the manifest")
        found = self._index(read)
        placed = (*found, 0) if found else find_moved_index(self.name, size, read)
        passage = Passage(read, size, tick)
        with io.BufferedReader(passage, CHUNK) as file:
            if placed is None:
                self._walked(file)
            else:
                self._indexed(file, *placed)
            if entry and self.samples != entry.samples:
                self.note("manifest", f"{self.samples:,} samples, but {entry.samples:,} in the manifest")
            if entry and not self.problems and passage.checksum() != entry.xxh128:
                self.note("manifest", "its bytes are not those of the manifest's checksum: another shard of this name")
        if passage.furthest < size:  # behind damage
            tick(size - passage.furthest)

    def _index(self, read: ReadAt) -> tuple[Footer, ShardIndex] | None:
        try:
            return find_index(self.name, self.size, read)
        except UnreadableError:
            raise
        except UserError as error:
            self.note("index", str(error).removeprefix(f"{self.name}: "))
            return None

    def _indexed(self, file: BinaryIO, footer: Footer, index: ShardIndex, moved: int) -> None:
        self.checked, self.samples = True, len(index)
        samples = IndexedSample.all(file, index, moved)
        for number, (key, sample) in enumerate(zip(index.keys, samples, strict=True)):
            if not sample.intact:
                self.note("checksum", sample.damage, key, sample.damaged_at)
            elif not sample.agrees:
                self.note("structure", f"tar and index do not agree: {sample.damage}", key, sample.damaged_at)
            elif self.job.deep:
                self._decode(sample.data, key, int(index.offset[number]))
        file.seek(max(int(index.start[-1]) + moved, 0))
        if not is_index_member(file.read(), footer):
            self.note("structure", "the tar member of the index is damaged, its content is not", byte=footer.start)

    def _walked(self, file: BinaryIO) -> None:
        """A tar without an index, as training reads it: up to the first place that training refuses."""

        def load(info: Header) -> bytes:
            file.seek(info.offset_data)
            return file.read(info.size)

        walk = TarWalker(self.name, self._members(file), load, self.job.choice)
        images: list[FoundImage] = []
        try:
            for image in walk.images():
                images.append(image)
                self._image(file, image)
            walk.joined(images)
        except UnreadableError:
            raise
        except UserError as error:
            place = AT_BYTE.search(str(error))
            self.note("structure", str(error).removeprefix(f"{self.name}: "), byte=int(place[1]) if place else None)
        self.samples, self.passed = len(images), walk.passed
        if not images and not self.problems:
            self.note("structure", "holds no images")

    def _members(self, file: BinaryIO) -> Iterator[Header]:
        for info in members(self.name, file, self.size):
            if info.name == INDEX and not self.problems:
                self.note("index", "its index is damaged, or of an older version of this program", None, info.offset)
            yield info

    def _image(self, file: BinaryIO, image: FoundImage) -> None:
        size, byte = image.size, image.offset
        if not size:
            self.note("image", "is an empty file", image.name, byte)
        elif self.job.deep and size > MOST_BYTES:
            self.note("image", f"{size:,} bytes are too many for an image", image.name, byte)
        elif self.job.deep:
            file.seek(byte)
            self._decode(file.read(size), image.name, byte)

    def _decode(self, data: bytes, key: str, byte: int) -> None:
        try:
            self.sizes[decoded_size(data)] += 1
        except UserError as error:
            self.note("image", str(error), key, byte)


def decoded_size(data: bytes) -> str:
    """Decodes an image; its "WIDTHxHEIGHT". Raises UserError where training could not read it."""
    try:
        image = open_image(data, "")
        if image.mode not in ("RGB", "L"):
            to_rgb_or_grey(image, 3)
    except UserError as error:
        raise UserError(str(error).removeprefix(": ")) from error
    header = NETPBM.match(data)
    if header:
        width, height, most = map(int, header.groups()[1:])
        pixels = width * height * (3 if header[1] == b"6" else 1) * (2 if most > 255 else 1)
        behind = data[header.end() + pixels :].strip()
        if behind:
            raise UserError(f"{len(behind):,} bytes more than its header says")
    return f"{image.width}x{image.height}"
