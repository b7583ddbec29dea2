"""The embedded data set: cartoon faces that are painted, never downloaded.

The factors of a face are drawn independently of one another from `DISTRIBUTION`, so the probability of every
combination is known exactly: how many kinds of face a generator has lost can be counted instead of guessed.
"""

import io
import shutil
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dcgan_dist import keyed
from dcgan_dist.data.codecs import netpbm_header
from dcgan_dist.data.faces.art import Factors, Jitter, paint
from dcgan_dist.data.index import ShardWriter, read_index
from dcgan_dist.data.workers import available_cores, deaf_processes, follow_parent
from dcgan_dist.errors import UserError

VERSION = 1  # of the pictures, part of the shards' names: goes up with every change of the drawing or the distribution
SHARD_SIZE = 2_000
TASK_SIZE = 100  # images that a worker process paints at a time
MOST_WORKERS = 8
LEAST_JPEG = 0.05  # bytes a pixel

DISTRIBUTION: dict[str, dict[str, float]] = {
    "skin": {"fair": 0.22, "light": 0.26, "tan": 0.2, "brown": 0.18, "dark": 0.14},
    "hair_colour": {"black": 0.26, "brown": 0.24, "blond": 0.2, "ginger": 0.14, "silver": 0.08, "pink": 0.08},
    "hair_shape": {
        "bald": 0.08, "short": 0.18, "spiky": 0.12, "curly": 0.12, "long": 0.18, "bob": 0.12, "bun": 0.1,
        "pigtails": 0.1,
    },
    "eyes": {"brown": 0.34, "blue": 0.22, "green": 0.2, "sleepy": 0.08, "happy": 0.16},
    "mouth": {"smile": 0.36, "laugh": 0.28, "neutral": 0.14, "sad": 0.1, "surprised": 0.12},
    "glasses": {"none": 0.7, "round": 0.18, "square": 0.12},
    "background": {
        "sky": 0.2, "mint": 0.16, "lilac": 0.14, "lemon": 0.12, "rose": 0.12, "teal": 0.1, "blue": 0.08, "coral": 0.08,
    },
    "shirt": {"navy": 0.22, "red": 0.2, "mustard": 0.18, "green": 0.16, "white": 0.14, "plum": 0.1},
}  # fmt: skip


def factors(seed: int, index: int) -> Factors:
    """What face `index` (0, 1, ..) of set `seed` shows, from DISTRIBUTION; the cost does not depend on `index`."""
    count = len(DISTRIBUTION)
    numbers = keyed.uniform(keyed.key(seed, "faces", "factors"), index * count, count)
    chosen: dict[str, Any] = {}
    for number, (name, table) in zip(numbers, DISTRIBUTION.items(), strict=True):
        # all but the last bound, so that a sum rounded to a little less than 1 leaves no gap
        bounds = np.cumsum(list(table.values()))[:-1]
        chosen[name] = list(table)[int(np.searchsorted(bounds, number))]
    return Factors(**chosen)


def jitter(seed: int, index: int) -> Jitter:
    """How face `index` of set `seed` sits: every number uniform in (-1, 1)."""
    names = [item.name for item in fields(Jitter)]
    numbers = keyed.uniform(keyed.key(seed, "faces", "jitter"), index * len(names), len(names))
    return Jitter(**dict(zip(names, (2 * numbers - 1).tolist(), strict=True)))


def draw(seed: int, index: int, size: int) -> Image.Image:
    """Face `index` of set `seed`: RGB, size x size pixels, 32 to 256."""
    return paint(factors(seed, index), jitter(seed, index), size)


