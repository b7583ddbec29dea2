"""What all sources have in common: images by name and number, and a function that loads one.

A source may hold 100 million images, so their names lie in one piece of memory, not in as many objects.
"""

import io
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count, islice
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dcgan_dist.data.images.formats import ending_of, is_image_name
from dcgan_dist.data.shards.index import NO_LABEL
from dcgan_dist.data.shards.labels import DIGITS, common_numbering, relabel
from dcgan_dist.data.system.storage import open_regular
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.text import count_text

ENCODING = ("utf-8", "surrogateescape")  # names of files that are not UTF-8 survive it
LISTED = 10  # columns
NOT_PREPARED = "prepared() comes first"
NO_IMAGE = "holds no image (null, or no bytes)"
LABEL_FILES = (".csv", ".tsv", ".jsonl", ".json", ".cls", ".txt", ".xml", ".mat")
SPLITS = re.compile(r"(train|test|valid|validation|val|dev|trainval|unlabell?ed)[_-]?\d*", re.IGNORECASE)
WHOLE_NUMBER = re.compile(rf"\d{{1,{DIGITS}}}", re.ASCII)


class Item(NamedTuple):
    """One image of a source."""

    name: str  # path below the source with '/', or the number in the data set; for tars it ends with the place in them
    label: int | None  # None: there is none, or only loading tells


class Images(Sequence[Item]):
    """The images of a source: the bytes of their names and 16 bytes each.

    Slices and selections hold what they need, so that a process can be sent its part.
    """

    def __init__(self, text: bytes, ends: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        self._text = text
        self._ends = ends  # of the names in the text
        self.labels = labels
        """Label of every image, -1 where there is none."""

    @classmethod
    def of(cls, names: Iterable[str], labels: NDArray[np.int64] | None = None) -> "Images":
        """Images of these names; without labels unless there are some."""
        text, ends = io.BytesIO(), array("q")
        for name in names:
            text.write(name.encode(*ENCODING))
            ends.append(text.tell())
        return cls(
            text.getvalue(),
            np.array(ends, dtype=np.int64),
            np.full(len(ends), NO_LABEL, dtype=np.int64) if labels is None else labels,
        )

    def with_labels(self, labels: NDArray[np.int64]) -> "Images":
        """The same images with other labels."""
        return Images(self._text, self._ends, labels)

    def take(self, places: Sequence[int] | NDArray[np.int64]) -> "Images":
        """The images at these places, in this order."""
        chosen = np.asarray(places, dtype=np.int64)
        names = [self._text[slice(*self._bounds(place))] for place in chosen.tolist()]
        ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        return Images(b"".join(names), ends, self.labels[chosen])

    def names(self) -> Iterator[str]:
        """The name of every image."""
        return (self._name(place) for place in range(len(self)))

    def _bounds(self, place: int) -> tuple[int, int]:
        return int(self._ends[place - 1]) if place else 0, int(self._ends[place])

    def _name(self, place: int) -> str:
        return self._text[slice(*self._bounds(place))].decode(*ENCODING)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> "Images": ...
    def __getitem__(self, place: int | slice) -> "Item | Images":
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        place = range(len(self))[place]
        label = int(self.labels[place])
        return Item(self._name(place), None if label == NO_LABEL else label)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))


class Items(NamedTuple):
    """What a source holds."""

    images: Images
    left_out: dict[str, int]  # files that are no images by their names: how many of each ending
    classes: Mapping[int, str] = MappingProxyType({})  # names of labels, where they are known
    lines: tuple[str, ...] = ()  # for people: what is not used of the source, and why images have no label


Loaded = tuple[bytes | Image.Image, int | None]  # the file's bytes or the picture, and the label
Load = Callable[[Item], Loaded]
Report = Callable[[str], None]  # takes a line for people


class Source:
    """Images with names and labels, in an order that depends on nothing but the names."""

    def prepared(self, folder: Path, report: Report) -> "Source":  # noqa: ARG002
        """The same images where each can be read by itself; only then items, where and open can be called.

        Sources that can't be read so (remote, compressed, Parquet) are copied into the folder, once for all processes
        that name the same one; what an earlier start has copied is kept. Others are ready. Raises UserError.
        """
        return self

    def items(self) -> Items:
        """All images. Raises UsageError when there are none."""
        raise RuntimeError(NOT_PREPARED)

    def where(self, item: Item) -> str:  # noqa: ARG002
        """The image's name for messages."""
        raise RuntimeError(NOT_PREPARED)

    def open(self) -> AbstractContextManager[Load]:
        """A function for the calling process that loads one image, or raises UserError naming it."""
        raise RuntimeError(NOT_PREPARED)


class FilesSource(Source):
    """Images that are files below a folder."""

    @property
    def folder(self) -> Path:
        """The folder, in which the names of the images are paths."""
        raise NotImplementedError

    def where(self, item: Item) -> str:
        """The file's path."""
        return str(self.folder / item.name)

    @contextmanager
    def open(self) -> Iterator[Load]:
        """A function that reads files."""

        def load(item: Item) -> Loaded:
            try:
                with open_regular(self.folder / item.name) as file:
                    return file.read(), item.label
            except OSError as error:
                raise UserError(f"{self.where(item)}: cannot be read ({error.strerror})") from error

        yield load


