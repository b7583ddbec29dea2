"""Mean and spread of the pixels of any number of images, exact: from counts of integers, in any order."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LEVELS = 256  # an 8-bit channel has so many


class PixelCounts:
    """How often each level occurs in each channel: `counts`, int64 (channels, 256)."""

    def __init__(self, channels: int, counts: NDArray[np.int64] | None = None) -> None:
        self.counts = np.zeros((channels, LEVELS), dtype=np.int64) if counts is None else counts

    def add(self, image: Image.Image) -> None:
        """Counts the pixels of an RGB (3 channels) or L (1) image of any size."""
        self.counts += np.array(image.histogram(), dtype=np.int64).reshape(self.counts.shape)

    def merge(self, other: "PixelCounts") -> None:
        """Counts what another has counted."""
        self.counts += other.counts

    def mean(self) -> list[float]:
        """Mean of each channel, 0 to 1; 0 where nothing was counted."""
        return [first / (pixels * (LEVELS - 1)) for pixels, first, _ in self._sums()]

    def std(self) -> list[float]:
        """Standard deviation of each channel over all pixels (the population's), in the same unit."""
        sums = self._sums()
        return [math.sqrt(pixels * second - first**2) / (pixels * (LEVELS - 1)) for pixels, first, second in sums]

    def _sums(self) -> Iterable[tuple[int, int, int]]:
        """Pixels, sum and sum of squares of each channel, as Python's integers, which never overflow."""
        for channel in self.counts.tolist():
            levels = list(enumerate(channel))
            pixels, first, second = (sum(count * level**power for level, count in levels) for power in range(3))
            yield max(pixels, 1), first, second
