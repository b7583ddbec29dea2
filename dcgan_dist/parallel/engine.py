"""The state and the engine of the step, and an iteration with them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dcgan_dist.config import Config
from dcgan_dist.gan.state import TrainState, create_state
from dcgan_dist.gan.step import Engine, Scalars, micro_batches, training_step
from dcgan_dist.parallel.batchnorm import synchronise
from dcgan_dist.parallel.noise import NoiseSource, split_of
from dcgan_dist.parallel.precision import Arithmetic, arithmetic
from dcgan_dist.parallel.world import World


def create(config: Config, world: World, chosen: Arithmetic) -> tuple[TrainState, Engine]:
    """New networks, the same on every rank, and the engine that runs them on all ranks."""
    state = create_state(config, world.device, chosen.weights, chosen.scaled)
    for network in (state.netg, state.netd):
        synchronise(network, config.sync_batchnorm, world)
    world.broadcast_buffers(state.netg, state.netd, state.ema)
    if world.device.type == "cuda":
        # convolutions in TF32 round inputs to 10 bits of mantissa; fp32 asked for by name stays fp32
        convolutions = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
        convolutions.fp32_precision = "ieee" if chosen.forward is None else "tf32"
        torch.backends.cudnn.benchmark = True
    engine = Engine(
        g=world.wrap(state.netg),
        d=world.wrap(state.netd),
        autocast=chosen.autocast(world.device),
        backward=world.backward,
        no_sync=world.no_sync,
    )
    return state, engine


class Iteration:
    """New networks, and the trainer's iteration without a reader and a run, for checks and benchmarks."""

    def __init__(self, config: Config, world: World, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """`batches`: of this rank, on its device: images, uint8 (n, C, H, W), and whether to flip each, bool (n,)."""
        chosen = arithmetic(config.precision, world.device)
        self.state, self._engine = create(config, world, chosen)
        self._config, self._weights, self._batches = config, chosen.weights, batches
        self._noise = NoiseSource(config, split_of(config, world), world.device, chosen.weights)

    def run(self) -> Scalars:
        """One iteration; returns its scalars."""
        real = micro_batches(self._config, *next(self._batches), self._weights)
        noise = self._noise.at(self.state.images)
        return training_step(self._config, self.state, self._engine, real, noise)