def images_among(names: Iterable[str], source: Path) -> Items:
    """The images among the names of a source's files, labelled by their folders. Raises UsageError without any."""
    others = Counter[str]()

    def wanted() -> Iterator[str]:
        for name in names:
            if is_image(name):
                yield name
            else:
                others["hidden" if is_hidden(name) else ending_of(name)] += 1

    images = Images.of(wanted())
    if not images:
        found = count_text(others, "other file") if others else "it is empty"
        raise UsageError(f"{source}: no images in it; {found}; images end with .jpg, .png, .. (docs/data.md has all)")
    labels, classes, lines = folder_labels(images, str(source))
    if not classes and (files := {ending: others[ending] for ending in LABEL_FILES if ending in others}):
        text = f"labels: none, for there are no class folders; {count_text(files, 'other file')} may hold them"
        lines += (f"{text}: a .csv or .jsonl list with a path and a label a line can be the source",)
    return Items(images.with_labels(labels), dict(others), classes, lines)


def is_image(name: str) -> bool:
    """Whether a path is an image's by its extension, and not hidden."""
    return is_image_name(name) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a file or a folder of the path is hidden, or is what macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in folders_of(name + "/"))


def folders_of(name: str) -> list[str]:
    """The folders in a path; './' and '//' say nothing."""
    return [part for part in name.split("/")[:-1] if part not in ("", ".")]


def folder_labels(images: Images, source: str) -> tuple[NDArray[np.int64], dict[int, str], tuple[str, ...]]:
    """Labels by the folders of the first level at which the paths differ, the folders' names (see number_names), and
    a line for people where images lie above that level, which have no label.
    """
    shared: list[str] = []  # the folders that all paths begin with, or end in
    forked = False
    for name in images.names():
        folders = folders_of(name)
        same = _in_common(shared, folders)
        if same < min(len(shared), len(folders)):
            shared, forked = shared[:same], True
        elif len(folders) > len(shared) and not forked:
            shared = folders
    labels = np.full(len(images), NO_LABEL, dtype=np.int64)
    if not forked:
        return labels, {}, ()
    level = len(shared)
    below = np.fromiter((len(folders_of(name)) > level for name in images.names()), dtype=bool, count=len(images))
    labels[below], classes = number_names(
        (folders[level] for folders in map(folders_of, images.names()) if len(folders) > level), source
    )
    outside = len(images) - int(below.sum())
    lines = [f"labels: {outside:,} of {len(images):,} images have none, for they lie beside the class folders"]
    lines *= outside > 0
    if all(map(SPLITS.fullmatch, classes.values())):
        lines.append("labels: the classes are named as parts of a data set; one part as the source has its own classes")
    return labels, classes, tuple(lines)


def _in_common(first: list[str], second: list[str]) -> int:
    differing = (level for level, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differing, min(len(first), len(second)))


def number_names(names: Iterable[str], source: str) -> tuple[NDArray[np.int64], dict[int, str]]:
    """The label of every name, and the name of every label: see labels_of; names are numbered in sorted order.

    Raises UsageError, which says `source`, when two names are the same number.
    """
    seen: dict[str, int] = {}
    found = np.fromiter((seen.setdefault(name, len(seen)) for name in names), dtype=np.int64)
    ranked = sorted(seen, key=lambda name: name.encode(*ENCODING))
    classes: dict[int, str] = {}
    label = np.empty(len(ranked), dtype=np.int64)
    for number, name in zip(labels_of(ranked), ranked, strict=True):
        if number in classes:
            problem = f"the classes '{classes[number]}' and '{name}' are the same number; rename one of them"
            raise UsageError(f"{source}: {problem}")
        classes[number] = name
        label[seen[name]] = number
    return label[found], dict(sorted(classes.items()))


def labels_of(names: Sequence[str]) -> list[int]:
    """Numbers keep their number; words, and 01 beside 1 and words, get those above the largest, or the first free."""
    numbers = [int(name) if WHOLE_NUMBER.fullmatch(name) else None for name in names]
    known = Counter(numbers)
    if None in known:
        numbers = [None if known[n] > 1 and str(n) != name else n for n, name in zip(numbers, names, strict=True)]
    first = max((number for number in numbers if number is not None), default=-1) + 1
    start = first if first + numbers.count(None) <= 10**DIGITS else 0
    free = (number for number in count(start) if number not in known)
    return [next(free) if number is None else number for number in numbers]


def labels_in_common(
    files: Sequence[tuple[NDArray[np.int64], Sequence[str]]], source: str
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """The labels of the images of all files, and the names of the labels where some of them are words.

    `files`: of each the labels, and the words whose places they are, where they are words.
    """
    labels, classes = [found for found, _ in files], dict[int, str]()
    if any(words for _, words in files):
        tables, classes = common_numbering(files, lambda found: number_names(found, source))
        labels = [relabel(found, table) for found, table in zip(labels, tables, strict=True)]
    return np.concatenate(labels), classes


def unused_columns(names: Iterable[str]) -> list[str]:
    """A line for people about the columns of a table that are neither image nor label; none where there is none."""
    shown = list(islice(names, LISTED + 1))
    text = ", ".join([*shown[:LISTED], ".."][: len(shown)])
    return [f"columns not used: {text} (--image_column and --label_column choose others)"] if shown else []


def renumbered(names: Sequence[str]) -> list[int]:
    """The labels that a data set's labels 0, 1, .. get, of which it gives the names: see labels_of, or the same."""
    labels = labels_of(names)
    return labels if len(set(labels)) == len(names) else list(range(len(names)))
