"""What is good in a damaged shard, written to a new one: nothing that is known to be damaged, and all that is not."""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import xxhash

from dcgan_dist.data.checking.access import Job, UnreadableError, opened
from dcgan_dist.data.checking.indexed import INDEX, IndexedSample, find_index, member_bytes
from dcgan_dist.data.checking.scan import CHUNK, Gap, Member, Passage, Sample, group, scan
from dcgan_dist.data.checking.verify import MOST_BYTES, decoded_size
from dcgan_dist.data.formats import IMAGE_SUFFIXES
from dcgan_dist.data.index import FOOTER, NO_LABEL, ShardIndex, ShardWriter, index_from_bytes
from dcgan_dist.data.index import MAGIC as INDEX_MAGIC
from dcgan_dist.data.labels import is_number, read_label
from dcgan_dist.data.samples import KEY_AND_SUFFIX, Chooser, one_line, split_name
from dcgan_dist.errors import UserError

LISTED = 20  # lost samples


@dataclass(frozen=True, kw_only=True)
class RepairJob:
    """A damaged shard, and the folder for the new one."""

    job: Job
    path: Path
    """Of the new shard."""


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What became of a damaged shard."""

    name: str
    path: str | None
    """The new shard; None where nothing could be saved."""
    kept: int
    lost: tuple[str, ...]
    """Keys of samples that were in the shard and cannot be saved, as far as they are known."""
    unnamed: int
    """Damaged bytes of which nobody knows to which samples they belonged."""
    left_out: dict[str, int]
    """Members beside the images and labels (.json, .txt ..) by suffix; our shards do not hold such."""
    problem: str = ""
    """Why it was not repaired, where that is no damage."""

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same for people."""
        if self.problem:
            return [f"{self.name}: not repaired: {self.problem}"]
        if not self.kept:
            return [f"{self.name}: there is nothing to save"]
        lost = f", {len(self.lost):,} lost" if self.lost else ""
        lines = [f"{self.name}: {self.kept:,} samples saved in {self.path}{lost}"]
        if self.lost:
            more = len(self.lost) - LISTED
            lines += [f"  lost: {', '.join(self.lost[:LISTED])}{f' and {more:,} more' if more > 0 else ''}"]
        if self.unnamed:
            lines += [f"  {self.unnamed:,} damaged bytes may have held others, whose names are lost"]
        if self.left_out:
            others = ", ".join(f"{count:,} .{suffix}" for suffix, count in self.left_out.items())
            lines += [f"  left out, for these shards hold images and labels alone: {others}"]
        return lines


class _UnclearError(Exception):
    """It has to be chosen first which members are images."""


class _Good(NamedTuple):
    key: str
    suffix: str
    data: bytes
    label: int | None


def repair_shard(job: RepairJob, tick: Callable[[int], None]) -> Repaired:
    """Writes the good samples of a damaged shard to a new one, and says what was lost.

    With an index, those whose images have their checksum, even where tar headers are damaged; without, those of which
    headers and data are there to the last byte. All of them can be decoded. Keys and labels survive; a sample whose
    label is lost counts as lost where others have labels. Raises UserError when the shard cannot be read or the new one
    not written.
    """
    rescue, kept, problem = _Rescue(job.job.shown, Chooser(job.job.choice)), 0, ""
    with opened(job.job) as (read, size):
        try:
            found = find_index(job.job.name, size, read)
        except UnreadableError:
            raise
        except UserError:
            found = None
        with io.BufferedReader(Passage(read, size, tick), CHUNK) as file:
            good = rescue.by_scan(file, size) if found is None else rescue.by_index(file, found[1])
            try:
                kept = _write(job.path, good)
            except _UnclearError as error:
                problem = str(error)
    return Repaired(
        name=job.job.shown,
        path=str(job.path) if kept else None,
        kept=kept,
        lost=tuple(rescue.lost),
        unnamed=rescue.unnamed,
        left_out=dict(rescue.left_out),
        problem=problem,
    )


def _write(path: Path, good: Iterator[_Good]) -> int:
    """Writes a shard of these samples, if there are any; returns how many there are."""
    first = next(good, None)
    if first is None:
        return 0
    kept = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ShardWriter(path, new=True) as shard:
            for sample in chain([first], good):
                shard.add(*sample)
                kept += 1
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    return kept


