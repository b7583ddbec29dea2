"""JPEG to pixels: by simplejpeg where it is installed (faster, strict about damage), else by Pillow.

simplejpeg refuses whatever is odd in a file, also what changes no pixel: a half ICC profile, stray bytes between the
markers of the header, a sampling of colours that it has no name for. Such files go to Pillow, too. Pillow makes up what
is missing of a file, so whether its scan is complete is found here, once for each file. So the same files are taken
with and without simplejpeg, but for two things that it alone notices: some of the codes that no encoder writes, and a
cut that lost some bits of the last block alone or changed no pixel.
"""

import io
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

# bytes of markers, the first in front of each
MARK, START, END, SCAN, APP1 = 0xFF, 0xD8, 0xD9, 0xDA, 0xE1
MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")  # but for those that may stand within a scan
RESTARTS = range(0xD0, 0xD8)
RESTART = re.compile(rb"\xff+([\xd0-\xd7])")
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SEQUENTIAL = (0xC0, 0xC1)  # frames, with Huffman codes
GREY = (128, 128, 128)

# what simplejpeg says of pixels that are missing or wrong
DAMAGED = re.compile(
    "premature end|Huffman|arithmetic|progression|instead of RST|before marker 0xd[0-7]", re.IGNORECASE
)
REST = re.compile("([0-9]+) extraneous bytes before marker 0xd9")  # padding, or of a scan that was garbled
FILLERS = (b"\xed\xb7\x5b" * 22, b"\xff\0" * 33)  # neither markers nor the zeros that libjpeg makes up
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


def pillow_decode(data: bytes | memoryview, channels: int, out: Pixels | None) -> Pixels:
    """Takes whatever libjpeg does, and fills what is missing before the end marker with grey."""
    mode, data = "RGB" if channels == 3 else "L", bytes(data)
    try:
        if (size := plain_size(data)) and all(size):  # without the time that Image.open takes
            image = Image.frombytes(mode, (size[1], size[0]), data, "jpeg", mode, "")
        else:
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                if channels == 1:
                    image.draft("L", image.size)
                image = image.convert(mode)
    except Exception as error:  # on damaged input Pillow's decoders raise errors of any kind
        raise ValueError(str(error)) from error
    pixels = np.asarray(image).reshape(*image.size[::-1], channels)
    if out is None:
        return pixels
    out[:] = pixels
    return out


# the first that is installed is used
DECODERS: dict[str, Decoder] = {"simplejpeg": simplejpeg_decode, "PIL": pillow_decode}
_complete = np.zeros(2**20, dtype=np.uint64)  # xxh3-64 of files that were found complete, each at one place


def choose_decoder() -> str:
    """Name of the decoder of this machine."""
    return next(name for name in DECODERS if find_spec(name))


def decode_jpeg(data: bytes | memoryview, channels: int, out: Pixels | None = None) -> Pixels:
    """Decodes a JPEG to uint8 (H, W, channels), into `out` if given. Raises ValueError for damaged data."""
    if _CHOSEN == "simplejpeg":
        try:
            return simplejpeg_decode(data, channels, out)
        except ValueError as error:
            if _is_damage(bytes(data), str(error)):
                raise
    pixels, known = pillow_decode(data, channels, out), xxhash.xxh3_64_intdigest(data)
    if _complete[known % len(_complete)] != known:
        require_complete(bytes(data), pixels, lambda changed: pillow_decode(changed, channels, None))
        _complete[known % len(_complete)] = known
    return pixels


def _is_damage(data: bytes, said: str) -> bool:
    """Whether what simplejpeg says is about pixels."""
    rest = REST.search(said)
    if rest is None:
        return DAMAGED.search(said) is not None
    *_, (end, _) = [(0, 0), *_markers(data)]
    return len(set(data[end - int(rest[1]) : end])) > 1


def require_complete(data: bytes, pixels: Pixels, decode: Callable[[bytes], Pixels]) -> None:
    """Raises ValueError when a JPEG that was decoded lacks some of its pixels.

    libjpeg fills them in silently. More bytes at the end of a scan, or before a restart, change it then.
    """
    marks, places, restarts = [(0, 0), *_markers(data)], [0], 0
    scans = [(at, stop) for (at, each), (stop, _) in pairwise(marks) if each == SCAN]
    end, marker = marks[-1]
    if marker != END or not scans:
        raise ValueError("its end is missing")
    if not ARITHMETIC.isdisjoint(each for _, each in marks[:-1]):
        return
    for begin, stop in scans:
        found = list(RESTART.finditer(data, begin, stop))
        restarts = len(found)
        if [each[1][0] for each in found] != [RESTARTS[place % 8] for place in range(restarts)]:
            raise ValueError("its restart markers are not in order")
        places += [*(each.start() for each in found), stop]
    if places == [0, end] and _holds_all_blocks(data[: end + 2], scans[0][0]):
        return
    pieces = [data[at:stop] for at, stop in pairwise(places)]
    for filler in FILLERS:  # the one or the other, by chance, may stand for what libjpeg makes up
        more = (bytes((MARK, RESTARTS[(restarts + place) % 8])) + filler for place in range(8))
        if not np.array_equal(pixels, decode(b"".join((filler.join(pieces), filler, *more, data[end:])))):
            raise ValueError("its pixels are cut off")


def _holds_all_blocks(data: bytes, scan: int) -> bool:
    """Whether no bit of a scan is missing, in less time than decoding takes; False also where that is not known.

    When a picture is declared one row of blocks taller, libjpeg decodes the first block of that row from zero bits. But
    where it has run out of bits before, it leaves all blocks that follow at zero, which is middle grey.
    """
    frame = next((at for at, each in _markers(data) if each in FRAMES), 0)
    parts = data[frame + 9]
    if data[frame + 1] not in SEQUENTIAL or data[scan + 4] != parts:
        return False
    height, width = (int.from_bytes(data[frame + place : frame + place + 2], "big") for place in (5, 7))
    high = max(data[frame + 11 : frame + 11 + 3 * parts : 3]) % 16 if parts > 1 else 1
    rows = -(-height // (8 * high))
    taller = b"".join((data[: frame + 5], (8 * high * (rows + 1)).to_bytes(2, "big"), data[frame + 7 :]))
    eighth = (-(-width // 8), high * (rows + 1))  # at this scale, one pixel is one block
    try:
        return Image.frombytes("RGB", eighth, taller, "jpeg", "RGB", "", 8).getpixel((0, high * rows)) != GREY
    except (ValueError, OverflowError):
        return False


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Place and code of the markers, segments and scans skipped; whatever else stands between them is."""
    at, marker = 2, START
    while marker != END and (found := MARKER.search(data, at)) is not None:
        at, marker, begin = found.end(), found[1][0], found.start()
        while data[begin - 1] == MARK:  # fill bytes
            begin -= 1
        yield begin, marker
        at += 0 if marker == START else int.from_bytes(data[at : at + 2], "big")


def unsupported_kind(data: bytes) -> str:
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


_CHOSEN = choose_decoder()
