"""JPEG to pixels: by simplejpeg where it is installed (faster, strict about damage), else by torchvision."""

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

# bytes of markers, the first in front of each
MARK, START, SCAN, APP1 = 0xFF, 0xD8, 0xDA, 0xE1
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

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


def plain_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Height and width of a JPEG that shows what is decoded: upright, RGB or grey of 8 bits; None for any other file.

    Looks at the segments before the image's data alone (ITU T.81, B.1 and B.2).
    """
    at, size = 2, None
    try:
        while data[at] == MARK and (marker := data[at + 1]) != SCAN:
            length = data[at + 2] << 8 | data[at + 3]
            if marker in FRAMES and data[at + 4] == 8 and data[at + 9] in (1, 3):
                size = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            elif marker == APP1 and _may_turn(bytes(data[at : at + 2 + length])):
                return None
            at += 2 + length
        return size if data[at] == MARK and data[0] == MARK and data[1] == START else None
    except IndexError:
        return None


def _may_turn(segment: bytes) -> bool:
    """Whether a segment is one of the two that may hold an orientation."""
    return b"Exif\0\0" in segment or b"tiff:Orientation" in segment


_CHOSEN = choose()
