"""The work of packing, in each of the processes: images become a shard and its receipt, or checksums of files."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

from dcgan_dist.data.images.codecs import encode, fit, open_image, to_rgb_or_grey
from dcgan_dist.data.images.formats import kept_suffix
from dcgan_dist.data.images.statistics import PixelCounts
from dcgan_dist.data.shards.index import ShardWriter
from dcgan_dist.data.sources.base import File, Images, Item, Load, Source
from dcgan_dist.data.system.pool import Tick
from dcgan_dist.data.system.storage import write_atomically
from dcgan_dist.data.writing.duplicates import UNREADABLE, digest
from dcgan_dist.data.writing.packing import LOSSY, Packing
from dcgan_dist.data.writing.staging import RECEIPT, Receipt
from dcgan_dist.errors import UsageError, UserError

KEY_LENGTH = 80  # characters; with number and suffix it fits into the name field of a tar header


class PackJob(NamedTuple):
    """A shard that is to be written."""

    shard: Path
    numbers: NDArray[np.int64]  # of the images, in the source
    images: Images
    digits: int  # of the number in their keys


class HashJob(NamedTuple):
    """Files whose checksums are to be written."""

    path: Path  # of the checksums, 16 bytes each
    images: Images


@contextmanager
def opened_worker(source: Source, packing: Packing) -> Iterator[Callable[[PackJob | HashJob, Tick], None]]:
    """The function that does jobs, with the source open for it."""
    with source.open() as load:
        worker = _Worker(source, packing, load)
        yield lambda job, tick: worker.pack(job, tick) if isinstance(job, PackJob) else worker.hash(job, tick)


@dataclass(frozen=True)
class _Worker:
    source: Source
    packing: Packing
    load: Load

    def pack(self, job: PackJob, tick: Tick) -> None:
        """Writes a shard, then its receipt. Raises UserError for a bad image, unless such are to be left out."""
        job.shard.parent.mkdir(exist_ok=True)
        receipt, pixels = Receipt(), PixelCounts(self.packing.channels)
        with ShardWriter(job.shard) as shard:
            for number, item in zip(job.numbers.tolist(), job.images, strict=True):
                try:
                    loaded, stored = self._add(shard, receipt, item, sample_key(item.name, number, job.digits))
                except UsageError:
                    raise
                except UserError as error:
                    if not self.packing.skip_bad:
                        raise UserError(f"{one_line(str(error))}; --skip_bad leaves such images out") from error
                    receipt.bad.append((number, one_line(str(error))))
                else:
                    pixels.add(stored)
                    if self.packing.duplicates == "report":
                        receipt.files.append((number, digest(loaded).hex(), one_line(self.source.where(item))))
                tick(1)
        receipt.bytes, receipt.xxh128, receipt.fingerprint = shard.size, shard.checksum, f"{shard.fingerprint:016x}"
        receipt.pixels = pixels.counts.tolist()
        write_atomically(job.shard.with_suffix(RECEIPT), json.dumps(vars(receipt)).encode())

    def _add(self, shard: ShardWriter, receipt: Receipt, item: Item, key: str) -> tuple[File, Image.Image]:
        """Packs and counts one image; what was loaded, and the stored pixels. Raises UserError for a bad one."""
        packing, where = self.packing, self.source.where(item)
        loaded, label = self.load(item)
        image = loaded if isinstance(loaded, Image.Image) else open_image(loaded, where)
        stored = plain = to_rgb_or_grey(image, packing.channels, packing.colour())
        if packing.encoding is None or packing.size is None:
            if isinstance(loaded, Image.Image):
                raise UsageError(f"--store keep: {where} is no file; use --store png")
            suffix, data = kept_suffix(image.format, loaded), loaded
        else:
            stored = fit(plain, packing.size, packing.resize, packing.filter, packing.colour())
            suffix, data = encode(stored, packing.encoding, packing.quality)
            if suffix in LOSSY:
                stored = to_rgb_or_grey(open_image(data, where), packing.channels)
        shard.add(key, suffix, data, label)
        receipt.samples += 1
        receipt.several += bool(getattr(image, "is_animated", False))
        receipt.source_sizes[f"{plain.width}x{plain.height}"] += 1
        receipt.stored_sizes[f"{stored.width}x{stored.height}"] += 1
        if label is not None:
            receipt.labels[str(label)] += 1
        return loaded, stored

    def hash(self, job: HashJob, tick: Tick) -> None:
        """Writes the checksums of files; one that cannot be read is left to packing, which reports it."""
        digests = bytearray()
        for item in job.images:
            try:
                digests += digest(self.load(item)[0])
            except UsageError:
                raise
            except UserError:
                digests += UNREADABLE
            tick(1)
        write_atomically(job.path, bytes(digests))


def one_line(text: str) -> str:
    """For lists with a line for each file, whatever characters are in their names."""
    return " ".join(text.splitlines())


def plain_key(name: str) -> str:
    """The last 80 characters of a name before its extension, with _ for all but letters, digits and -."""
    return re.sub(r"[^\w-]", "_", os.path.splitext(name)[0][-KEY_LENGTH:])  # noqa: PTH122, a Path takes four times as long


def key_digits(images: Images) -> int:
    """Digits of the number that every key ends with; 0 when the plain keys of all images are distinct.

    Distinct within a shard is not enough: where one shard ends and another begins with the same key, older versions of
    webdataset take the two samples for one. Needs 8 bytes for each image.
    """
    keys = map(plain_key, images.names())
    hashes = np.fromiter((xxhash.xxh3_64_intdigest(key.encode()) for key in keys), np.uint64, len(images))
    hashes.sort()
    return len(str(len(images) - 1)) if (hashes[1:] == hashes[:-1]).any() else 0


def sample_key(name: str, number: int, digits: int) -> str:
    """The key of an image by its name and its number in the source."""
    return f"{plain_key(name)}-{number:0{digits}}" if digits else plain_key(name)
