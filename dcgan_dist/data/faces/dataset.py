"""The embedded data set: cartoon faces, drawn by code instead of downloaded.

The factors of a face are drawn independently from `DISTRIBUTION`, so the probability of every combination is known
exactly: the kinds of face that a generator has lost can be counted.
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

FACES_VERSION = 1  # part of the shards' names: changes with the drawing and with the distribution
SHARD_SIZE = 2_000
TASK_SIZE = 100  # images that a worker process draws at a time
MOST_WORKERS = 8
LARGEST_PIXELS = 64  # size up to which faces are stored as pixels
LEAST_JPEG = 0.05  # bytes a pixel

DISTRIBUTION: dict[str, dict[str, float]] = DRAWING["factors"]  # factor -> value -> probability


def factors(seed: int, index: int) -> Factors:
    """The factors of face `index` (0, 1, ..) of set `seed`, drawn from DISTRIBUTION; the cost is that of any index."""
    count = len(DISTRIBUTION)
    numbers = keyed.uniform(keyed.key(seed, "faces", "factors"), index * count, count)
    chosen = {}
    for number, (name, table) in zip(numbers, DISTRIBUTION.items(), strict=True):
        # without the last bound, so that a sum rounded to a little less than 1 leaves no gap
        bounds = np.cumsum(list(table.values()))[:-1]
        chosen[name] = list(table)[int(np.searchsorted(bounds, number))]
    return chosen


def jitter(seed: int, index: int) -> Jitter:
    """The jitter of face `index` of set `seed`: every number uniform in (-1, 1)."""
    count = len(STILL)
    numbers = keyed.uniform(keyed.key(seed, "faces", "jitter"), index * count, count)
    return dict(zip(STILL, (2 * numbers - 1).tolist(), strict=True))


def draw_face(seed: int, index: int, size: int) -> Image.Image:
    """Face `index` of set `seed`: RGB, size x size pixels, 32 to 256."""
    return paint(factors(seed, index), jitter(seed, index), size)


def encode_faces(images: range, _tick: Tick, *, seed: int, size: int, channels: int) -> list[tuple[str, bytes]]:
    """Suffix and bytes of the files of some faces: pixels up to LARGEST_PIXELS, above JPEG."""
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
    """The sorted shards of `count` faces in `folder`; draws those that are missing or damaged.

    Each shard appears only when it is complete, and its bytes depend only on the arguments, so the next call finishes
    the work of a killed one, and two processes may call it at once. `progress` gets the number of images drawn and to
    draw, if any. Raises UserError when the folder cannot be written or a worker is killed.
    """
    name = f"faces-v{FACES_VERSION}-{size}px-{channels}c-s{seed}-n{count}"
    shards = {folder / f"{name}-{at:05d}.tar": part for at, part in enumerate(_parts(range(count), SHARD_SIZE))}
    missing = {path: images for path, images in shards.items() if not _complete(path, len(images))}
    tasks = [task for images in missing.values() for task in _parts(images, TASK_SIZE)]
    workers = min(available_cores(), MOST_WORKERS, len(tasks) // 5)  # starting one must be worth it
    work = partial(encode_faces, seed=seed, size=size, channels=channels)
    total, done = sum(map(len, missing.values())), 0
    needed = total * size**2 * (channels if size <= LARGEST_PIXELS else LEAST_JPEG)  # bytes
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if needed > free:  # now, not after hours of drawing
            what = f"{total:,} embedded faces take at least {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free"
            raise UserError(f"{folder}: {what}; lower --data.faces, or set XDG_CACHE_HOME to a larger disk")
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
        raise UserError(f"{folder}: a process that draws the embedded faces was killed; run it again") from error
    return list(shards)


def _parts(images: range, size: int) -> list[range]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def _complete(path: Path, count: int) -> bool:
    with suppress(UserError):
        index = read_index(path)
        return index is not None and len(index) == count
    return False
