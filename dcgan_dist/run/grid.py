"""Many small pictures as one."""

import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dcgan_dist.data.system.storage import write_atomically


def grid(tiles: NDArray[np.uint8], pad: int = 2) -> NDArray[np.uint8]:
    """Lays out (n, c, h, w) uint8 pictures, c = 1 or 3, as one (H, W, 3) picture that is nearly square.

    Row by row, with `pad` white pixels around each.
    """
    if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[1] not in (1, 3) or not len(tiles):
        raise ValueError(f"a grid needs uint8 images of shape (n, 1 or 3, h, w), not {tiles.dtype} {tiles.shape}")
    count, _, height, width = tiles.shape
    columns = math.isqrt(count - 1) + 1
    rows = -(-count // columns)
    canvas = np.full((rows * (height + pad) + pad, columns * (width + pad) + pad, 3), 255, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        top, left = pad + row * (height + pad), pad + column * (width + pad)
        canvas[top : top + height, left : left + width] = tile.transpose(1, 2, 0)
    return canvas


def save_png(array: NDArray[np.uint8], path: Path) -> None:
    """Writes an (H, W, 3) uint8 picture, complete or not at all; the same picture gives the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
