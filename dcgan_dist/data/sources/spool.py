"""Copies of files that cannot be read at random (remote, compressed, Parquet), each as a plain tar.

The folder of the copies can be shared: every file is copied by one process at a time, while the others take the next
ones, and what is whole is kept. A copy's name follows from what the file is, so that a changed file gets another.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import xxhash

from dcgan_dist.data.locks import locked
from dcgan_dist.data.remote.client import Remote, is_remote
from dcgan_dist.data.remote.fill import Source, Wanted, wanted_of
from dcgan_dist.data.sources.base import Item, Report
from dcgan_dist.data.storage import remove_abandoned, temporary_path
from dcgan_dist.errors import UserError

THREADS = 4  # copies at a time

Convert = Callable[[Source, Wanted, Path], None]
"""Makes the tar of a file at the path: whole or not at all."""


class Unprepared:
    """What a source answers that has to be copied first."""

    def items(self) -> NoReturn:
        """Not before prepared()."""
        raise RuntimeError("prepared() comes first")

    def where(self, item: Item) -> NoReturn:  # noqa: ARG002
        """Not before prepared()."""
        raise RuntimeError("prepared() comes first")

    def open(self) -> NoReturn:
        """Not before prepared()."""
        raise RuntimeError("prepared() comes first")


def spool(names: Sequence[str], folder: Path, convert: Convert, settings: str, report: Report) -> list[Path]:
    """The copies of files, in their order.

    Args:
        names: paths and URLs.
        folder: where the copies lie; made when it is missing.
        convert: makes a copy.
        settings: what the copies depend on besides the files.
        report: takes a line for every copy that is made.

    Raises UserError when a file cannot be read or the folder cannot be written.
    """
    spooler = _Spooler(folder, convert, settings)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    pool = ThreadPoolExecutor(THREADS)
    try:
        copies: list[_Copy] = []
        for number, (name, copy) in enumerate(zip(names, pool.map(spooler.copy, names), strict=True), 1):
            copies.append(copy)
            if copy.how == "copied":
                report(f"copied {name} ({number:,} of {len(names):,})")
    finally:
        pool.shutdown(cancel_futures=True)
    for place, (name, copy) in enumerate(zip(names, copies, strict=True)):
        if copy.how == "busy" and not copy.path.exists():
            report(f"waiting for another process that copies {name}")
            copies[place] = spooler.copy(name, wait=True)  # makes it, should that process have been killed
    return [copy.path for copy in copies]


@dataclass(frozen=True)
class _Copy:
    path: Path
    how: Literal["kept", "copied", "busy"]


@dataclass(frozen=True)
class _Spooler:
    folder: Path
    convert: Convert
    settings: str

    def copy(self, name: str, wait: bool = False) -> _Copy:
        source = Remote().stat(name) if is_remote(name) else Path(name)
        wanted = wanted_of(source)
        identity = f"{wanted.identity}\n{self.settings}"
        target = self.folder / f"{xxhash.xxh3_128_hexdigest(identity.encode())}.tar"
        with _writing(self.folder), locked(target.with_suffix(".lock"), wait) as mine:
            if target.exists():
                return _Copy(target, "kept")
            if not mine:
                return _Copy(target, "busy")
            self.convert(source, wanted, target)
        return _Copy(target, "copied")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error


@contextmanager
def here(source: Source, target: Path) -> Iterator[Path]:
    """The path of a source on this machine: its own, or that of a download beside `target`, which goes afterwards."""
    if isinstance(source, Path):
        yield source
        return
    path = target.with_suffix(".download")
    remove_abandoned(path)
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:
            Remote().download(source, file)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
