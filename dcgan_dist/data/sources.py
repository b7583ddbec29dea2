"""Where images come from before they are shards: a folder tree, a .zip of one, or a torchvision data set by name.

A source is a small value that travels to other processes; each opens it for itself.
"""

import ast
import difflib
import inspect
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

from PIL import Image

from dcgan_dist.errors import UsageError, UserError

IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".png", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".gif", ".tif", ".tiff"
)  # fmt: skip
TORCHVISION = "torchvision:"


class Item(NamedTuple):
    """One image of a source."""

    name: str  # path below the source with '/', or the number in the data set
    label: int | None  # None: there is none, or only loading tells


class Items(NamedTuple):
    """What a source holds."""

    images: list[Item]
    left_out: int  # files that are hidden or have another extension


Loaded = tuple[bytes | Image.Image, int | None]  # the file's bytes or the picture, and the label
Load = Callable[[Item], Loaded]


class Source(Protocol):
    """Images with names and labels, in an order that depends on nothing but the names."""

    def items(self) -> Items:
        """All images. Raises UsageError when there are none."""
        ...

    def where(self, item: Item) -> str:
        """The image's name for messages."""
        ...

    def open(self) -> AbstractContextManager[Load]:
        """A function for the calling process that loads one image, or raises UserError naming it."""
        ...


