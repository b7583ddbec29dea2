"""Counter-based random numbers: every number is a pure function of (seed, purpose, index), without a state to save.

Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

WORDS_PER_BLOCK = 4  # one Philox4x64 counter step yields four 64-bit words


def key(*parts: int | str) -> NDArray[np.uint64]:
    """The two-word Philox key of numbers and names, the same on every machine and Python version."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in parts)
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype="<u8")


def words(key: NDArray[np.uint64], start: int, count: int) -> NDArray[np.uint64]:
    """Words `start` .. `start + count` of the key's stream; the cost does not depend on `start`."""
    block, offset = divmod(start, WORDS_PER_BLOCK)
    # numpy increments the counter before its first block, so the counter in front of the wanted one is set
    counter = (block - 1) % (1 << 256)
    raw = np.random.Philox(key=key, counter=counter).random_raw(offset + count)
    return np.asarray(raw, dtype=np.uint64)[offset:]


def uniform(key: NDArray[np.uint64], start: int, count: int) -> NDArray[np.float64]:
    """Numbers in (0, 1), 53 bits each, never 0 or 1, so that their logarithm is finite."""
    numbers = ((words(key, start, count) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return np.minimum(numbers, 1 - 2.0**-53)  # adding 0.5 to the largest rounds up to 1


def normal(key: NDArray[np.uint64], start: int, count: int) -> NDArray[np.float64]:
    """Standard normal numbers by Box-Muller; each pair comes from its own two words, so that any slice can be drawn."""
    first, last = start // 2, -(-(start + count) // 2)
    u = uniform(key, 2 * first, 2 * (last - first)).reshape(-1, 2)
    radius, angle = np.sqrt(-2.0 * np.log(u[:, 0])), 2.0 * np.pi * u[:, 1]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.reshape(-1)[start - 2 * first :][:count]


def permutation(key: NDArray[np.uint64], size: int) -> NDArray[np.int64]:
    """A uniform permutation of 0 .. size - 1, the same in every library version."""
    # random words are sorted with their index in the low bits
    bits = np.uint64(max(size - 1, 1).bit_length())
    tagged = words(key, 0, size)
    tagged <<= bits
    tagged |= np.arange(size, dtype=np.uint64)
    tagged.sort()
    tagged &= (np.uint64(1) << bits) - np.uint64(1)
    return tagged.view(np.int64)
