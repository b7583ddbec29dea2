"""Files that are equal to the byte, found by their checksums (xxh3-128), 16 bytes of memory for each image."""

from collections.abc import Callable, Iterator

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

Repeats = tuple[NDArray[np.int64], NDArray[np.int64]]
UNREADABLE = bytes(16)  # stands for the checksum of a file that cannot be read; equals no other


def digest(loaded: bytes | Image.Image) -> bytes:
    """The 16-byte checksum of a file, or of the pixels where the source gives no file."""
    if isinstance(loaded, Image.Image):
        return xxhash.xxh3_128_digest(f"{loaded.mode} {loaded.size} ".encode() + loaded.tobytes())
    return xxhash.xxh3_128_digest(loaded)


def find_duplicates(digests: bytes | bytearray, numbers: NDArray[np.int64]) -> Repeats:
    """Which of n images repeat one with a smaller number: their numbers, ascending, and of the first equal of each.

    `digests`: their checksums, one after the other. `numbers`: (n,), distinct.
    """
    pairs = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
    order = np.lexsort((numbers, pairs[:, 0], pairs[:, 1]))
    ordered = pairs[order]
    repeats = np.zeros(len(order), dtype=bool)
    repeats[1:] = (ordered[1:] == ordered[:-1]).all(axis=1) & ordered[1:].any(axis=1)
    begins = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(order))))
    later, first = numbers[order[repeats]], numbers[order[begins[repeats]]]
    ascending = np.argsort(later)
    return later[ascending], first[ascending]


def describe(repeats: Repeats, where: Callable[[int], str]) -> Iterator[str]:
    """A line for each image that repeats another; `where` names an image by its number."""
    for later, first in zip(*(numbers.tolist() for numbers in repeats), strict=True):
        yield f"{where(later)}: the same as {where(first)}"
