"""The embedded data set: cartoon faces that are painted, never downloaded.

The factors of a face are drawn independently of one another from `DISTRIBUTION`, so the probability of every
combination is known exactly: how many kinds of face a generator has lost can be counted instead of guessed.
"""

import io
import shutil
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from dcgan_dist import keyed
from dcgan_dist.data.faces.art import DRAWING, STILL, Factors, Jitter, paint
from dcgan_dist.data.images.codecs import encode
from dcgan_dist.data.shards.index import ShardWriter, read_index
from dcgan_dist.data.system.pool import Tick, WorkerKilledError, run_jobs
from dcgan_dist.data.system.workers import available_cores
from dcgan_dist.errors import UserError

VERSION = 1  # of the pictures, part of the shards' names: goes up with every change of the drawing or the distribution
SHARD_SIZE = 2_000
TASK_SIZE = 100  # images that a worker process paints at a time
MOST_WORKERS = 8
LARGEST_PIXELS = 64  # size up to which faces are stored as pixels
LEAST_JPEG = 0.05  # bytes a pixel

DISTRIBUTION: dict[str, dict[str, float]] = DRAWING["factors"]
"""Factor -> value -> probability."""


def factors(seed: int, index: int) -> Factors:
    """What face `index` (0, 1, ..) of set `seed` shows, from DISTRIBUTION; the cost does not depend on `index`."""
    count = len(DISTRIBUTION)
    numbers = keyed.uniform(keyed.key(seed, "faces", "factors"), index * count, count)
    chosen = {}
    for number, (name, table) in zip(numbers, DISTRIBUTION.items(), strict=True):
        # all but the last bound, so that a sum rounded to a little less than 1 leaves no gap
        bounds = np.cumsum(list(table.values()))[:-1]
        chosen[name] = list(table)[int(np.searchsorted(bounds, number))]
    return chosen


def jitter(seed: int, index: int) -> Jitter:
    """How face `index` of set `seed` sits: every number uniform in (-1, 1)."""
    count = len(STILL)
    numbers = keyed.uniform(keyed.key(seed, "faces", "jitter"), index * count, count)
    return dict(zip(STILL, (2 * numbers - 1).tolist(), strict=True))


def draw_face(seed: int, index: int, size: int) -> Image.Image:
    """Face `index` of set `seed`: RGB, size x size pixels, 32 to 256."""
    return paint(factors(seed, index), jitter(seed, index), size)


def encode_faces(images: range, _tick: Tick, *, seed: int, size: int, channels: int) -> list[tuple[str, bytes]]:
    """Suffix and bytes of the files of some faces: pixels where they are small, else JPEG."""
    files = []
    for index in images:
        image = draw_face(seed, index, size).convert("RGB" if channels == 3 else "L")
        if size <= LARGEST_PIXELS:
            files.append(encode(image, "ppm"))
        else:
            image.save(file := io.BytesIO(), "JPEG", quality=95, subsampling="4:4:4")
            files.append(("jpg", file.getvalue()))
    return files


def ensure(
    folder: Path, *, size: int, channels: int, count: int, seed: int, progress: Callable[[int, int], None] | None = None
) -> list[Path]:
    """The sorted shards of `count` faces in `folder`; those that are missing or damaged are made first.

    Each shard appears complete or not at all and its bytes depend on the arguments alone, so the next call finishes
    what a killed one began, and two processes may call at once. `progress` gets the images made so far and those to be
    made, if any. Raises UserError when the folder cannot be written or a worker is killed.
    """
    name = f"faces-v{VERSION}-{size}px-{channels}c-s{seed}-n{count}"
    shards = {folder / f"{name}-{at:05d}.tar": part for at, part in enumerate(_parts(range(count), SHARD_SIZE))}
    missing = {path: images for path, images in shards.items() if not _complete(path, len(images))}
    tasks = [task for images in missing.values() for task in _parts(images, TASK_SIZE)]
    workers = min(available_cores(), MOST_WORKERS, len(tasks) // 5)  # as many as are worth starting
    work = partial(encode_faces, seed=seed, size=size, channels=channels)
    total, done = sum(map(len, missing.values())), 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _require_disk(folder, total, size**2 * (channels if size <= LARGEST_PIXELS else LEAST_JPEG))
        with closing(run_jobs(partial(nullcontext, work), tasks, workers, lambda _: None)) as encoded:
            files = chain.from_iterable(encoded)
            for path, images in missing.items():
                with ShardWriter(path) as shard:
                    for index in images:
                        shard.add(f"{index:08d}", *next(files))
                        done += 1
                        if progress and (done % TASK_SIZE == 0 or done == total):
                            progress(done, total)
    except OSError as error:
        raise UserError(f"{folder}: the embedded faces cannot be written here ({error.strerror or error})") from error
    except WorkerKilledError as error:
        raise UserError(f"{folder}: a process that paints the embedded faces was killed; run it again") from error
    return list(shards)


def _parts(images: range, size: int) -> list[range]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def _complete(path: Path, count: int) -> bool:
    with suppress(UserError):
        index = read_index(path)
        return index is not None and len(index) == count
    return False


def _require_disk(folder: Path, images: int, each: float) -> None:
    """Raises UserError when so many faces of so many bytes do not fit, before hours are spent on drawing them."""
    needed, free = images * each, shutil.disk_usage(folder).free
    if needed > free:
        what = f"{images:,} embedded faces take at least {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free"
        raise UserError(f"{folder}: {what}; fewer --data.faces, or XDG_CACHE_HOME on a larger disk")
