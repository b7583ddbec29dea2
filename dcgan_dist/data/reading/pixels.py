"""Batches of which every image lies as pixels in a mapped file and was checked before: one copy an image, no more."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dcgan_dist.data.shards.index import NO_LABEL

LARGEST = 2**24  # images of a corpus; of a larger one the tables, 16 bytes an image, would be too large


class PixelTable:
    """Where the pixels of the images of a corpus begin in their files, as far as they were read already."""

    def __init__(self, size: int) -> None:
        # memory of zeros is there only once it is written to
        size = size if size <= LARGEST else 0
        self._begin = np.zeros(size, dtype=np.int64)  # 0: not known
        self._label = np.zeros(size, dtype=np.int64)  # - NO_LABEL

    def put(self, samples: NDArray[np.int64], begins: list[int], labels: NDArray[np.int64]) -> None:
        """Remembers images."""
        if len(self._begin):
            self._label[samples] = labels - NO_LABEL
            self._begin[samples] = begins  # last, for other threads go by it

    def copy(
        self,
        samples: NDArray[np.int64],
        pixels: NDArray[np.uint8],
        labels: NDArray[np.int64],
        shards: NDArray[np.intp],
        view: Callable[[int], memoryview | None],
    ) -> bool:
        """Fills `pixels`, (n, H, W, C), C-contiguous, and `labels`, (n,), with the images `samples`, (n,), of a corpus.

        Returns False when not all are known, or when a file is shorter by now. `shards`: (n,) those of the samples.
        `view`: of the number of a shard, all its bytes, if they are mapped.
        """
        if not len(self._begin) or not (begins := self._begin[samples]).all():
            return False
        flat, each, numbers = pixels.data.cast("B"), pixels[0].nbytes, shards.tolist()
        views = {number: view(number) for number in set(numbers)}
        try:
            for row, (number, begin) in enumerate(zip(numbers, begins.tolist(), strict=True)):
                flat[row * each : (row + 1) * each] = views[number][begin : begin + each]  # pyright: ignore[reportOptionalSubscript]
        except (TypeError, ValueError):  # not mapped; cut
            return False
        labels[:] = self._label[samples] + NO_LABEL
        return True
