"""Images in tar shards, ours and others', from plain local tars; compressed and remote ones are copied first.

A name ends with the place of the image, '#TAR,OFFSET,LENGTH', so that the processes that load need no index. Where the
index has checksums, ',BEFORE,SIZE,CHECKSUM' follows: the bytes of its sample before the image, all of them, and their
xxh3-64. They are checked when the image is loaded, for a damaged one must not get a new, right checksum.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from dcgan_dist.data.classes import names_in
from dcgan_dist.data.completeness import Completeness
from dcgan_dist.data.foreign import DEFAULT, foreign_index
from dcgan_dist.data.index import NO_LABEL, ShardIndex, read_index
from dcgan_dist.data.labels import common_numbering, relabel
from dcgan_dist.data.notes import Notes, merge_notes
from dcgan_dist.data.remote.client import Remote, is_remote
from dcgan_dist.data.remote.fill import Source, Wanted, fill
from dcgan_dist.data.samples import IGNORED, MemberChoice
from dcgan_dist.data.sources.base import Images, Item, Items, Load, Loaded, Report, folder_labels, number_names
from dcgan_dist.data.sources.names import ending, stem
from dcgan_dist.data.sources.spool import Unprepared, spool
from dcgan_dist.data.storage import remove_abandoned, whole_file
from dcgan_dist.errors import UsageError, UserError

INDEXED_TOGETHER = 16
LISTED = 3  # tars without images
MOST_OPEN_FILES = 64
ROW = "{:09}"  # key of a table's row


@dataclass(frozen=True)
class Tar:
    """A plain local tar."""

    path: Path
    name: str  # of the file that it is, or is a copy of
    rows: bool = False  # its keys are the numbers of that file's rows
    notes: Notes | None = None  # of that file; None: those of the tar


@dataclass(frozen=True)
class TarSource:
    """All images in tars, in their order. Labels are those of .cls or .json members, or else those of the folders."""

    tars: tuple[Tar, ...]
    classes: Mapping[int, str] = field(default_factory=dict[int, str])
    choice: MemberChoice = DEFAULT
    said: tuple[str, ...] = ()
    """Lines for people, of the manifests beside them."""

    def prepared(self, folder: Path, report: Report) -> "TarSource":  # noqa: ARG002
        """Itself."""
        return self

    def items(self) -> Items:
        """All images in the tars. Raises UserError when one is damaged."""
        labels: list[tuple[NDArray[np.int64], Sequence[str]]] = []
        notes: list[Notes] = []

        def names() -> Iterator[str]:
            for number, index in enumerate(self._indexes()):
                notes.append(self.tars[number].notes or index.notes)
                labels.append((index.label.astype(np.int64), notes[-1].words))
                yield from _names(number, index, f"{stem(self.tars[number].name)}-" if self.tars[number].rows else "")

        images = Images.of(names())
        if not images:
            problem = "; ".join(
                ["no images in it" + " and the others" * (len(self.tars) > 1), *merge_notes(notes).lines()]
            )
            raise UsageError(f"{self.tars[0].name}: {problem}")
        lines = tuple(self._lines(notes))
        if any(words for _, words in labels):
            tables, classes = common_numbering(labels, lambda found: number_names(found, self.tars[0].name))
            found = [relabel(each, table) for (each, _), table in zip(labels, tables, strict=True)]
            return Items(images.with_labels(np.concatenate(found)), {}, classes, lines)
        images = images.with_labels(np.concatenate([each for each, _ in labels]))
        if self.classes or (images.labels != NO_LABEL).any():
            return Items(images, {}, self.classes, lines)
        numbers, classes, outside = folder_labels(images, self.tars[0].name)
        return Items(images.with_labels(numbers), {}, classes, lines + outside)

    def _lines(self, notes: Sequence[Notes]) -> Iterator[str]:
        yield from self.said
        empty = [tar.name for tar, note in zip(self.tars, notes, strict=True) if note.foreign and not note.images]
        if empty:
            yield f"{len(empty):,} of {len(notes):,} tars hold no image: {', '.join(empty[:LISTED])}"
        if self.choice.for_tars and not any(note.foreign for note in notes):
            yield IGNORED
        yield from merge_notes(notes).lines()

    def _indexes(self) -> Iterator[ShardIndex]:
        with ThreadPoolExecutor(INDEXED_TOGETHER) as pool:
            for start in range(0, len(self.tars), INDEXED_TOGETHER):  # a part at a time, for all may be too many
                part = self.tars[start : start + INDEXED_TOGETHER]
                yield from pool.map(lambda tar: _index(tar, self.choice), part)

    def where(self, item: Item) -> str:
        """The tar or table, and the image in it."""
        name, place = _placed(item)
        tar = self.tars[place.tar]
        return f"{tar.name}: row {int(_key(name)[-9:])}" if tar.rows else f"{tar.name}: {name} at byte {place.offset}"

    @contextmanager
    def open(self) -> Iterator[Load]:
        """A function that reads members."""
        files: OrderedDict[int, BinaryIO] = OrderedDict()

        def opened(number: int) -> BinaryIO:
            if number not in files:
                if len(files) == MOST_OPEN_FILES:
                    files.popitem(last=False)[1].close()
                files[number] = self.tars[number].path.open("rb")
            files.move_to_end(number)
            return files[number]

        def load(item: Item) -> Loaded:
            _, place = _placed(item)
            try:
                data = os.pread(opened(place.tar).fileno(), place.size, place.offset - place.before)
            except OSError as error:
                raise UserError(f"{self.where(item)}: cannot be read ({error.strerror})") from error
            if len(data) < place.size:
                raise UserError(f"{self.where(item)}: is cut")
            if place.checksum is not None and xxhash.xxh3_64_intdigest(data) != place.checksum:
                raise UserError(f"{self.where(item)}: {_damage(self.tars[place.tar])}")
            if not place.length:
                raise UserError(f"{self.where(item)}: holds no image (null, or no bytes)")
            return data[place.before :][: place.length], item.label

        try:
            yield load
        finally:
            for file in files.values():
                file.close()


def _index(tar: Tar, choice: MemberChoice) -> ShardIndex:
    try:
        try:
            index = read_index(tar.path)
        except UserError:  # a damaged index; the images before it may be intact
            if not choice.skip_bad:
                raise
            index = None
        return foreign_index(tar.path, choice) if index is None else index
    except UserError as error:
        raise UserError(str(error).replace(str(tar.path), tar.name)) from error
    except OSError as error:
        raise UserError(f"{tar.name}: cannot be read ({error.strerror})") from error


def _damage(tar: Tar) -> str:
    again = "copy the shard again" if tar.path == Path(tar.name) else f"remove {tar.path}, its copy, and start again"
    repair = "" if tar.rows else ", or dcgan-dist verify --repair"
    return f"its bytes are not those that were written; {again}{repair}"


class _Place(NamedTuple):
    tar: int  # number
    offset: int  # of the image
    length: int
    before: int  # bytes of its sample in front of it
    size: int  # bytes of the sample; without a checksum the image's alone
    checksum: int | None  # of the sample


def _names(number: int, index: ShardIndex, prefix: str) -> Iterator[str]:
    suffixes = [index.suffixes[suffix] for suffix in index.suffix.tolist()]
    places = [f"#{number},{at},{size}" for at, size in zip(index.offset.tolist(), index.length.tolist(), strict=True)]
    if index.checked:
        before, whole = (index.offset - index.start[:-1]).tolist(), np.diff(index.start).tolist()
        samples = zip(places, before, whole, index.checksum.tolist(), strict=True)
        places = [f"{place},{first},{size},{checksum:x}" for place, first, size, checksum in samples]
    return (f"{prefix}{key}.{suffix}{place}" for key, suffix, place in zip(index.keys, suffixes, places, strict=True))


def _placed(item: Item) -> tuple[str, _Place]:
    """Name in the tar, and where that is."""
    name, _, text = item.name.rpartition("#")
    tar, offset, length, *sample = text.split(",")
    before, whole, checksum = sample or (0, length, None)
    number = None if checksum is None else int(checksum, 16)
    return name, _Place(int(tar), int(offset), int(length), int(before), int(whole), number)


def _key(name: str) -> str:
    return name.rpartition(".")[0]


def tar_source(names: Sequence[str], complete: Completeness) -> "TarSource | PackedTarSource":
    """The source of tars by path or URL; `complete`: what the manifests beside them say."""
    classes = names_in(complete.manifest, names)
    if all(map(_plain, names)):
        return TarSource(tuple(Tar(Path(name), name) for name in names), classes, said=complete.notes)
    return PackedTarSource(tuple(names), classes, said=complete.notes)


def _plain(name: str) -> bool:
    return ending(name) == ".tar" and not is_remote(name)


@dataclass(frozen=True)
class PackedTarSource(Unprepared):
    """Tars of which some are compressed or remote, by path or URL."""

    names: tuple[str, ...]
    classes: Mapping[int, str] = field(default_factory=dict[int, str])
    choice: MemberChoice = DEFAULT
    said: tuple[str, ...] = ()

    def prepared(self, folder: Path, report: Report) -> TarSource:
        """The same tars, plain and local."""
        packed = [name for name in self.names if not _plain(name)]
        copies = dict(zip(packed, spool(packed, folder, _unpack, "", report), strict=True))
        tars = tuple(Tar(copies.get(name, Path(name)), name) for name in self.names)
        return TarSource(tars, self.classes, self.choice, self.said)


def _unpack(source: Source, wanted: Wanted, target: Path) -> None:
    remove_abandoned(target)
    with whole_file(target) as plain:
        fill(source, wanted, Remote(), plain)
