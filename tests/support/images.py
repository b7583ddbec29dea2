"""Small shards for tests that train."""

from pathlib import Path

import numpy as np

from dcgan_dist.data.index import ShardWriter


def write_shards(folder: Path, lengths: tuple[int, ...], size: int) -> str:
    """Shards of random pictures with their label as coarse structure; returns the pattern that names them."""
    random = np.random.default_rng(0)
    for number, length in enumerate(lengths):
        with ShardWriter(folder / f"{number:03}.tar") as shard:
            for image in range(length):
                coarse = random.integers(0, 256, (4, 4, 3))
                pixels = np.kron(coarse, np.ones((size // 4, size // 4, 1))) * random.uniform(0.5, 1, (size, size, 3))
                shard.add(f"{number}-{image:03}", "ppm", b"P6\n%d %d\n255\n" % (size, size) + pixels.astype(np.uint8).tobytes())
    return str(folder / "*.tar")
