"""Images in a folder tree, or in a .zip of one. The labels are the numbers of the class folders."""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dcgan_dist.data.sources.base import ENCODING, FilesSource, Item, Items, Load, Loaded, Source, images_among
from dcgan_dist.errors import UsageError, UserError


@dataclass(frozen=True)
class FolderSource(FilesSource):
    """All images below a folder, by the bytes of their paths; links are followed."""

    path: Path

    @property
    def folder(self) -> Path:
        """The folder."""
        return self.path

    def items(self) -> Items:
        """All images below the folder."""
        return images_among(files_below(self.path), self.path)


def files_below(folder: Path) -> Iterator[str]:
    """The paths of all files below a folder, by their bytes, without holding more than one folder's names a level."""
    return _walk(folder, "", frozenset())


def _walk(top: Path, below: str, above: frozenset[str]) -> Iterator[str]:
    real = os.path.realpath(top / below)
    if real in above:  # a link that leads back
        return
    try:
        with os.scandir(top / below) as entries:
            names = [entry.name + "/" if entry.is_dir() else entry.name for entry in entries]
    except OSError as error:
        raise UserError(f"{top / below}: cannot be read ({error.strerror})") from error
    for name in sorted(names, key=_bytes):  # with its '/', a folder sorts as the paths below it do
        if name.endswith("/"):
            yield from _walk(top, below + name, above | {real})
        else:
            yield below + name


def _unix(name: str) -> str:
    """Some programs of Windows part folders by a backslash."""
    return name.replace("\\", "/")


def _bytes(name: str) -> bytes:
    return name.encode(*ENCODING)


@dataclass(frozen=True)
class ZipSource(Source):
    """All images in a .zip, read from where they are; nothing is extracted."""

    path: Path

    def items(self) -> Items:
        """All images in the archive."""
        with self._opened() as archive:
            names = [_unix(info.filename) for info in archive.infolist() if not _unix(info.filename).endswith("/")]
        items = images_among(sorted(set(names), key=_bytes), self.path)
        twice = len(names) - len(set(names))
        return items._replace(left_out=items.left_out | {"earlier files of the same name": twice}) if twice else items

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
            infos = {_unix(info.filename): info for info in archive.infolist()}

            def load(item: Item) -> Loaded:
                try:
                    return archive.read(infos[item.name]), item.label
                except Exception as error:  # damage and encryption show as errors of any kind
                    raise UserError(f"{self.where(item)}: cannot be read ({error})") from error

            yield load
