"""`real.png`: real images, beside which the grids of samples are shown."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dcgan_dist.data.reading.reader import IndexedReader
from dcgan_dist.data.reading.stream import StreamReader
from dcgan_dist.run.grid import grid, save_png
from dcgan_dist.text import Say


class RealImages:
    """Draws the picture once in a run, on the main rank. A failure costs one line, never the run."""

    def __init__(self, path: Path, count: int, say: Say) -> None:
        """`count`: images, as many as in a grid of samples."""
        self._path, self._count, self._say = path, count, say
        self._looked, self._seen = False, False

    def keep(self, reader: IndexedReader | StreamReader, images: Tensor) -> None:
        """`images`: this rank's part of a batch, (n, C, H, W) uint8, not mirrored; used where nothing else is known.

        The indexed reader gives the first images of the order, the same on any number of ranks.
        """
        if self._looked:
            return
        self._looked = True
        if self._path.exists():
            return
        try:
            exact = isinstance(reader, IndexedReader)
            save_png(grid(reader.first(self._count) if exact else images[: self._count].cpu().numpy()), self._path)
        except Exception as error:  # the run does not depend on it
            self._say(f"WARNING: {self._path} was not drawn ({error}); the run goes on without it")

    def unseen(self) -> NDArray[np.uint8] | None:
        """The picture, (H, W, 3), once in an attempt, if it was drawn."""
        if self._seen or not self._path.exists():
            return None
        self._seen = True
        try:
            with Image.open(self._path) as picture:
                return np.asarray(picture.convert("RGB"))
        except Exception as error:
            self._say(f"WARNING: {self._path} is not shown, because it cannot be read ({error})")
            return None
