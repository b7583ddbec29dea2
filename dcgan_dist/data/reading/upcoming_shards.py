"""Tells the cache which remote shards the order needs next, and when."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.order import LANES, WINDOW, Order
from dcgan_dist.data.remote.prefetch import Prefetcher
from dcgan_dist.data.shards.opener import verified

HORIZON = 2 * LANES * WINDOW  # positions: what the lanes still read of their current shards, and as much again
STEP = LANES * WINDOW // 16  # positions after which the uses are looked up again

Advance = Callable[[int], None]


@contextmanager
def prefetching_shards(corpus: Corpus, order: Order, position: int, say: Callable[[str], None]) -> Iterator[Advance]:
    """Brings remote shards into the cache before they are read, from a position on.

    Yields a function to call with the reader's position. `say`: as of Prefetcher.
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
    """Shards in the order of their next use, updated every STEP positions."""

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
