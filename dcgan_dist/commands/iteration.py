"""The trainer's iteration without a reader and without a run around it, for what proves it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dcgan_dist.config import Config
from dcgan_dist.data.reading.reader import Split
from dcgan_dist.gan.ema import ema_beta, update_ema
from dcgan_dist.gan.images import to_range
from dcgan_dist.gan.schedule import set_learning_rates
from dcgan_dist.gan.step import Game, discriminator_step, generate, generator_step
from dcgan_dist.parallel.engine import create
from dcgan_dist.parallel.noise import NoiseSource
from dcgan_dist.parallel.precision import arithmetic
from dcgan_dist.parallel.world import World
from dcgan_dist.run.stats import Stats


class Iteration:
    """Fresh networks, and what one iteration does to them."""

    def __init__(self, config: Config, world: World, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """`batches`: of this rank, on its device: images, uint8 (n, C, H, W), and whether to mirror them, bool (n,)."""
        chosen = arithmetic(config.precision, world.device)
        self.state, self._engine = create(config, world, chosen)
        self._config, self._weights, self._batches = config, chosen.weights, batches
        self._game, self._stats = Game.of(config), Stats(world.device)
        split = Split(batch=config.batch_size, micro_batches=config.accumulate, rank=world.rank, world_size=world.size)
        self._noise = NoiseSource(config, split, world.device, chosen.weights)

    def run(self) -> None:
        """One iteration."""
        config, state, engine = self._config, self.state, self._engine
        images, flips = next(self._batches)
        real = to_range(images, flips if config.data.hflip else None, config.model.output, self._weights)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        real = real.contiguous(memory_format=layout).chunk(config.accumulate)
        noise = self._noise.at(state.images)
        set_learning_rates(state, config)
        d_due, g_due = state.iteration % config.optimizer.d_every == 0, state.iteration % config.optimizer.g_every == 0
        fake = generate(engine, noise, g_due) if d_due or g_due else []
        if d_due:
            self._stats.add(discriminator_step(state, engine, self._game, real, fake, noise))
        if g_due:
            self._stats.add(generator_step(state, engine, self._game, fake, noise))
        state.images += config.batch_size
        state.iteration += 1
        if g_due:
            images_since = config.batch_size * config.optimizer.g_every
            update_ema(state.ema, state.netg, ema_beta(config.ema, state.images, images_since))