@dataclass(frozen=True, kw_only=True)
class FaceSet:
    """Everything that decides the bytes of the shards."""

    size: int
    channels: int
    count: int
    seed: int

    @property
    def suffix(self) -> str:
        """Small images lie in the shard as pixels, large ones as JPEG."""
        return "jpg" if self.size > 64 else "ppm" if self.channels == 3 else "pgm"

    def shards(self, folder: Path) -> dict[Path, range]:
        """Path and images of each shard."""
        name = f"faces-v{VERSION}-{self.size}px-{self.channels}c-s{self.seed}-n{self.count}"
        starts = range(0, self.count, SHARD_SIZE)
        return {
            folder / f"{name}-{number:05d}.tar": range(start, min(start + SHARD_SIZE, self.count))
            for number, start in enumerate(starts)
        }

    def encode(self, index: int) -> bytes:
        """The file of one face."""
        image = draw(self.seed, index, self.size)
        if self.channels == 1:
            image = image.convert("L")
        if self.suffix == "jpg":
            file = io.BytesIO()
            image.save(file, "JPEG", quality=95, subsampling="4:4:4")
            return file.getvalue()
        return netpbm_header(self.size, self.size, self.channels) + image.tobytes()


def ensure(
    folder: Path,
    *,
    size: int,
    channels: int,
    count: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """The sorted shards of `count` faces in `folder`; those that are missing or damaged are made first.

    Each shard appears whole or not at all and its bytes depend on the arguments alone, so a killed call is finished by
    the next one, and two processes may call at once. `progress` is given the images made so far and those to be made;
    it is not called when nothing is missing. Raises UserError when the folder cannot be written or a worker is killed.
    """
    faces = FaceSet(size=size, channels=channels, count=count, seed=seed)
    shards = faces.shards(folder)
    missing = {path: images for path, images in shards.items() if not _complete(path, len(images))}
    total = sum(map(len, missing.values()))
    done = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _require_room(folder, faces, total)
        with closing(_encoded(faces, list(missing.values()))) as encoded:
            for path, images in missing.items():
                with ShardWriter(path) as shard:
                    for index, data in zip(images, islice(encoded, len(images)), strict=True):
                        shard.add(f"{index:08d}", faces.suffix, data)
                        done += 1
                        if progress and (done % TASK_SIZE == 0 or done == total):
                            progress(done, total)
    except OSError as error:
        raise UserError(f"{folder}: the embedded faces cannot be written here ({error.strerror or error})") from error
    except BrokenProcessPool as error:
        raise UserError(
            f"{folder}: a process that paints the embedded faces was killed; the same call goes on"
        ) from error
    return list(shards)


def _complete(path: Path, count: int) -> bool:
    try:
        index = read_index(path)
    except UserError:
        return False
    return index is not None and len(index) == count


def _require_room(folder: Path, faces: FaceSet, count: int) -> None:
    """Raises UserError when the disk cannot hold so many of the faces, before hours are spent on drawing them."""
    needed = count * faces.size**2 * (faces.channels if faces.suffix != "jpg" else LEAST_JPEG)
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"{count:,} embedded faces take at least {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free"
        raise UserError(f"{folder}: {what}; fewer --data.faces, or XDG_CACHE_HOME on a larger disk")


def _encoded(faces: FaceSet, shards: list[range]) -> Generator[bytes, None, None]:
    """The files of the faces, in order, made by several processes where that is worth starting them."""
    tasks = [
        (faces, images[start : start + TASK_SIZE]) for images in shards for start in range(0, len(images), TASK_SIZE)
    ]
    workers = min(available_cores(), MOST_WORKERS, len(tasks) // 5)
    if workers < 2:
        for task in tasks:
            yield from _encode_task(task)
        return
    # spawned, not forked: forking a process that has threads, as any that imported torch, can hang
    pool = ProcessPoolExecutor(workers, mp_context=deaf_processes(), initializer=follow_parent)
    try:
        for files in pool.map(_encode_task, tasks):
            yield from files
    finally:
        pool.shutdown(cancel_futures=True)


def _encode_task(task: tuple[FaceSet, range]) -> list[bytes]:
    faces, indices = task
    return [faces.encode(index) for index in indices]
