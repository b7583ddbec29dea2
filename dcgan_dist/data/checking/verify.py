"""Is a shard intact? Checks every tar header, checksum and index entry, the manifest, and optionally every image."""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO

from dcgan_dist.data.checking.access import CHUNK, HashingReader, ShardJob, UnreadableError, opened
from dcgan_dist.data.checking.indexed import IndexedSample, find_any_index, find_index, is_index_member
from dcgan_dist.data.images.codecs import open_image, to_rgb_or_grey
from dcgan_dist.data.shards.foreign import members, read_member
from dcgan_dist.data.shards.index import INDEX, Footer, ReadAt, ShardIndex
from dcgan_dist.data.shards.tar_walker import FoundImage, TarWalker
from dcgan_dist.data.shards.tarfiles import Header
from dcgan_dist.errors import UserError
from dcgan_dist.text import counted

MOST_BYTES = 2**30  # of an image file that is decoded
SPOT_BUFFER = 2**16  # bytes; so few, because a spot check skips most of the file
AT_BYTE = re.compile(r" at byte (\d+)")
NETPBM = re.compile(rb"P([56])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is wrong with a shard."""

    shard: str  # path or URL
    kind: str  # missing, unreadable, structure, index, checksum, image, manifest or extra
    what: str
    key: str | None = None  # of the sample
    byte: int | None = None  # where in the shard

    def __str__(self) -> str:
        place = "" if self.byte is None or AT_BYTE.search(self.what) else f" at byte {self.byte}"
        return f"{self.shard}{f': {self.key}' if self.key else ''}{place}: {self.what}"


@dataclass(kw_only=True)
class ShardReport:
    """What was found in one shard."""

    name: str
    bytes: int = 0
    samples: int = 0
    checked: bool = False  # whether the shard carries checksums; tars of other programs carry none
    sizes: Counter[str] = field(default_factory=Counter)  # images of each "WIDTHxHEIGHT", where all were decoded
    problems: list[Problem] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)  # unused members of a tar of another program, by extension


def check_shard(job: ShardJob, tick: Callable[[int], None]) -> ShardReport:
    """Finds everything that is wrong with one shard; reads it once, from front to back, a few megabytes at a time.

    `tick` is called with the number of bytes as they are read.
    """
    check = _Check(job)
    try:
        with opened(job) as (read, size):
            check.run(read, size, tick)
    except UserError as error:
        check.refuse("unreadable", error)
    return check.report


def spot_check(job: ShardJob, count: int) -> tuple[int, list[Problem]]:
    """Checks up to `count` samples: the first, the last and some between; how many, and what is wrong.

    Takes a second, local or remote. Reads nothing of shards without an index, which carry no checksums.
    """
    check = _Check(job)
    try:
        with opened(job) as (read, size):
            if (found := find_index(job.shown, size, read)) is None:
                return 0, []
            index = found[1]
            count = min(count, len(index))
            with io.BufferedReader(HashingReader(read, size, lambda _: None), SPOT_BUFFER) as file:
                for place in range(count):
                    number = round((len(index) - 1) * place / max(count - 1, 1))
                    check.sample(IndexedSample(file, index, number), index.keys[number])
            return count, check.report.problems
    except UserError as error:
        check.refuse("unreadable", error)
        return 0, check.report.problems


class _Check:
    def __init__(self, job: ShardJob) -> None:
        self.job, self.report = job, ShardReport(name=job.shown)

    def note(self, kind: str, what: str, key: str | None = None, byte: int | None = None) -> None:
        # names in tars may hold line breaks, and bytes that are not UTF-8
        key = None if key is None else key.encode(errors="replace").decode().replace("\n", " ")
        self.report.problems.append(Problem(shard=self.job.shown, kind=kind, what=what, key=key, byte=byte))

    def refuse(self, kind: str, error: UserError) -> None:
        place = AT_BYTE.search(str(error)) if kind == "structure" else None
        byte = int(place[1]) if place else None
        self.note(kind, str(error).removeprefix(f"{self.job.shown}: "), byte=byte)

    def run(self, read: ReadAt, size: int, tick: Callable[[int], None]) -> None:
        report, entry = self.report, self.job.entry
        report.bytes = size
        if entry and size != entry.bytes:
            self.note("manifest", f"{size:,} bytes, but {entry.bytes:,} in the manifest")
        placed = find_any_index(self.job.shown, size, read, partial(self.refuse, "index"))
        reader = HashingReader(read, size, tick)
        with io.BufferedReader(reader, CHUNK) as file:
            if placed is None:
                self._walked(file)
            else:
                self._indexed(file, *placed)
            if entry and report.samples != entry.samples:
                self.note("manifest", f"{report.samples:,} samples, but {entry.samples:,} in the manifest")
            if entry and not report.problems and reader.checksum() != entry.xxh128:
                self.note("manifest", "its bytes are not those of the manifest's checksum: another shard of this name")
        if reader.furthest < size:  # nothing behind damage was read
            tick(size - reader.furthest)

    def sample(self, sample: IndexedSample, key: str) -> bool:
        """Whether the bytes of a sample are intact."""
        if not sample.intact:
            self.note("checksum", sample.damage, key, sample.damaged_at)
        return sample.intact

    def _indexed(self, file: BinaryIO, footer: Footer, index: ShardIndex, moved: int) -> None:
        self.report.checked, self.report.samples = True, len(index)
        samples = IndexedSample.all(file, index, moved)
        for number, (key, sample) in enumerate(zip(index.keys, samples, strict=True)):
            if not self.sample(sample, key):
                continue
            if not sample.agrees:
                self.note("structure", f"tar and index do not agree: {sample.damage}", key, sample.damaged_at)
            elif self.job.deep:
                self._decode(sample.data, key, int(index.offset[number]))
        file.seek(max(int(index.start[-1]) + moved, 0))
        if not is_index_member(file.read(), footer):
            self.note("structure", "the tar member of the index is damaged, its content is not", byte=footer.start)

    def _walked(self, file: BinaryIO) -> None:
        """A tar without an index, as training reads it: up to the first place that training refuses."""
        walk = TarWalker(self.job.shown, self._members(file), partial(read_member, file), self.job.choice)
        images: list[FoundImage] = []
        try:
            for image in walk.images():
                images.append(image)
                self._image(file, image)
            walk.joined(images)
        except UnreadableError:
            raise
        except UserError as error:
            self.refuse("structure", error)
        self.report.samples, self.report.passed = len(images), walk.passed
        if not images and not self.report.problems:
            self.note("structure", "holds no images")

    def _members(self, file: BinaryIO) -> Iterator[Header]:
        for info in members(self.job.shown, file, self.report.bytes):
            if info.name == INDEX and not self.report.problems:
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
            self.report.sizes[decoded_size(data)] += 1
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
        if extra := data[header.end() + pixels :].strip():
            raise UserError(f"{counted(len(extra), 'byte')} more than its header says")
    return f"{image.width}x{image.height}"
