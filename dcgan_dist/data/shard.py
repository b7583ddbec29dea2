"""Packs the images of a source into shards: the same bytes from the same images, by any number of processes."""

import itertools
import multiprocessing
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from PIL import Image, ImageColor

from dcgan_dist import keyed
from dcgan_dist.config import Channels
from dcgan_dist.data.codecs import Colour, Filter, Resize, encode, fit, open_image, to_rgb_or_grey
from dcgan_dist.data.index import ShardWriter
from dcgan_dist.data.sources import Item, Load, Source
from dcgan_dist.data.workers import available_cores, follow_parent
from dcgan_dist.errors import UsageError, UserError

KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "PPM": "ppm"}  # Pillow's names of formats
KEY_LENGTH = 80  # characters; with the suffix it fits into the name field of a tar header
POLL = 0.2  # seconds


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise UsageError(message)


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How images are fitted, stored and packed."""

    size: int | None = None
    """Height and width of the stored images, pixels. Needed, except with --store keep."""
    resize: Resize = "crop"
    """crop: the central square, scaled. pad: the whole image on the background. stretch: proportions change."""
    filter: Filter = "lanczos"
    """How pixels are averaged in scaling."""
    channels: Channels = 3
    """Colour channels of the stored images: 3 (RGB) or 1 (grey)."""
    background: str = "#ffffff"
    """Colour behind transparent images and around padded ones: '#rrggbb' or a CSS name."""
    store: Literal["jpg", "png", "ppm", "keep"] = "jpg"
    """jpg: small. png: exact. ppm: exact and fastest to read, 3 bytes a pixel. keep: the files as they are."""
    quality: int = 95
    """JPEG quality, 1 to 100; from 90 on colours keep their full resolution (4:4:4)."""
    shard_size: int = 2_000
    """Images in a shard."""
    shuffle: bool = True
    """Mix the images over all shards, once, as training wants it of folders that are sorted by class."""
    seed: int = 0
    """Seed of the shuffle."""
    skip_bad: bool = False
    """Leave images that cannot be read out and list them, instead of stopping at the first."""
    overwrite: bool = False
    """Replace the .tar files that OUT holds, after the new ones are complete."""
    processes: int = 0
    """Processes that pack, each a whole shard at a time; 0: as many as CPU cores."""

    def __post_init__(self) -> None:
        keep, sized = self.store == "keep", self.size is not None
        _require(keep or sized, "--size is missing: height and width of the images in pixels, as in --size 64")
        _require(not (keep and sized), "--size with --store keep: kept files keep their size; give only one of the two")
        _require(self.size is None or self.size > 0, f"--size {self.size}: must be at least 1")
        _require(1 <= self.quality <= 100, f"--quality {self.quality}: must be from 1 to 100")
        _require(self.shard_size > 0, f"--shard_size {self.shard_size}: must be at least 1")
        _require(self.processes >= 0, f"--processes {self.processes}: must be at least 0")
        self.colour()

    def colour(self) -> Colour:
        """The background as red, green and blue, 0 to 255."""
        try:
            red, green, blue = ImageColor.getrgb(self.background)[:3]
        except ValueError as error:
            raise UsageError(f"--background {self.background}: no colour; write it as '#rrggbb'") from error
        return red, green, blue


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What write_shards has done."""

    out: Path
    images: int
    shards: int
    bytes: int
    skipped: tuple[str, ...]  # one message for each image that could not be read
    left_out: int  # other files in the source
    processes: int
    seconds: float


class _Job(NamedTuple):
    path: Path
    images: list[tuple[Item, str]]  # with their keys


class _Packed(NamedTuple):
    path: Path
    images: int
    skipped: list[str]


class _StopError(Exception):
    """Another process has failed."""


Progress = Callable[[int, int], None]  # images done, images in all