def find_source(text: str, root: Path = Path("data"), download: bool = False) -> Source:
    """The source that a command-line argument names; `root` and `download` are for torchvision's data sets alone.

    Raises UsageError when there is no such thing.
    """
    if text.startswith(TORCHVISION):
        name, _, options = text.removeprefix(TORCHVISION).partition("?")
        return TorchvisionSource(name, tuple(parse_qsl(options)), root, download)
    path = Path(text)
    if path.is_dir():
        return FolderSource(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        return ZipSource(path)
    problem = "neither a folder nor a .zip" if path.exists() else "no such file or folder"
    raise UsageError(f"{text}: {problem}; give a folder of images, a .zip of one, or {TORCHVISION}NAME")


@dataclass(frozen=True)
class FolderSource:
    """All images below a folder, by the bytes of their paths; links are followed."""

    path: Path

    def items(self) -> Items:
        """All images below the folder."""
        return _labelled(self._files(), self.path)

    def _files(self) -> Iterator[str]:
        seen: set[Path] = set()
        for folder, folders, files in os.walk(self.path, onerror=_unreadable, followlinks=True):
            folders.sort()
            if Path(folder).resolve() in seen:  # a link that leads back
                folders.clear()
                continue
            seen.add(Path(folder).resolve())
            yield from ((Path(folder) / file).relative_to(self.path).as_posix() for file in files)

    def where(self, item: Item) -> str:
        """The file's path."""
        return str(self.path / item.name)

    @contextmanager
    def open(self) -> Iterator[Load]:
        """A function that reads files."""

        def load(item: Item) -> Loaded:
            try:
                return (self.path / item.name).read_bytes(), item.label
            except OSError as error:
                raise UserError(f"{self.where(item)}: cannot be read ({error.strerror})") from error

        yield load


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class ZipSource:
    """All images in a .zip, read from where they are; nothing is extracted."""

    path: Path

    def items(self) -> Items:
        """All images in the archive."""
        with self._opened() as archive:
            return _labelled({info.filename for info in archive.infolist() if not info.is_dir()}, self.path)

    def where(self, item: Item) -> str:
        """The archive's path and the member's."""
        return f"{self.path}: {item.name}"

    def _opened(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UsageError(f"{self.path}: cannot be read as a .zip ({error})") from error

    @contextmanager
    def open(self) -> Iterator[Load]:
        """A function that reads members."""
        with self._opened() as archive:

            def load(item: Item) -> Loaded:
                try:
                    return archive.read(item.name), item.label
                except Exception as error:  # damage and encryption show as errors of any kind
                    raise UserError(f"{self.where(item)}: cannot be read ({error})") from error

            yield load


def _labelled(names: Iterable[str], source: Path) -> Items:
    """The images among the names, sorted. The label counts the folders of the first level at which the paths differ."""
    names = sorted(names, key=os.fsencode)
    images = [name for name in names if _is_image(PurePosixPath(name))]
    if not images:
        known = " ".join(IMAGE_EXTENSIONS)
        raise UsageError(f"{source}: no images in it ({len(names):,} other files; images end with {known})")
    folders = [PurePosixPath(name).parent.parts for name in images]
    level = _shared(min(folders), max(folders))
    if any(len(folder) == level for folder in folders):
        return Items([Item(name, None) for name in images], len(names) - len(images))
    classes = sorted({folder[level] for folder in folders}, key=os.fsencode)
    labels = {name: label for label, name in enumerate(classes)}
    labelled = [Item(name, labels[folder[level]]) for name, folder in zip(images, folders, strict=True)]
    return Items(labelled, len(names) - len(images))


def _shared(first: tuple[str, ...], last: tuple[str, ...]) -> int:
    """Number of folders that two paths begin with in common; of the least and the greatest path: that all have."""
    differing = (level for level, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(differing, min(len(first), len(last)))


def _is_image(path: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not hidden and path.suffix.lower() in IMAGE_EXTENSIONS


@dataclass(frozen=True)
class TorchvisionSource:
    """A data set of torchvision.datasets by its class name, with constructor options such as ("split", "unlabeled")."""

    name: str
    options: tuple[tuple[str, str], ...]
    root: Path
    download: bool

    def items(self) -> Items:
        """All images of the data set, downloaded first where that is asked for."""
        count = len(self._opened(self.download))
        if not count:
            raise UsageError(f"{TORCHVISION}{self.name}: no images in it")
        width = len(str(count - 1))
        return Items([Item(f"{number:0{width}}", None) for number in range(count)], 0)

    def where(self, item: Item) -> str:
        """The data set and the number in it."""
        return f"{TORCHVISION}{self.name}[{int(item.name)}]"

    def _opened(self, download: bool) -> Any:
        make = _data_set_class(self.name)
        given = {"root": self.root, "download": download}
        arguments = {name: value for name, value in given.items() if name in inspect.signature(make).parameters}
        try:
            return make(**arguments, **{name: _value(text) for name, text in self.options})
        except (RuntimeError, TypeError, ValueError, OSError, ImportError) as error:
            missing = isinstance(error, RuntimeError) and not download
            hint = "; --download fetches it, --root names another place" if missing else ""
            raise UsageError(f"{TORCHVISION}{self.name} in {self.root}: {error}{hint}") from error

    @contextmanager
    def open(self) -> Iterator[Load]:
        """A function that asks the data set for one image."""
        data_set = self._opened(download=False)  # items has downloaded; processes must not unpack over one another

        def load(item: Item) -> Loaded:
            try:
                sample = data_set[int(item.name)]
                image, label = sample[:2] if isinstance(sample, tuple) else (sample, None)
                if isinstance(image, Image.Image):
                    image.load()
            except Exception as error:  # whatever its files and decoders raise
                raise UserError(f"{self.where(item)}: cannot be read ({error})") from error
            if not isinstance(image, Image.Image):
                raise UsageError(f"{TORCHVISION}{self.name}: yields {type(image).__name__}, not images")
            return image, label if type(label) is int and label >= 0 else None

        yield load


def _data_set_class(name: str) -> Callable[..., Any]:
    import torchvision.datasets  # takes seconds, and only this source needs it

    names = {known.lower(): known for known in torchvision.datasets.__all__}
    if name not in names.values():
        near = [names[close] for close in difflib.get_close_matches(name.lower(), names)]
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(sorted(names.values()))}"
        raise UsageError(f"{TORCHVISION}{name}: torchvision has no such data set; {hint}")
    return getattr(torchvision.datasets, name)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
