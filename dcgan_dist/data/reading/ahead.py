"""What the order will need next, for the cache: which remote shards, and when."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.opening import verified
from dcgan_dist.data.order import LANES, WINDOW, Order
from dcgan_dist.data.remote.prefetch import Prefetcher

HORIZON = 2 * LANES * WINDOW  # positions: what the lanes read of the shards that they are in, and as much again
STEP = LANES * WINDOW // 16  # positions after which it is worth to look anew
BROUGHT_TOGETHER = 4  # shards

Advance = Callable[[int], None]


@contextmanager
def looking_ahead(corpus: Corpus, order: Order, position: int) -> Iterator[Advance]:
    """Brings remote shards into the cache before they are read, from a position on.

    Yields what is to be told where the reader is.
    """
    sources = [shard.source for shard in corpus.shards]
    cache = corpus.opener.cache
    if cache is None or not any(sources):
        yield lambda _: None
        return
    uses = Uses(order)
    prefetcher = Prefetcher(cache, sources, uses.at, position=position, threads=BROUGHT_TOGETHER, check=verified)
    try:
        yield prefetcher.advance
    finally:
        prefetcher.close()


class Uses:
    """Shards in the order of their next use, looked up anew when the reader has come some way; for several threads."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._lock = Lock()
        self._position = -STEP
        self._found: list[tuple[int, int]] = []

    def at(self, position: int) -> list[tuple[int, int]]:
        """Numbers of shards and positions of their next use, from about `position` on."""
        with self._lock:
            if not self._position <= position < self._position + STEP:
                shards, positions = self._order.first_uses(position, min(HORIZON, self._order.size))
                self._found = list(zip(shards.tolist(), positions.tolist(), strict=True))
                self._position = position
            return self._found
