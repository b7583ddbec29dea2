"""Staged copies of files that cannot be read at random (remote, compressed, Parquet), each as a plain tar.

The folder of the copies can be shared: every file is copied by one process at a time, while the others take the next
ones, and complete copies are kept. A copy's name follows from what the file is, so that a changed file gets another.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xxhash

from dcgan_dist.data.remote.client import Remote, is_remote
from dcgan_dist.data.remote.fill import Source, Wanted, wanted_of
from dcgan_dist.data.sources.base import Report
from dcgan_dist.data.system.locks import locked
from dcgan_dist.data.system.storage import remove_abandoned
from dcgan_dist.errors import UserError

THREADS = 4  # copies at a time

Convert = Callable[[Source, Wanted, Path], None]
"""Makes the copy of a file at the path: complete or not at all."""
State = Literal["kept", "copied", "busy"]


@dataclass(frozen=True)
class Stage:
    """Makes copies in a folder, which is made when it is missing."""

    folder: Path
    convert: Convert
    settings: str = ""
    """What the copies depend on besides the files."""

    def copies(self, names: Sequence[str], report: Report) -> list[Path]:
        """The copies of files by path or URL, in their order; `report` takes a line for every one that is made.

        Raises UserError when a file cannot be read or the folder cannot be written.
        """
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
        pool = ThreadPoolExecutor(THREADS)
        found: list[tuple[Path, State]] = []
        try:
            for name, (path, state) in zip(names, pool.map(self._copy, names), strict=True):
                found.append((path, state))
                if state == "copied":
                    report(f"copied {name} ({len(found):,} of {len(names):,})")
        finally:
            pool.shutdown(cancel_futures=True)
        for name, (path, state) in zip(names, found, strict=True):
            if state == "busy" and not path.exists():
                report(f"waiting for another process that copies {name}")
                self._copy(name, wait=True)  # makes it, should that process have been killed
        return [path for path, _ in found]

    def _copy(self, name: str, wait: bool = False) -> tuple[Path, State]:
        source = Remote().stat(name) if is_remote(name) else Path(name)
        wanted = wanted_of(source)
        identity = f"{wanted.identity}\n{self.settings}"
        target = self.folder / f"{xxhash.xxh3_128_hexdigest(identity.encode())}.tar"
        with self._writing(), locked(target.with_suffix(".lock"), wait) as mine:
            if target.exists():
                return target, "kept"
            if not mine:
                return target, "busy"
            remove_abandoned(target)
            self.convert(source, wanted, target)
        return target, "copied"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror})") from error