class _Rescue:
    def __init__(self, name: str, chooser: Chooser) -> None:
        self._name, self._chooser = name, chooser
        self.lost: dict[str, None] = {}
        self.unnamed = 0
        self.left_out: Counter[str] = Counter()

    def by_index(self, file: BinaryIO, index: ShardIndex) -> Iterator[_Good]:
        for number, key in enumerate(index.keys):
            sample = IndexedSample(file, index, number)
            good = _Good(key, index.suffixes[index.suffix[number]], sample.data, _label(index, number))
            if sample.image_whole and _decodes(good.data):
                yield good
            else:
                self.lost[key] = None

    def by_scan(self, file: BinaryIO, size: int) -> Iterator[_Good]:
        members: list[Member] = []
        parts = list(group(_noting(scan(file, size), members), Counter()))
        samples = [part for part in parts if isinstance(part, Sample)]
        for gap in parts:
            if isinstance(gap, Gap):
                self._note_gap(gap)
        index = _salvaged(self._name, file, members)
        numbers = {} if index is None else {key: number for number, key in enumerate(index.keys)}
        labelled = index is None and any("cls" in sample.members for sample in samples)
        written: dict[str, int] = {}
        for sample, image in chain.from_iterable(map(self._images, samples)):
            good = self._sample(file, sample, image, labelled)
            if good is not None and index is not None:
                good = _proven(good, index, numbers)
            if good is None:
                self.lost[sample.key] = None
            elif (good := _renamed(good, written)) is not None:
                yield good
        if index is not None:  # it names all that there was
            self.lost, self.unnamed = dict.fromkeys(numbers), 0
        for key in written:
            self.lost.pop(key, None)

    def _images(self, sample: Sample) -> list[tuple[Sample, str]]:
        try:
            images = [] if sample.is_bad else self._chooser.images(sample.key, sample.members)
        except UserError as error:
            raise _UnclearError(one_line(str(error))) from error
        self.left_out.update(suffix for suffix in sample.members if images and suffix not in (*images, "cls"))
        if not images and sample.beside_gap:
            self.lost[sample.key] = None
        return [(sample, image) for image in images]

    def _note_gap(self, gap: Gap) -> None:
        match = KEY_AND_SUFFIX.match(gap.name)
        if match:
            self.lost[match[1]] = None
        elif gap.holds:
            self.unnamed += gap.end - gap.start

    def _sample(self, file: BinaryIO, sample: Sample, image: str, labelled: bool) -> _Good | None:
        """An image of a tar without index, if it is whole as far as that can be known."""
        label = sample.members.get("cls")
        if label is None and labelled and sample.beside_gap:
            return None
        data, text = _data(file, sample.members[image]), b"" if label is None else _data(file, label)
        zeroed = sample.beside_gap and text and not text.strip(b"\0")
        if zeroed or not _decodes(data):
            return None
        number, problem = read_label(text, "cls")
        if problem or (number and not is_number(number)):
            self.left_out["cls without a number"] += 1
        key, suffix = split_name(sample.key, image)
        suffix = suffix if suffix in IMAGE_SUFFIXES else "jpg"  # readers look at the bytes
        key = one_line(key)
        if "." in key.rpartition("/")[2]:  # where webdataset would end it
            key = key.replace(".", "_")
        return _Good(key, suffix, data, int(number) if is_number(number) else None)


def _noting(parts: Iterator[Member | Gap], index: list[Member]) -> Iterator[Member | Gap]:
    for part in parts:
        if isinstance(part, Member) and part.name == INDEX:
            index.append(part)
        yield part


def _data(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.data)
    return file.read(member.size) if member.size <= MOST_BYTES and not member.refused else b""


def _salvaged(name: str, file: BinaryIO, members: list[Member]) -> ShardIndex | None:
    """The index of a shard that lacks some bytes, from its tar member, if that one is whole."""
    for member in members:
        data = _data(file, member)
        if len(data) < FOOTER.size:
            continue
        magic, _, length, checksum, _, _, own = FOOTER.unpack_from(data, len(data) - FOOTER.size)
        whole = xxhash.xxh3_64_intdigest(data[-FOOTER.size : -8]) == own
        if magic == INDEX_MAGIC and whole and xxhash.xxh3_64_intdigest(data[:length]) == checksum:
            return index_from_bytes(name, data[:length])
    return None


def _proven(good: _Good, index: ShardIndex, numbers: dict[str, int]) -> _Good | None:
    """The sample if the index knows it and its checksum is right, with the label that the index says."""
    number = numbers.get(good.key)
    if number is None:
        return None
    label = _label(index, number)
    written = member_bytes(f"{good.key}.{good.suffix}", good.data)
    if label is not None:
        written += member_bytes(f"{good.key}.cls", b"%d" % label)
    right = xxhash.xxh3_64_intdigest(written) == int(index.checksum[number])
    return good._replace(label=label) if right else None


def _label(index: ShardIndex, number: int) -> int | None:
    label = int(index.label[number])
    return None if label == NO_LABEL else label


def _renamed(good: _Good, written: dict[str, int]) -> _Good | None:
    """The sample under a key of its own, since tars of others may repeat one; None: the very same again."""
    digest = xxhash.xxh3_64_intdigest(good.data)
    key, count = good.key, 1
    while key in written:
        if written[key] == digest:
            return None
        count += 1
        key = f"{good.key}-{count}"
    written[key] = digest
    return good._replace(key=key)


def _decodes(data: bytes) -> bool:
    try:
        decoded_size(data)
    except UserError:
        return False
    return True
