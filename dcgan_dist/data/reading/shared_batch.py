"""Memory layout of a batch, which several processes may share."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ALIGNED = 4096  # bytes; a page, so that each slot can be registered with a GPU
# Where pixels begin, in bytes modulo MODULUS. libjpeg-turbo writes rows that begin at a multiple of 32 past the cache,
# which makes decoding of small images slower by half: 40 us instead of 28 for 64 x 64 pixels.
FAVOURED, MODULUS = 16, 32


class BatchArrays(NamedTuple):
    """A batch of n images as arrays over one piece of memory, which begins at a multiple of 32."""

    pixels: NDArray[np.uint8]  # (n, H, W, C)
    labels: NDArray[np.int64]  # (n,)
    samples: NDArray[np.int64]  # (n,) numbers of the images in the corpus; -1 from a stream
    flips: NDArray[np.bool_]  # (n,)


def bytes_of_batch(count: int, size: int, channels: int) -> int:
    """Bytes of `count` images of `size` x `size` pixels and what belongs to them, up to a full page."""
    return -(-(_first_pixel(count) + count * size * size * channels) // ALIGNED) * ALIGNED


def _first_pixel(count: int) -> int:
    """Behind labels, samples and flips."""
    return -(-count * (8 + 8 + 1) // MODULUS) * MODULUS + FAVOURED


def batch_arrays(memory: memoryview, count: int, size: int, channels: int) -> BatchArrays:
    """The arrays in `memory`, of at least bytes_of_batch bytes."""
    numbers = np.frombuffer(memory, dtype=np.int64, count=2 * count)
    flips = np.frombuffer(memory, dtype=np.bool_, count=count, offset=16 * count)
    pixels = np.frombuffer(memory, dtype=np.uint8, count=count * size * size * channels, offset=_first_pixel(count))
    return BatchArrays(pixels.reshape(count, size, size, channels), numbers[:count], numbers[count:], flips)
