"""JPEG to pixels, by simplejpeg (fast, strict about damage), and by Pillow where simplejpeg refuses an intact image.

simplejpeg also refuses files for oddities that change no pixel: a missing part of an ICC profile, stray bytes between
the markers of the header, a chroma subsampling that it has no name for. Pillow decodes those, but silently fills in
missing pixels, so `require_complete` checks that the scans are complete, once for each file.
"""

import io
import re
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import simplejpeg
import xxhash
from numpy.typing import NDArray
from PIL import Image

# bytes of markers; each begins with MARK
MARK, START, END, SCAN, APP1 = 0xFF, 0xD8, 0xD9, 0xDA, 0xE1
MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")  # except those that occur within a scan
RESTARTS = range(0xD0, 0xD8)
RESTART = re.compile(rb"\xff+([\xd0-\xd7])")
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

# simplejpeg's messages about missing or wrong pixels
DAMAGED = re.compile("(?i)premature end|Huffman|arithmetic|progression|instead of RST|before marker 0xd[0-7]")
REST = re.compile("([0-9]+) extraneous bytes before marker 0xd9")  # padding, or the rest of a damaged scan
FILLERS = (b"\xed\xb7\x5b" * 22, b"\xff\0" * 33)  # neither markers nor the zeros that libjpeg fills in
ARITHMETIC = frozenset(range(0xC9, 0xD0)) - {0xCC}  # such a scan may end before its last zeros
KINDS = {
    **{0xC3: "lossless", 0xCB: "lossless", 0xF7: "JPEG-LS"},
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "several resolutions"),
}

Pixels = NDArray[np.uint8]
_complete = np.zeros(2**20, dtype=np.uint64)  # hash table: xxh3-64 of files that were found complete


def decode_jpeg(data: bytes | memoryview, channels: int, out: Pixels | None = None) -> Pixels:
    """Decodes a JPEG to uint8 (H, W, channels), into `out` if given, without the GIL.

    Raises ValueError for damaged data.
    """
    try:
        return simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY", buffer=out)
    except ValueError as error:
        if _is_damage(bytes(data), str(error)):
            raise
    pixels, file_hash = pillow_decode(bytes(data), channels), xxhash.xxh3_64_intdigest(data)
    if _complete[file_hash % len(_complete)] != file_hash:
        require_complete(bytes(data), pixels, lambda changed: pillow_decode(changed, channels))
        _complete[file_hash % len(_complete)] = file_hash
    if out is None:
        return pixels
    out[:] = pixels
    return out


def pillow_decode(data: bytes, channels: int) -> Pixels:
    """Decodes whatever libjpeg accepts; pixels missing before the end marker become grey. Raises ValueError."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if channels == 1:
                image.draft("L", image.size)
            pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    except Exception as error:  # on damaged input Pillow's decoders raise errors of any kind
        raise ValueError(str(error)) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _is_damage(data: bytes, message: str) -> bool:
    """Whether simplejpeg's message is about pixels."""
    rest = REST.search(message)
    if rest is None:
        return DAMAGED.search(message) is not None
    *_, (end, _) = [(0, 0), *_markers(data)]
    return len(set(data[end - int(rest[1]) : end])) > 1


def require_complete(data: bytes, pixels: Pixels, decode: Callable[[bytes], Pixels]) -> None:
    """Raises ValueError when the data of a decoded JPEG lack some of its `pixels`.

    libjpeg fills them in silently. Bytes added at the end of a scan or before a restart marker then change the picture.
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
    pieces = [data[at:stop] for at, stop in pairwise(places)]
    for filler in FILLERS:  # one of them may, by chance, encode what libjpeg fills in
        more = (bytes((MARK, RESTARTS[(restarts + place) % 8])) + filler for place in range(8))
        if not np.array_equal(pixels, decode(b"".join((filler.join(pieces), filler, *more, data[end:])))):
            raise ValueError("its pixels are cut off")


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Place and code of the markers; skips segments, scans and any other bytes between them."""
    at, marker = 2, START
    while marker != END and (found := MARKER.search(data, at)) is not None:
        at, marker, begin = found.end(), found[1][0], found.start()
        while data[begin - 1] == MARK:  # fill bytes
            begin -= 1
        yield begin, marker
        at += 0 if marker == START else int.from_bytes(data[at : at + 2], "big")


def unsupported_kind(data: bytes) -> str:
    """The kind of a JPEG that few programs can read; '' for the usual kind, or no JPEG."""
    for at, marker in _markers(data) if data[:2] == bytes((MARK, START)) else ():
        if marker in FRAMES or marker in KINDS:
            begin = data.index(marker, at) + 3
            bits, channels = data[begin : begin + 1], data[begin + 5 : begin + 6]
            kind = f"{bits[0]} bits" if bits and bits[0] != 8 else KINDS.get(marker, "")
            return kind or (f"{channels[0]} channels" if channels and channels[0] not in (1, 3, 4) else "")
    return ""


def plain_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Height and width of an upright 8-bit RGB or grey JPEG, from its header (ITU T.81, B.1, B.2); None for others."""
    at, size = 2, None
    try:
        while data[at] == MARK and (marker := data[at + 1]) != SCAN:
            length = data[at + 2] << 8 | data[at + 3]
            if marker in FRAMES and data[at + 4] == 8 and data[at + 9] in (1, 3):
                size = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            elif marker == APP1:
                segment = bytes(data[at : at + 2 + length])
                if b"Exif\0\0" in segment or b"tiff:Orientation" in segment:  # it may hold an orientation
                    return None
            at += 2 + length
        return size if data[at] == MARK and data[0] == MARK and data[1] == START else None
    except IndexError:
        return None
