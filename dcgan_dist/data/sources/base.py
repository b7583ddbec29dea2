"""What all sources have in common: images by name and number, and a function that loads one.

A source may hold 100 million images, so their names lie in one piece of memory, not in as many objects.
"""

import io
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dcgan_dist.data.images.formats import ending_of, is_image_name
from dcgan_dist.data.remote.client import base_name
from dcgan_dist.data.remote.unpack import TAR_ENDINGS
from dcgan_dist.data.shards.index import NO_LABEL
from dcgan_dist.data.shards.labels import ENCODING, number_names
from dcgan_dist.data.system.storage import open_regular
from dcgan_dist.errors import UsageError, os_error_as_user_error
from dcgan_dist.text import count_text, listed

ENDINGS = {
    **dict.fromkeys(TAR_ENDINGS, "tar"),
    **dict.fromkeys((".csv", ".tsv", ".jsonl"), "list"),
    ".parquet": "Parquet",
    ".zip": "zip",
}
NOT_PREPARED = "call prepared() first"
LABEL_FILES = (".csv", ".tsv", ".jsonl", ".json", ".cls", ".txt", ".xml", ".mat")
SPLITS = re.compile(r"(train|test|valid|validation|val|dev|trainval|unlabell?ed)[_-]?\d*", re.IGNORECASE)


def ending(name: str) -> str:
    """Which of ENDINGS a path or URL has; '' for none."""
    return next((known for known in ENDINGS if base_name(name).lower().endswith(known)), "")


class Item(NamedTuple):
    """One image of a source."""

    name: str  # path below the source with '/', or the number in the data set; for tars it ends with the place in them
    label: int | None  # None: there is none, or it is only known once the image is loaded


class Images:
    """The images of a source, a sequence of Items in as many bytes as their names have, and 16 each.

    A process can be sent its part, which holds no others.
    """

    def __init__(self, names: Iterable[str], labels: NDArray[np.int64] | None = None) -> None:
        text, bounds = io.BytesIO(), array("q", [0])
        for name in names:
            text.write(name.encode(*ENCODING))
            bounds.append(text.tell())
        self._text, self._bounds = text.getvalue(), np.array(bounds, dtype=np.int64)  # of the names in the text
        self.labels = np.full(len(self), NO_LABEL, dtype=np.int64) if labels is None else labels  # of all; -1: none

    def take(self, places: Sequence[int] | NDArray[np.int64]) -> "Images":
        """The images at these places, in this order."""
        chosen = np.asarray(places, dtype=np.int64)
        return Images(map(self._name, chosen.tolist()), self.labels[chosen])

    def names(self) -> Iterator[str]:
        """The name of every image."""
        return map(self._name, range(len(self)))

    def _name(self, place: int) -> str:
        return self._text[self._bounds[place] : self._bounds[place + 1]].decode(*ENCODING)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[Item]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: int) -> Item:
        place = range(len(self))[place]
        label = int(self.labels[place])
        return Item(self._name(place), None if label == NO_LABEL else label)


class Items(NamedTuple):
    """What a source holds."""

    images: Images
    left_out: dict[str, int]  # files that are no images by their names: how many of each ending
    classes: Mapping[int, str] = MappingProxyType({})  # names of labels, where they are known
    lines: tuple[str, ...] = ()  # for people: what is not used of the source, and why images have no label


File = bytes | Image.Image  # the bytes of an image's file, or the picture where the source has no files
Loaded = tuple[File, int | None]  # with the label
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


@dataclass(frozen=True)
class FilesSource(Source):
    """Images that are files, by their paths below a folder."""

    folder: Path

    def where(self, item: Item) -> str:
        """The file's path."""
        return str(self.folder / item.name)

    def open(self) -> AbstractContextManager[Load]:
        """A function that reads files."""
        return nullcontext(self._load)

    def _load(self, item: Item) -> Loaded:
        with os_error_as_user_error(self.where(item), "cannot be read"), open_regular(self.folder / item.name) as file:
            return file.read(), item.label


def images_among(names: Iterable[str], source: Path) -> Items:
    """The images among the names of a source's files, labelled by their folders. Raises UsageError without any."""
    others = Counter[str]()

    def is_wanted(name: str) -> bool:
        if is_image(name):
            return True
        others["hidden" if is_hidden(name) else ending_of(name)] += 1
        return False

    images = Images(filter(is_wanted, names))
    if not len(images):
        found = count_text(others, "other file") if others else "it is empty"
        raise UsageError(f"{source}: no images in it; {found}; images end with .jpg, .png, .. (docs/data.md has all)")
    images.labels, classes, lines = folder_labels(images, str(source))
    if not classes and (files := {ending: others[ending] for ending in LABEL_FILES if ending in others}):
        text = f"labels: none, for there are no class folders; {count_text(files, 'other file')} may hold them"
        lines += (f"{text}: a .csv or .jsonl list with a path and a label a line can be the source",)
    return Items(images, dict(others), classes, lines)


def is_image(name: str) -> bool:
    """Whether a path is an image's by its extension, and not hidden."""
    return is_image_name(name) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a file or a folder of the path is hidden, or is what macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in folders_of(name + "/"))


def folders_of(name: str) -> list[str]:
    """The folders in a path, without './' and '//'."""
    return [part for part in name.split("/")[:-1] if part not in ("", ".")]


def folder_labels(images: Images, source: str) -> tuple[NDArray[np.int64], dict[int, str], tuple[str, ...]]:
    """Labels by the folders of the first level at which the paths differ, the folders' names (see number_names), and
    lines for people, as where images lie above that level, which have no label.
    """
    level = 0
    while True:
        names = (folders[level] for folders in map(folders_of, images.names()) if len(folders) > level)
        found, classes = number_names(names, source)
        if len(classes) != 1:
            break
        level += 1
    labels, lines = np.full(len(images), NO_LABEL, dtype=np.int64), list[str]()
    if classes:
        below = (len(folders_of(name)) > level for name in images.names())
        labels[np.fromiter(below, dtype=bool, count=len(images))] = found
        if len(found) < len(images):
            outside = f"{len(images) - len(found):,} of {len(images):,} images"
            lines.append(f"labels: {outside} have none, for they lie beside the class folders")
        if all(map(SPLITS.fullmatch, classes.values())):
            lines.append("labels: the classes are named as parts of a data set; pack one part for classes of its own")
    return labels, classes, tuple(lines)


def unused_columns(names: Iterable[str]) -> list[str]:
    """A line for people about the columns of a table that are neither image nor label; none where there is none."""
    text = listed(list(names), 10)
    return [f"columns not used: {text} (--image_column and --label_column choose others)"] if text else []
