"""Staged copies of files that cannot be read at random (remote, compressed, Parquet), each as a plain tar.

The folder of the copies can be shared: every file is copied by one process at a time, while the others take the next
ones, and complete copies are kept. A copy's name follows from what the file is, so that a changed file gets another.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from dcgan_dist.data.remote.client import Remote, is_remote
from dcgan_dist.data.remote.source import FileSource, Wanted, wanted_of
from dcgan_dist.data.sources.base import Report
from dcgan_dist.data.system.locks import locked
from dcgan_dist.data.system.storage import remove_abandoned
from dcgan_dist.errors import UserError

THREADS = 4  # copies at a time

Convert = Callable[[FileSource, Wanted, Path], None]
"""Makes the copy of a file at the path: complete or not at all."""


def staged_copies(
    names: Sequence[str], folder: Path, convert: Convert, report: Report, settings: str = ""
) -> list[Path]:
    """The copies of files by path or URL, in their order; `report` takes a line for every one that is made.

    The folder is made when it is missing; `settings`: what the copies depend on besides the files. Raises UserError
    when a file cannot be read or the folder cannot be written.
    """

    def copy(name: str, wait: bool = False) -> tuple[Path, bool]:
        source = Remote().stat(name) if is_remote(name) else Path(name)
        wanted = wanted_of(source)
        identity = f"{wanted.identity}\n{settings}"
        target = folder / f"{xxhash.xxh3_128_hexdigest(identity.encode())}.tar"
        with locked(target.with_suffix(".lock"), wait) as mine:
            is_new = mine and not target.exists()
            if is_new:
                remove_abandoned(target)
                convert(source, wanted, target)
        return target, is_new

    pool, paths = ThreadPoolExecutor(THREADS), list[Path]()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (path, is_new) in zip(names, pool.map(copy, names), strict=True):
            paths.append(path)
            if is_new:
                report(f"copied {name} ({len(paths):,} of {len(names):,})")
        for name, path in zip(names, paths, strict=True):
            if not path.exists():
                report(f"waiting for another process that copies {name}")
                copy(name, wait=True)  # makes it, should that process have been killed
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
    finally:
        pool.shutdown(cancel_futures=True)
    return paths
