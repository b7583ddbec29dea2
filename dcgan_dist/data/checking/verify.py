"""Is a shard whole? Every tar header, checksum and index entry, what the manifest says, and if wanted every image."""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from dcgan_dist.data.checking.access import Job, UnreadableError, opened
from dcgan_dist.data.checking.indexed import INDEX, IndexedSample, find_index, is_index_member
from dcgan_dist.data.checking.scan import CHUNK, Gap, Member, Passage, Refused, Sample, group, scan
from dcgan_dist.data.codecs import open_image, to_rgb_or_grey
from dcgan_dist.data.index import Footer, Read, ShardIndex
from dcgan_dist.data.samples import Chooser, count_passed
from dcgan_dist.errors import UserError

MOST_BYTES = 2**30  # of an image file that is decoded
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
        place = "" if self.byte is None else f" at byte {self.byte}"
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

    `tick` is told of the bytes as they are read.
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
        self.chooser = Chooser(job.choice)
        self.problems: list[Problem] = []

    def note(self, kind: str, what: str, key: str | None = None, byte: int | None = None) -> None:
        # names in tars may hold line breaks, and what is no text
        key = None if key is None else key.encode(errors="replace").decode().replace("\n", " ")
        self.problems.append(Problem(shard=self.name, kind=kind, what=what, key=key, byte=byte))

    def run(self, read: Read, size: int, tick: Callable[[int], None]) -> None:
        self.size, entry = size, self.job.entry
        if entry and size != entry.bytes:
            self.note("manifest", f"{size:,} bytes, but {entry.bytes:,} in the manifest")
        try:
            found = find_index(self.name, size, read)
        except UnreadableError:
            raise
        except UserError as error:
            found = None
            self.note("index", str(error).removeprefix(f"{self.name}: "))
        passage = Passage(read, size, tick)
        with io.BufferedReader(passage, CHUNK) as file:
            if found is None:
                self._walked(file)
            else:
                self._indexed(file, *found)
            if entry and self.samples != entry.samples:
                self.note("manifest", f"{self.samples:,} samples, but {entry.samples:,} in the manifest")
            if entry and not self.problems and passage.checksum() != entry.xxh128:
                self.note("manifest", "its bytes are not those of the manifest's checksum: another shard of this name")

    def _indexed(self, file: BinaryIO, footer: Footer, index: ShardIndex) -> None:
        self.checked, self.samples = True, len(index)
        for number, key in enumerate(index.keys):
            sample = IndexedSample(file, index, number)
            if not sample.whole:
                self.note("checksum", sample.damage, key, sample.damaged_at)
            elif not sample.agrees:
                self.note("structure", f"tar and index do not agree: {sample.damage}", key, sample.damaged_at)
            elif self.job.deep:
                self._decode(sample.data, key, int(index.offset[number]))
        file.seek(int(index.start[-1]))
        if not is_index_member(file.read(self.size - int(index.start[-1])), footer):
            self.note("structure", "the tar member of the index is damaged, its content is not", byte=footer.start)

    def _walked(self, file: BinaryIO) -> None:
        for part in group(self._members(scan(file, self.size)), self.passed):
            if isinstance(part, Gap):
                holds = part.holds and part.end > part.start
                lost = f"; bytes {part.start} to {part.end} cannot be used" if holds else ""
                self.note("structure", part.why + lost, part.name or None, part.start)
            elif isinstance(part, Refused):
                self.note("structure", part.why, part.name, part.start)
            else:
                self._sample(file, part)
        if not self.samples and not self.problems:
            self.note("structure", "holds no images")

    def _members(self, parts: Iterator[Member | Gap]) -> Iterator[Member | Gap]:
        for part in parts:
            if isinstance(part, Member) and part.name == INDEX and not self.problems:
                self.note("index", "its index is damaged, or of an older version of this program", None, part.start)
            yield part

    def _sample(self, file: BinaryIO, sample: Sample) -> None:
        members = sample.members
        try:
            images = [] if sample.is_bad else self.chooser.images(sample.key, members)
        except UserError as error:
            self.note("structure", str(error), sample.key)
            return
        self.samples += len(images)
        labels = {self.chooser.label(image, members) or image for image in images}
        used = {*images, *labels, *([] if images else self.chooser.apart(members))}
        count_passed(self.passed, sample.key, members.keys() - used)
        refused = [members[suffix] for suffix in sorted({*images, *labels}) if members[suffix].refused]
        for member in refused[:1]:
            self.note("structure", member.refused, member.name, member.start)
        for suffix in [] if refused else images:
            self._image(file, sample, members[suffix])

    def _image(self, file: BinaryIO, sample: Sample, image: Member) -> None:
        if not image.size:
            self.note("image", "is an empty file", image.name, image.start)
        elif self.job.deep and image.size > MOST_BYTES:
            self.note("image", f"{image.size:,} bytes are too many for an image", sample.key, image.data)
        elif self.job.deep:
            file.seek(image.data)
            self._decode(file.read(image.size), sample.key, image.data)

    def _decode(self, data: bytes, key: str, byte: int) -> None:
        try:
            self.sizes[decoded_size(data)] += 1
        except UserError as error:
            self.note("image", str(error), key, byte)


def decoded_size(data: bytes) -> str:
    """Decodes an image; its "WIDTHxHEIGHT". Raises UserError for what training could not read, or is no whole file."""
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