def write_shards(source: Source, out: Path, packing: Packing, progress: Progress) -> Summary:
    """Packs all images of the source into OUT/shard-00000.tar, shard-00001.tar, ...; they appear when all are complete.

    Raises UsageError when OUT holds .tar files already (without packing.overwrite), UserError when an image cannot be
    read (without packing.skip_bad) or a shard cannot be written; both leave OUT's files as they were.
    """
    started = time.monotonic()
    old = sorted(out.glob("*.tar"))
    if old and not packing.overwrite:
        raise UsageError(f"{out}: holds {len(old)} .tar files already; choose another folder or add --overwrite")
    images, left_out = source.items()
    with _staging(out) as staging:
        jobs = list(_jobs(images, packing, staging))
        processes = min(packing.processes or available_cores(), len(jobs))
        if processes == 1:
            packed = _pack_here(source, packing, jobs, lambda done: progress(done, len(images)))
        else:
            packed = _pack_in_processes(source, packing, jobs, lambda done: progress(done, len(images)), processes)
        skipped = [message for shard in packed for message in shard.skipped]
        # a shard without any image has no use
        full = [shard for shard in packed if shard.images]
        if not full:
            raise UserError(f"none of the {len(images):,} images can be read; the first: {skipped[0]}")
        written = [shard.path.replace(out / f"shard-{number:05}.tar") for number, shard in enumerate(full)]
    for path in set(old) - set(written):
        path.unlink()
    return Summary(
        out=out,
        images=sum(shard.images for shard in full),
        shards=len(full),
        bytes=sum(path.stat().st_size for path in written),
        skipped=tuple(skipped),
        left_out=left_out,
        processes=processes,
        seconds=time.monotonic() - started,
    )


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder inside OUT, so that a set of shards takes the old one's place whole, or not at all."""
    staging = out / ".partial"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _jobs(images: list[Item], packing: Packing, folder: Path) -> Iterator[_Job]:
    keys = sample_keys([item.name for item in images])
    order = keyed.permutation(keyed.key(packing.seed, "shard"), len(images)) if packing.shuffle else range(len(images))
    for start in range(0, len(images), packing.shard_size):
        chosen = order[start : start + packing.shard_size]
        yield _Job(folder / f"{start // packing.shard_size:07}.tar", [(images[place], keys[place]) for place in chosen])


def sample_keys(names: list[str]) -> list[str]:
    """Distinct keys: the last 80 characters before the extension, with _ for all but letters, digits and -."""
    keys: dict[str, None] = {}
    for name in names:
        plain = re.sub(r"[^\w-]", "_", str(PurePosixPath(name).with_suffix("")))[-KEY_LENGTH:]
        key, count = plain, 1
        while key in keys:
            count += 1
            key = f"{plain}-{count}"
        keys[key] = None
    return list(keys)


@dataclass(frozen=True)
class _Packer:
    source: Source
    packing: Packing
    load: Load
    tick: Callable[[], None]  # called after every image

    def pack(self, job: _Job) -> _Packed:
        skipped: list[str] = []
        with ShardWriter(job.path) as shard:
            for item, key in job.images:
                try:
                    suffix, data, label = self._stored(item)
                except UsageError:
                    raise
                except UserError as error:
                    if not self.packing.skip_bad:
                        raise UserError(f"{error}; --skip_bad leaves such images out") from error
                    skipped.append(str(error))
                else:
                    shard.add(key, suffix, data, label)
                self.tick()
        return _Packed(job.path, len(job.images) - len(skipped), skipped)

    def _stored(self, item: Item) -> tuple[str, bytes, int | None]:
        """Suffix, bytes and label of an image as it goes into the shard."""
        packing, where = self.packing, self.source.where(item)
        loaded, label = self.load(item)
        image = loaded if isinstance(loaded, Image.Image) else open_image(loaded, where)
        if packing.store != "keep" and packing.size is not None:
            plain = to_rgb_or_grey(image, packing.channels, packing.colour())
            fitted = fit(plain, packing.size, packing.resize, packing.filter, packing.colour())
            return *encode(fitted, packing.store, packing.quality), label
        if isinstance(loaded, Image.Image):
            raise UsageError(f"--store keep: {where} is no file; use --store png")
        if image.format not in KEPT:
            raise UserError(f"{where}: --store keep takes JPEG, PNG, WebP and PPM, not {image.format}")
        return "pgm" if loaded[:2] == b"P5" else KEPT[image.format], loaded, label


def _pack_here(source: Source, packing: Packing, jobs: list[_Job], report: Callable[[int], None]) -> list[_Packed]:
    numbers = itertools.count(1)
    with source.open() as load:
        packer = _Packer(source, packing, load, lambda: report(next(numbers)))
        return [packer.pack(job) for job in jobs]


def _pack_in_processes(
    source: Source, packing: Packing, jobs: list[_Job], report: Callable[[int], None], processes: int
) -> list[_Packed]:
    # spawned, because a forked process inherits the locks of threads that it does not have
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    with ProcessPoolExecutor(processes, context, _begin, (source, packing, counter, stop)) as pool:
        futures = [pool.submit(_pack_job, job) for job in jobs]
        try:
            pending = set(futures)
            while pending:
                finished, pending = wait(pending, timeout=POLL, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                report(counter.value)
        except BrokenProcessPool as error:
            problem = "a packing process was killed, perhaps for want of memory; try fewer --processes"
            raise UserError(problem) from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


# in a process of the pool: its one packer, and what keeps the packer's source open until the process ends
_packers: list[_Packer] = []
_opened = ExitStack()


def _begin(source: Source, packing: Packing, counter: "Synchronized[int]", stop: Event) -> None:
    follow_parent()

    def tick() -> None:
        with counter.get_lock():
            counter.value += 1
        if stop.is_set():
            raise _StopError

    _packers.append(_Packer(source, packing, _opened.enter_context(source.open()), tick))


def _pack_job(job: _Job) -> _Packed:
    return _packers[0].pack(job)
