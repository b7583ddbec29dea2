"""The indexed reader: any position of the order at once, images decoded straight into the batch."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from dcgan_dist.data.order import Order, rank_slices
from dcgan_dist.data.reading.ahead import looking_ahead
from dcgan_dist.data.reading.counters import Counters
from dcgan_dist.data.reading.crew import Plan, open_crew
from dcgan_dist.data.reading.fetch import Fetcher
from dcgan_dist.data.reading.ring import Batch, read_ahead


@dataclass(frozen=True, kw_only=True)
class Split:
    """How a global batch is shared out: `batch` images in `micro_batches` over `world_size` ranks, seen by `rank`."""

    batch: int
    micro_batches: int
    rank: int
    world_size: int

    @property
    def per_rank_micro(self) -> int:
        """Images of one micro-batch on one rank."""
        return self.batch // (self.micro_batches * self.world_size)

    def slices(self, position: int) -> list[int]:
        """First positions of this rank's slice of every micro-batch of the batch at `position`."""
        return rank_slices(position, self.batch, self.micro_batches, self.rank, self.world_size)


class IndexedReader:
    """Reads the images of a corpus in the order of a seed. All state is the position that `batches` begins at."""

    exact = True  # resumes at the very sample

    def __init__(self, fetcher: Fetcher, *, shape: tuple[int, int], seed: int, plan: Plan) -> None:
        """`shape`: height (and width), channels."""
        self.corpus = fetcher.corpus
        self.order = Order(self.corpus.lengths, seed)
        self.counters = Counters()
        """What was read for the batches that were asked for so far."""
        self._fetcher, self._shape, self._plan = fetcher, shape, plan

    @property
    def damages(self) -> dict[int, str]:
        """See Fetcher."""
        return self._fetcher.damages

    def batches(self, position: int, split: Split) -> Generator[Batch, None, None]:
        """This rank's batches from a position on, without end: micro-batch after micro-batch within each."""
        count = split.per_rank_micro
        positions = iter(range(position, 2**62, split.batch))
        with (
            open_crew(self._fetcher, self._plan, images=count * split.micro_batches, shape=self._shape) as crew,
            looking_ahead(self.corpus, self.order, position) as advance,
        ):

            def fill(batch: Batch) -> None:
                here = next(positions)
                advance(here)
                starts = split.slices(here)
                batch.samples[:] = np.concatenate([self.order.samples(start, count) for start in starts])
                batch.flips[:] = torch.from_numpy(np.concatenate([self.order.flips(start, count) for start in starts]))
                batch.read = crew.fill(batch)

            with closing(read_ahead(fill, crew.slots)) as batches:
                for batch in batches:
                    self.counters.add(batch.read)
                    yield batch
