"""What the order will need next, for the cache: which remote shards, and when."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.opener import verified
from dcgan_dist.data.order import LANES, WINDOW, Order
from dcgan_dist.data.remote.prefetch import Prefetcher

HORIZON = 2 * LANES * WINDOW  # positions: what the lanes read of the shards that they are in, and as much again
STEP = LANES * WINDOW // 16  # positions after which it is worth to look anew

Advance = Callable[[int], None]


def to_stderr(line: str) -> None:
    """Writes a line for the user."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


@contextmanager
def prefetching_shards(corpus: Corpus, order: Order, position: int, say: Callable[[str], None]) -> Iterator[Advance]:
    """Brings remote shards into the cache before they are read, from a position on.

    Yields what is to be told where the reader is. `say`: as of Prefetcher.
    """
    sources = [shard.source for shard in corpus.shards]
    cache = corpus.opener.cache if any(sources) else None  # a cache that nothing needs is not opened
    if cache is None:
        yield lambda _: None
        return
    prefetcher = Prefetcher(cache, sources, UpcomingShards(order).at, say=say, position=position, check=verified)
    try:
        yield prefetcher.advance
    finally:
        prefetcher.close()


class UpcomingShards:
    """Shards in the order of their next use, looked up anew when the reader has come some way."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._position = -STEP
        self._found: list[tuple[int, int]] = []

    def at(self, position: int) -> list[tuple[int, int]]:
        """Numbers of shards and positions of their next use, from about `position` on."""
        if not self._position <= position < self._position + STEP:
            shards, positions = self._order.first_uses(position, min(HORIZON, self._order.size))
            self._found = list(zip(shards.tolist(), positions.tolist(), strict=True))
            self._position = position
        return self._found
