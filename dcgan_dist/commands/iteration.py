"""The trainer's iteration without a reader and a run, for checks and benchmarks."""

from collections.abc import Iterator

from torch import Tensor

from dcgan_dist.config import Config
from dcgan_dist.gan.step import Objective, Scalars, micro_batches, training_step
from dcgan_dist.parallel.engine import create
from dcgan_dist.parallel.noise import NoiseSource, split_of
from dcgan_dist.parallel.precision import arithmetic
from dcgan_dist.parallel.world import World


class Iteration:
    """New networks, and their iterations."""

    def __init__(self, config: Config, world: World, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """`batches`: of this rank, on its device: images, uint8 (n, C, H, W), and whether to flip each, bool (n,)."""
        chosen = arithmetic(config.precision, world.device)
        self.state, self._engine = create(config, world, chosen)
        self._config, self._weights, self._batches = config, chosen.weights, batches
        self._objective = Objective.of(config)
        self._noise = NoiseSource(config, split_of(config, world), world.device, chosen.weights)

    def run(self) -> Scalars:
        """One iteration; returns its scalars."""
        real = micro_batches(self._config, *next(self._batches), self._weights)
        noise = self._noise.at(self.state.images)
        return training_step(self._config, self.state, self._engine, self._objective, real, noise)
