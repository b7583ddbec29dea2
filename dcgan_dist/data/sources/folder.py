"""Images in a folder tree, or in a .zip of one. The labels are the numbers of the class folders."""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dcgan_dist.data.shards.labels import ENCODING
from dcgan_dist.data.sources.base import FilesSource, Item, Items, Load, Loaded, Source, images_among
from dcgan_dist.errors import UsageError, UserError, os_error_as_user_error


@dataclass(frozen=True)
class FolderSource(FilesSource):
    """All images below a folder, by the bytes of their paths; links are followed."""

    def items(self) -> Items:
        """All images below the folder."""
        return images_among(files_below(self.folder), self.folder)


def files_below(top: Path, below: str = "", above: frozenset[str] = frozenset()) -> Iterator[str]:
    """The paths of all files in `top / below`, by their bytes, without holding more than one folder's names a level.

    `above`: the real paths of the folders above, into which no link leads back.
    """
    real = os.path.realpath(top / below)
    if real in above:
        return
    with os_error_as_user_error(top / below, "cannot be read"), os.scandir(top / below) as entries:
        names = [entry.name + "/" if entry.is_dir() else entry.name for entry in entries]
    for name in sorted(names, key=lambda name: name.encode(*ENCODING)):  # with '/', a folder sorts as the paths in it
        if name.endswith("/"):
            yield from files_below(top, below + name, above | {real})
        else:
            yield below + name


@dataclass(frozen=True)
class ZipSource(Source):
    """All images in a .zip, read from where they are; nothing is extracted."""

    path: Path

    def items(self) -> Items:
        """All images in the archive."""
        with self._opened() as (_, members):
            files = [name for name, _ in members if not name.endswith("/")]
        items = images_among(sorted(set(files), key=lambda name: name.encode(*ENCODING)), self.path)
        twice = len(files) - len(set(files))
        return items._replace(left_out=items.left_out | {"earlier files of the same name": twice}) if twice else items

    def where(self, item: Item) -> str:
        """The archive's path and the member's."""
        return f"{self.path}: {item.name}"

    @contextmanager
    def _opened(self) -> Iterator[tuple[zipfile.ZipFile, list[tuple[str, zipfile.ZipInfo]]]]:
        """The archive and its members; some programs of Windows separate folders by a backslash."""
        try:
            archive = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UsageError(f"{self.path}: cannot be read as a .zip ({error})") from error
        with archive:
            yield archive, [(info.filename.replace("\\", "/"), info) for info in archive.infolist()]

    @contextmanager
    def open(self) -> Iterator[Load]:
        """A function that reads members."""
        with self._opened() as (archive, members):
            infos = dict(members)

            def load(item: Item) -> Loaded:
                try:
                    return archive.read(infos[item.name]), item.label
                except Exception as error:  # damage and encryption show as errors of any kind
                    raise UserError(f"{self.where(item)}: cannot be read ({error})") from error

            yield load
