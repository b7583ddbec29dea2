"""The work of packing, in each of the processes: images become a shard and its receipt, or checksums of files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dcgan_dist.data.images.codecs import encode, fit, open_image, to_rgb_or_grey
from dcgan_dist.data.images.formats import kept_suffix
from dcgan_dist.data.images.statistics import PixelCounts
from dcgan_dist.data.shards.index import ShardWriter
from dcgan_dist.data.sources import Images, Item, Load, Source
from dcgan_dist.data.system.pool import Tick
from dcgan_dist.data.system.storage import write_atomically
from dcgan_dist.data.writing.duplicates import UNREADABLE, as_array, digest
from dcgan_dist.data.writing.keys import sample_key
from dcgan_dist.data.writing.packing import Packing
from dcgan_dist.data.writing.receipt import Receipt, write_receipt
from dcgan_dist.errors import UsageError, UserError

LOSSY = ("jpg", "webp")


class PackJob(NamedTuple):
    """A shard that is to be written."""

    shard: Path
    numbers: NDArray[np.int64]  # of the images, in the source
    items: Images
    digits: int  # of the number in their keys

    def run(self, worker: "Worker") -> None:
        """Writes the shard, then its receipt."""
        worker.pack(self)


class HashJob(NamedTuple):
    """Files whose checksums are wanted."""

    path: Path  # where the checksums go, 16 bytes each
    items: Images

    def run(self, worker: "Worker") -> None:
        """Writes the checksums."""
        worker.hash(self)


Job = PackJob | HashJob


def one_line(text: str) -> str:
    """For lists with a line for each file, whatever signs are in their names."""
    return " ".join(text.splitlines())


class _Sample(NamedTuple):
    suffix: str
    data: bytes
    label: int | None
    source_size: str
    stored: Image.Image  # the pixels of `data`
    digest: bytes  # of the original file
    several: bool  # pictures in it, of which the first is stored


@dataclass(frozen=True)
class Worker:
    """What one process packs with."""

    source: Source
    packing: Packing
    load: Load
    tick: Tick  # called after every image

    def pack(self, job: PackJob) -> None:
        """Writes a shard and its receipt. Raises UserError for a bad image, unless such are to be left out."""
        report = self.packing.duplicates == "report"
        digests, kept = bytearray(), []
        receipt = Receipt(pixels=PixelCounts(self.packing.channels))
        with ShardWriter(job.shard) as shard:
            for number, item in zip(job.numbers.tolist(), job.items, strict=True):
                try:
                    sample = self._sample(item)
                except UsageError:
                    raise
                except UserError as error:
                    if not self.packing.skip_bad:
                        raise UserError(f"{one_line(str(error))}; --skip_bad leaves such images out") from error
                    receipt.bad.append((number, one_line(str(error))))
                else:
                    shard.add(sample_key(item.name, number, job.digits), sample.suffix, sample.data, sample.label)
                    _note(receipt, sample)
                    if report:
                        digests += sample.digest
                        kept.append(number)
                        receipt.names.append(one_line(self.source.where(item)))
                self.tick(1)
        receipt.bytes, receipt.checksum, receipt.fingerprint = shard.size, shard.checksum, shard.fingerprint
        receipt.numbers, receipt.digests = np.array(kept, dtype=np.int64), as_array(bytes(digests))
        write_receipt(job.shard, receipt)

    def _sample(self, item: Item) -> _Sample:
        packing, where = self.packing, self.source.where(item)
        loaded, label = self.load(item)
        image = loaded if isinstance(loaded, Image.Image) else open_image(loaded, where)
        plain = to_rgb_or_grey(image, packing.channels, packing.colour())
        if packing.encoding is None or packing.size is None:
            if isinstance(loaded, Image.Image):
                raise UsageError(f"--store keep: {where} is no file; use --store png")
            suffix, data, stored = kept_suffix(image.format, loaded), loaded, plain
        else:
            stored = fit(plain, packing.size, packing.resize, packing.filter, packing.colour())
            suffix, data = encode(stored, packing.encoding, packing.quality)
            if suffix in LOSSY:
                stored = to_rgb_or_grey(open_image(data, where), packing.channels)
        several = bool(getattr(image, "is_animated", False))
        return _Sample(suffix, data, label, _shape(plain), stored, digest(loaded), several)

    def hash(self, job: HashJob) -> None:
        """Writes the checksums of files; one that cannot be read is left to packing, which says so."""
        digests = bytearray()
        for item in job.items:
            try:
                digests += digest(self.load(item)[0])
            except UsageError:
                raise
            except UserError:
                digests += UNREADABLE
            self.tick(1)
        write_atomically(job.path, bytes(digests))


def _shape(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"


def _note(receipt: Receipt, sample: _Sample) -> None:
    receipt.samples += 1
    receipt.several += sample.several
    receipt.source_sizes[sample.source_size] += 1
    receipt.stored_sizes[_shape(sample.stored)] += 1
    receipt.pixels.add(sample.stored)
    if sample.label is not None:
        receipt.labels[sample.label] += 1


@contextmanager
def opened_worker(source: Source, packing: Packing) -> Iterator[Callable[[Job, Tick], None]]:
    """What does jobs, with the source open for it."""
    with source.open() as load:
        yield lambda job, tick: job.run(Worker(source, packing, load, tick))
