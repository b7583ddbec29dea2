"""The indexed reader: any position of the order at once, images decoded straight into the batch."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.order import LANES, WINDOW, Order, Split, flips
from dcgan_dist.data.reading.counters import Counters
from dcgan_dist.data.reading.decode_pool import DecodePlan, open_decode_pool
from dcgan_dist.data.reading.fetch import Fetcher
from dcgan_dist.data.reading.prefetch_buffer import Batch, prefetch_batches
from dcgan_dist.data.remote.prefetch import Prefetcher
from dcgan_dist.data.shards.index import read_index
from dcgan_dist.errors import to_stderr
from dcgan_dist.text import Say

HORIZON = 2 * LANES * WINDOW  # positions: what the lanes still read of their current shards, and as much again
STEP = LANES * WINDOW // 16  # positions after which the next uses of shards are looked up again
LOOKED_UP = 2_048  # images, whose numbers are looked up in the order at once
Wanted = tuple[int, NDArray[np.int64], NDArray[np.bool_]]
"""Position of a global batch; of this rank's images in it the numbers and whether they are mirrored."""


class IndexedReader:
    """Reads the images of a corpus in the order of a seed. All state is the position that `batches` begins at."""

    exact = True  # resumes at the next sample

    def __init__(self, fetcher: Fetcher, *, seed: int, plan: DecodePlan, say: Say = to_stderr) -> None:
        """`say`: as of Prefetcher."""
        self.corpus, self.damages = fetcher.corpus, fetcher.damages
        self.order = Order(self.corpus.lengths, seed)
        self.counters = Counters()  # what was read for the batches so far
        self._fetcher, self._plan, self._say = fetcher, plan, say

    def first(self, count: int) -> NDArray[np.uint8]:
        """The images at the first positions of the order, at most an epoch: (n, C, H, W). Raises UserError."""
        samples = self.order.samples(0, min(count, self.order.size))
        size, channels = self._fetcher.shape
        pixels = np.empty((len(samples), size, size, channels), dtype=np.uint8)
        self._fetcher.fill(samples.copy(), pixels, np.empty(len(samples), dtype=np.int64))
        return pixels.transpose(0, 3, 1, 2)

    def batches(self, position: int, split: Split) -> Generator[Batch, None, None]:
        """This rank's batches from a position on, without end: micro-batch after micro-batch within each."""
        images = split.per_rank_micro * split.micro_batches
        wanted = self._wanted(position, split)
        with (
            closing(open_decode_pool(self._fetcher, self._plan, images)) as pool,
            prefetching_shards(self.corpus, self.order, position, self._say) as advance,
        ):

            def fill(batch: Batch) -> None:
                here, batch.rows.samples[:], batch.rows.flips[:] = next(wanted)
                advance(here)
                batch.read = pool.fill(batch)

            with closing(prefetch_batches(fill, pool.slots)) as batches:
                for batch in batches:
                    self.counters += batch.read
                    yield batch

    def _wanted(self, position: int, split: Split) -> Iterator[Wanted]:
        """Batch after batch. Several are looked up at once, because copying a batch evicts the code from CPU caches."""
        count = split.per_rank_micro
        together = max(1, LOOKED_UP // (count * split.micro_batches))
        for first in range(position, 2**62, together * split.batch):
            places = range(first, first + together * split.batch, split.batch)
            yield from [self._at(here, split.slices(here), count) for here in places]

    def _at(self, here: int, starts: list[int], count: int) -> Wanted:
        samples = [self.order.samples(start, count) for start in starts]
        mirrored = [flips(self.order.seed, start, count) for start in starts]
        return here, np.concatenate(samples), np.concatenate(mirrored)


@contextmanager
def prefetching_shards(corpus: Corpus, order: Order, start: int, say: Say) -> Iterator[Callable[[int], None]]:
    """Brings remote shards into the cache before they are read, from the position `start` on.

    Yields a function to call with the reader's position. `say`: as of Prefetcher.
    """
    sources = [shard.source for shard in corpus.shards]
    cache = corpus.opener.cache if any(sources) else None  # a cache that nothing needs is not opened
    if cache is None:
        yield lambda _: None
        return

    @lru_cache(maxsize=1)
    def uses(step: int) -> list[tuple[int, int]]:
        """Numbers of shards and positions of their next use, the soonest first."""
        shards, positions = order.first_uses(start + step * STEP, min(HORIZON, order.size))
        return list(zip(shards.tolist(), positions.tolist(), strict=True))

    with closing(
        Prefetcher(cache, sources, lambda here: uses((here - start) // STEP), say=say, position=start, check=read_index)
    ) as prefetcher:
        yield prefetcher.advance
