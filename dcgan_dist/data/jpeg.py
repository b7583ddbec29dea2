"""JPEG to pixels: by simplejpeg where it is installed (faster, strict about damage), else by torchvision.

simplejpeg refuses whatever is odd in a file, also what changes no pixel: a half ICC profile, stray bytes between the
markers of the header, a sampling of colours that it has no name for. Such files go to Pillow; whether their pixels are
complete is found by decoding twice. So the same files are taken with and without simplejpeg, but for one thing: only
simplejpeg notices some of the codes that no encoder writes.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# bytes of markers, the first in front of each
MARK, START, END, SCAN, APP1 = 0xFF, 0xD8, 0xD9, 0xDA, 0xE1
MARKER = re.compile(rb"\xff+([^\x00\x01\xff\xd0-\xd7])")  # but for those that may stand within a scan
RESTARTS = range(0xD0, 0xD8)
RESTART = re.compile(rb"\xff([\xd0-\xd7])")
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

# what simplejpeg says of pixels that are missing or wrong
DAMAGED = re.compile(
    "premature end|Huffman|arithmetic|progression|instead of RST|before marker 0xd[0-7]", re.IGNORECASE
)
REST = re.compile("([0-9]+) extraneous bytes before marker 0xd9")  # padding, or of a scan that was garbled
FILLER = b"\xed\xb7\x5b" * 22  # neither a marker nor the zeros that libjpeg makes up
ARITHMETIC = frozenset(range(0xC9, 0xD0)) - {0xCC}  # such a scan may end before its last zeros
KINDS = {
    **{0xC3: "lossless", 0xCB: "lossless", 0xF7: "JPEG-LS"},
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "several resolutions"),
}

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
    try:
        pixels = DECODERS[_CHOSEN](data, channels, out)
        if _CHOSEN == "simplejpeg":
            return pixels
        decode = DECODERS[_CHOSEN]
    except ValueError as error:
        if _is_damage(bytes(data), str(error)):
            raise
        pixels, decode = pillow_decode(data, channels, out), pillow_decode
    require_complete(bytes(data), pixels, lambda changed: decode(changed, channels, None))
    return pixels


def pillow_decode(data: bytes | memoryview, channels: int, out: Pixels | None) -> Pixels:
    """Takes whatever libjpeg does, and fills what is missing before the end marker with grey."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if channels == 1:
                image.draft("L", image.size)
            pixels = np.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(*image.size[::-1], channels)
    except Exception as error:  # on damaged input Pillow's decoders raise errors of any kind
        raise ValueError(str(error)) from error
    if out is None:
        return pixels
    out[:] = pixels
    return out


def _is_damage(data: bytes, said: str) -> bool:
    """Whether what simplejpeg says is about pixels."""
    rest = REST.search(said)
    if rest is None:
        return DAMAGED.search(said) is not None
    *_, (end, _) = [(0, 0), *_markers(data)]
    return len(set(data[end - int(rest[1]) : end])) > 1


def require_complete(data: bytes, pixels: Pixels, decode: Callable[[bytes], Pixels]) -> None:
    """Raises ValueError when a JPEG that was decoded lacks some of its pixels.

    libjpeg makes them up without a word. They are missing when other bytes behind the last scan change the picture.
    """
    *before, (end, marker) = [(0, 0), *_markers(data)]
    scans = [at for at, each in before if each == SCAN]
    if marker != END or not scans:
        raise ValueError("its end is missing")
    if not ARITHMETIC.isdisjoint(each for _, each in before):
        return
    restarts = [found[1][0] for found in RESTART.finditer(data, scans[-1], end)]
    if restarts != [RESTARTS[place % 8] for place in range(len(restarts))]:
        raise ValueError("its restart markers are not in order")
    more = (bytes((MARK, RESTARTS[(len(restarts) + place) % 8])) + FILLER for place in range(8))
    if not np.array_equal(pixels, decode(b"".join((data[:end], FILLER, *more, data[end:])))):
        raise ValueError("its pixels are cut off")


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Place and code of the markers, segments and scans skipped; whatever else stands between them is."""
    at, marker = 2, START
    while marker != END and (found := MARKER.search(data, at)) is not None:
        at, marker = found.end(), found[1][0]
        yield found.start(), marker
        at += 0 if marker == START else int.from_bytes(data[at : at + 2], "big")


def odd_kind(data: bytes) -> str:
    """Of which kind a JPEG is that few programs read; '': of the usual one, or no JPEG."""
    for at, marker in _markers(data) if data[:2] == bytes((MARK, START)) else ():
        if marker in FRAMES or marker in KINDS:
            begin = data.index(marker, at) + 3
            bits, channels = data[begin : begin + 1], data[begin + 5 : begin + 6]
            kind = f"{bits[0]} bits" if bits and bits[0] != 8 else KINDS.get(marker, "")
            return kind or (f"{channels[0]} channels" if channels and channels[0] not in (1, 3, 4) else "")
    return ""


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
