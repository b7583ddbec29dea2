"""How a batch lies in one stretch of memory that several processes share."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ALIGNED = 4096  # bytes; a page, so that a GPU may be given each slot


class Arrays(NamedTuple):
    """A batch of n images as arrays over shared memory."""

    pixels: NDArray[np.uint8]
    """(n, H, W, C)"""
    labels: NDArray[np.int64]
    """(n,)"""
    samples: NDArray[np.int64]
    """(n,)"""
    flips: NDArray[np.bool_]
    """(n,)"""


def bytes_of_batch(count: int, size: int, channels: int) -> int:
    """Bytes of `count` images of `size` x `size` pixels and what belongs to them, up to a full page."""
    return -(-count * (size * size * channels + 8 + 8 + 8 + 1) // ALIGNED) * ALIGNED


def arrays(memory: memoryview, count: int, size: int, channels: int) -> Arrays:
    """The arrays in `memory`, of at least bytes_of_batch bytes."""
    numbers = np.frombuffer(memory, dtype=np.int64, count=2 * count)
    flips = np.frombuffer(memory, dtype=np.bool_, count=count, offset=16 * count)
    first = -(-17 * count // 8) * 8
    pixels = np.frombuffer(memory, dtype=np.uint8, count=count * size * size * channels, offset=first)
    return Arrays(pixels.reshape(count, size, size, channels), numbers[:count], numbers[count:], flips)
