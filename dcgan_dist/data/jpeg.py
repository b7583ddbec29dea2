"""JPEG to pixels: by simplejpeg where it is installed (faster, strict about damage), else by torchvision."""

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Decoder = Callable[[bytes | memoryview, int, Pixels | None], Pixels]


@cache
def _simplejpeg() -> Any:
    import simplejpeg  # not on every machine; looked up once, for this is called for every image

    return simplejpeg


def simplejpeg_decode(data: bytes | memoryview, channels: int, out: Pixels | None) -> Pixels:
    """Releases the GIL while it decodes."""
    return _simplejpeg().decode_jpeg(data, "RGB" if channels == 3 else "GRAY", buffer=out)


def torchvision_decode(data: bytes | memoryview, channels: int, out: Pixels | None) -> Pixels:
    """Copies the pixels once more."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    # torchvision means to drop its decoder some day; until then its notice tells users nothing they could act on
    warnings.filterwarnings("ignore", "The image decoding", DeprecationWarning)
    mode = ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY
    try:
        decoded = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode)
    except RuntimeError as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    assert isinstance(decoded, torch.Tensor)  # a list of them for a list of images
    pixels = decoded.permute(1, 2, 0).numpy()
    if out is None:
        return np.ascontiguousarray(pixels)
    out[:] = pixels
    return out


# the first that is installed is used
DECODERS: dict[str, Decoder] = {"simplejpeg": simplejpeg_decode, "torchvision": torchvision_decode}


def choose() -> str:
    """Name of the decoder of this machine."""
    return next(name for name in DECODERS if find_spec(name))


def decode_jpeg(data: bytes | memoryview, channels: int, out: Pixels | None = None) -> Pixels:
    """Decodes a JPEG to uint8 (H, W, channels), into `out` if given. Raises ValueError for damaged data."""
    return DECODERS[_CHOSEN](data, channels, out)


def header(data: bytes) -> tuple[int, int, str]:
    """Height, width and colours ("YCbCr", "RGB", "Gray", "CMYK" ..) of a JPEG. Raises ValueError for anything else."""
    if _CHOSEN == "simplejpeg":
        height, width, colours, _ = _simplejpeg().decode_jpeg_header(data)
        return int(height), int(width), colours
    from io import BytesIO

    from PIL import Image

    try:
        with Image.open(BytesIO(data), formats=["JPEG"]) as image:
            return image.height, image.width, {"L": "Gray", "RGB": "RGB"}.get(image.mode, image.mode)
    except Exception as error:  # damaged headers make Pillow raise errors of any kind; too many pixels are one, too
        raise ValueError(str(error)) from error


_CHOSEN = choose()
