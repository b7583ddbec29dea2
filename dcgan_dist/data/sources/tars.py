"""Images in tar shards, ours and others'; of compressed and remote ones staged copies are made first.

A name ends with the place of the image, '#TAR,OFFSET,LENGTH', so that the processes that load need no index. Where the
index has checksums, ',BEFORE,SIZE,CHECKSUM' follows: the bytes of its sample before the image, all of them, and their
xxh3-64. They are checked when the image is loaded, for a damaged one must not get a new, right checksum.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from dcgan_dist.data.remote.client import Remote, is_remote
from dcgan_dist.data.remote.source import FileSource, Wanted, contents, wanted_of
from dcgan_dist.data.shards.files import LocalFile
from dcgan_dist.data.shards.foreign import DEFAULT, foreign_index
from dcgan_dist.data.shards.index import NO_LABEL, ShardIndex, read_index
from dcgan_dist.data.shards.labels import common_numbering, relabel
from dcgan_dist.data.shards.notes import Notes, merge_notes
from dcgan_dist.data.shards.samples import IGNORED, MemberChoice
from dcgan_dist.data.sources.base import NOT_PREPARED, Images, Item, Items, Load, Loaded, Report, Source, folder_labels
from dcgan_dist.data.system.locks import locked
from dcgan_dist.data.system.storage import atomic_file, remove_abandoned
from dcgan_dist.errors import UsageError, UserError, os_error_as_user_error
from dcgan_dist.text import listed

INDEXED_TOGETHER = 16
MOST_OPEN_FILES = 64
THREADS = 4  # copies at a time
ROW = "{:09}"  # key of a table's row

Convert = Callable[[FileSource, Wanted, Path], None]  # makes the copy of a file at the path: complete or not at all


class Tar(NamedTuple):
    """A tar, or what is copied into one, by path or URL."""

    name: str
    path: Path | None = None  # of the plain local file: its own, or a copy; None: it is not copied yet
    prefix: str = ""  # of the names of a table's rows, whose keys are their numbers
    notes: Notes | None = None  # of that table; None: those of the tar

    @property
    def file(self) -> Path:
        """The plain local file. Only of prepared sources."""
        if self.path is None:
            raise RuntimeError(NOT_PREPARED)
        return self.path


@dataclass(frozen=True)
class TarSource(Source):
    """All images in tars, in their order. Labels are those of .cls or .json members, or else those of the folders."""

    tars: tuple[Tar, ...]
    classes: Mapping[int, str] = field(default_factory=dict[int, str])
    choice: MemberChoice = DEFAULT
    lines: tuple[str, ...] = ()  # for people, of the manifests beside them

    def prepared(self, folder: Path, report: Report) -> "TarSource":
        """The same with staged copies of what is compressed or remote."""
        packed = [tar.name for tar in self.tars if tar.path is None]
        if not packed:
            return self
        copies = dict(zip(packed, staged_copies(packed, folder, _unpack, report), strict=True))
        return replace(self, tars=tuple(tar._replace(path=tar.path or copies[tar.name]) for tar in self.tars))

    def items(self) -> Items:
        """All images in the tars. Raises UserError when one is damaged."""
        labels: list[tuple[NDArray[np.int64], Sequence[str]]] = []
        notes: list[Notes] = []

        def names() -> Iterator[str]:
            for number, (tar, index) in enumerate(zip(self.tars, self._indexes(), strict=True)):
                notes.append(tar.notes or index.notes)
                labels.append((index.label.astype(np.int64), notes[-1].words))
                yield from _names(number, index, tar.prefix)

        first, images = self.tars[0].name, Images(names())
        if not len(images):
            others = " and the others" * (len(self.tars) > 1)
            raise UsageError(f"{first}: {'; '.join([f'no images in it{others}', *merge_notes(notes).lines()])}")
        classes, lines = self.classes, tuple(self._lines(notes))
        if any(note.words for note in notes):
            tables, classes = common_numbering(labels, first)
            labels = [(relabel(own, table), ()) for (own, _), table in zip(labels, tables, strict=True)]
        images.labels = np.concatenate([own for own, _ in labels])
        if not classes and (images.labels == NO_LABEL).all():
            images.labels, classes, outside = folder_labels(images, first)
            lines += outside
        return Items(images, {}, classes, lines)

    def _lines(self, notes: Sequence[Notes]) -> Iterator[str]:
        yield from self.lines
        if empty := [tar.name for tar, note in zip(self.tars, notes, strict=True) if note.foreign and not note.images]:
            yield f"{len(empty):,} of {len(notes):,} tars hold no image: {listed(empty, 3)}"
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
        row = name.rpartition(".")[0][-len(ROW.format(0)) :]
        return f"{tar.name}: row {int(row)}" if tar.prefix else f"{tar.name}: {name} at byte {place.offset}"

    @contextmanager
    def open(self) -> Iterator[Load]:
        """A function that reads members."""
        opened = lru_cache(MOST_OPEN_FILES)(lambda number: LocalFile(self.tars[number].file))

        def load(item: Item) -> Loaded:
            _, place = _placed(item)
            try:
                data = opened(place.tar).read(place.offset - place.before, place.size)
            except UserError as error:
                raise UserError(f"{self.where(item)}: {str(error).partition(': ')[2]}") from error
            if problem := place.problem(data, self.tars[place.tar]):
                raise UserError(f"{self.where(item)}: {problem}")
            return data[place.before :][: place.length], item.label

        yield load


class _Place(NamedTuple):
    tar: int  # number
    offset: int  # of the image
    length: int
    before: int  # bytes of its sample in front of it
    size: int  # bytes of the sample; without a checksum the image's alone
    checksum: str  # of the sample, hexadecimal; '': there is none

    def problem(self, data: bytes, tar: Tar) -> str:
        """What is wrong with the bytes of the sample, or ''."""
        if len(data) < self.size:
            return "is cut"
        if self.checksum and f"{xxhash.xxh3_64_intdigest(data):x}" != self.checksum:
            again = "copy the shard again" if str(tar.path) == tar.name else f"remove {tar.path}, its copy, and retry"
            repair = "" if tar.prefix else ", or dcgan-dist verify --repair"
            return f"its bytes are not those that were written; {again}{repair}"
        return "" if self.length else "holds no image (null, or no bytes)"


def _placed(item: Item) -> tuple[str, _Place]:
    """Name in the tar, and where that is."""
    name, _, text = item.name.rpartition("#")
    tar, offset, length, *sample = text.split(",")
    before, size, checksum = sample or (0, length, "")
    return name, _Place(int(tar), int(offset), int(length), int(before), int(size), checksum)


def _names(number: int, index: ShardIndex, prefix: str) -> Iterator[str]:
    suffixes = [index.suffixes[suffix] for suffix in index.suffix.tolist()]
    places = [f"#{number},{at},{size}" for at, size in zip(index.offset.tolist(), index.length.tolist(), strict=True)]
    if index.checked:
        before, sizes = (index.offset - index.start[:-1]).tolist(), np.diff(index.start).tolist()
        samples = zip(places, before, sizes, index.checksum.tolist(), strict=True)
        places = [f"{place},{first},{size},{checksum:x}" for place, first, size, checksum in samples]
    return (f"{prefix}{key}.{suffix}{place}" for key, suffix, place in zip(index.keys, suffixes, places, strict=True))


def _index(tar: Tar, choice: MemberChoice) -> ShardIndex:
    try:
        index = None
        with suppress(UserError) if choice.skip_bad else nullcontext():  # images before it may be intact
            index = read_index(tar.file)
        with os_error_as_user_error(tar.file, "cannot be read"):
            return foreign_index(tar.file, choice) if index is None else index
    except UserError as error:
        raise UserError(str(error).replace(str(tar.file), tar.name)) from error


def staged_copies(names: Sequence[str], folder: Path, make: Convert, report: Report, settings: str = "") -> list[Path]:
    """Staged copies of files by path or URL, each as a plain tar; `report` takes a line for every one that is made.

    The folder is made when it is missing, and can be shared: every file is copied by one process at a time, while the
    others take the next ones, and complete copies are kept. A copy's name follows from what the file is, so a changed
    file gets another, and from `settings`. Raises UserError when a file cannot be read or the folder cannot be written.
    """

    def copy(name: str, wait: bool = False) -> tuple[Path, bool]:
        source: FileSource = Remote().stat(name) if is_remote(name) else Path(name)
        wanted = wanted_of(source)
        identity = f"{wanted.identity}\n{settings}"
        target = folder / f"{xxhash.xxh3_128_hexdigest(identity.encode())}.tar"
        with locked(target.with_suffix(".lock"), wait) as mine:
            is_new = mine and not target.exists()
            if is_new:
                remove_abandoned(target)
                make(source, wanted, target)
        return target, is_new

    paths = list[Path]()
    with os_error_as_user_error(folder, "cannot be written"), ThreadPoolExecutor(THREADS) as pool:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (path, is_new) in zip(names, pool.map(copy, names), strict=True):
            paths.append(path)
            if is_new:
                report(f"copied {name} ({len(paths):,} of {len(names):,})")
        for name, path in zip(names, paths, strict=True):
            if not path.exists():
                report(f"waiting for another process that copies {name}")
                copy(name, wait=True)  # makes it, should that process have been killed
    return paths


def _unpack(source: FileSource, wanted: Wanted, target: Path) -> None:
    with atomic_file(target) as plain:
        plain.writelines(contents(source, wanted, Remote()))
