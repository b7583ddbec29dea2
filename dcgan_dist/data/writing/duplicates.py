"""Files that are equal to the byte, found by their checksums (xxh3-128), 16 bytes of memory for each image."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

UNREADABLE = bytes(16)  # stands for the checksum of a file that cannot be read; equals no other


class Duplicates(NamedTuple):
    """Numbers of the images that have an earlier equal, ascending, and of that first equal of each."""

    later: NDArray[np.int64]
    first: NDArray[np.int64]


def digest(loaded: bytes | Image.Image) -> bytes:
    """The 16-byte checksum of a file, or of the pixels where the source gives no file."""
    if isinstance(loaded, Image.Image):
        return xxhash.xxh3_128_digest(f"{loaded.mode} {loaded.size} ".encode() + loaded.tobytes())
    return xxhash.xxh3_128_digest(loaded)


def as_array(digests: bytes) -> NDArray[np.uint64]:
    """The checksums of n images, one after the other, as (n, 2)."""
    return np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)


def find_duplicates(digests: NDArray[np.uint64], numbers: NDArray[np.int64] | None = None) -> Duplicates:
    """Which of n images repeat one with a smaller number.

    Args:
        digests: (n, 2).
        numbers: (n,), distinct; by default 0 .. n - 1.
    """
    numbers = np.arange(len(digests)) if numbers is None else numbers
    order = np.lexsort((numbers, digests[:, 0], digests[:, 1]))
    ordered = digests[order]
    repeats = np.zeros(len(order), dtype=bool)
    repeats[1:] = (ordered[1:] == ordered[:-1]).all(axis=1) & ordered[1:].any(axis=1)
    begins = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(order))))
    later, first = numbers[order[repeats]], numbers[order[begins[repeats]]]
    ascending = np.argsort(later)
    return Duplicates(later[ascending], first[ascending])


def describe(found: Duplicates, where: Callable[[int], str]) -> Iterator[str]:
    """A line for each image that repeats another; `where` names an image by its number."""
    for later, first in zip(found.later.tolist(), found.first.tolist(), strict=True):
        yield f"{where(later)}: the same as {where(first)}"
