"""What no loader of some images can be below: the bare decoding of their bytes, and a copy of their pixels."""

import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcgan_dist.commands.bench.turns import Turn, until
from dcgan_dist.data.codecs import decode_into
from dcgan_dist.data.formats import IMAGE_SUFFIXES
from dcgan_dist.data.jpeg import decode_jpeg, plain_size

MOST_PIXELS = 2**28  # bytes: of the images that the floors are measured with
JPEG = ("jpg", "jpeg")


class Floors:
    """Images of local tars, once as they are in memory, once as pixels in a memory-mapped file."""

    def __init__(self, shards: Sequence[str], shape: tuple[int, int], images: int, batch: int) -> None:
        """`shape`: height (and width) and channels. Of the shards the first images that are read. At least one."""
        size, channels = shape
        self._batch = batch
        each = (size, size, channels)
        most = min(images, max(1, MOST_PIXELS // int(np.prod(each))))
        self._files = [file for _, file in zip(range(most), _members(shards), strict=False)]
        self._bare = [suffix in JPEG and plain_size(data) == each[:2] for suffix, data in self._files]
        self.out = np.empty((batch, *each), dtype=np.uint8)
        """The batch that was made last."""
        with tempfile.TemporaryFile() as file:
            for row, (suffix, data) in enumerate(self._files):
                decode_into(data, suffix, self.out[0], f"image {row}")
                file.write(self.out[0].tobytes())
            file.flush()
            self._pixels = np.memmap(file, dtype=np.uint8, mode="r", shape=(len(self._files), *each))

    def decode(self, seconds: float) -> Turn:
        """From memory into a batch, one image after the other."""
        return until(seconds, self._decoded())

    def gather(self, seconds: float) -> Turn:
        """Random images from the memory-mapped file into a batch."""
        return until(seconds, self._gathered())

    def _decoded(self) -> Iterator[int]:
        for order in self._orders():
            for out, image in zip(self.out, order, strict=True):
                suffix, data = self._files[image]
                if self._bare[image]:
                    decode_jpeg(data, out.shape[-1], out)
                else:
                    decode_into(data, suffix, out, "an image")
            yield self._batch

    def _gathered(self) -> Iterator[int]:
        for order in self._orders():
            self.out[:] = self._pixels[order]
            yield self._batch

    def _orders(self) -> Iterator[NDArray[np.int64]]:
        order = np.random.default_rng(0).permutation(len(self._files))
        for start in count(step=self._batch):
            yield order.take(range(start, start + self._batch), mode="wrap")


def _members(shards: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Suffix and bytes of every image."""
    for path in shards:
        with tarfile.open(path) as tar:
            for member in tar:
                suffix = Path(member.name).suffix.lower().removeprefix(".")
                file = tar.extractfile(member) if suffix in IMAGE_SUFFIXES else None
                if file is not None:
                    yield suffix, file.read()
