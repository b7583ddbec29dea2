"""The training step alone, on batches that lie in memory."""

import itertools
import time
from collections.abc import Iterator

import torch

from dcgan_dist.commands.bench.turns import Turn, until
from dcgan_dist.config import Config
from dcgan_dist.data.reading.reader import Split
from dcgan_dist.data.reading.ring import Batch, empty_batch
from dcgan_dist.gan.ema import ema_beta, update_ema
from dcgan_dist.gan.images import to_range
from dcgan_dist.gan.step import Game, discriminator_step, generate, generator_step
from dcgan_dist.parallel.engine import create
from dcgan_dist.parallel.feed import on_device
from dcgan_dist.parallel.noise import NoiseSource
from dcgan_dist.parallel.precision import arithmetic
from dcgan_dist.parallel.world import World
from dcgan_dist.run.stats import Stats

SLOTS = 4  # batches in memory
WARM_UP = 3  # iterations


class Step:
    """The trainer's iteration without a reader and without a run around it."""

    def __init__(self, config: Config, world: World) -> None:
        chosen = arithmetic(config.precision, world.device)
        self.precision = chosen.name
        self._config, self._weights, self._device = config, chosen.weights, world.device
        self._state, self._engine = create(config, world, chosen)
        self._game, self._stats = Game.of(config), Stats(world.device)
        split = Split(batch=config.batch_size, micro_batches=config.accumulate, rank=0, world_size=1)
        self._noise = NoiseSource(config, split, world.device, chosen.weights)
        self._batches = on_device(self._in_memory(world.device.type == "cuda"), world.device)
        self._warm = False

    def turn(self, seconds: float) -> Turn:
        """Iterations for about so many seconds."""
        if not self._warm:
            for _ in range(WARM_UP):
                self._iterate()
            self._warm = True
        return until(seconds, self._iterations(seconds))

    def _iterations(self, seconds: float) -> Iterator[int]:
        """A GPU is waited for where the time is read: now, and when the time may be over."""
        self._wait()
        began = time.perf_counter()
        while True:
            images = 0
            while not images or time.perf_counter() - began < seconds:
                self._iterate()
                images += self._config.batch_size
            self._wait()
            yield images

    def _iterate(self) -> None:
        config, state, engine = self._config, self._state, self._engine
        batch = next(self._batches)
        flips = batch.flips if config.data.hflip else None
        real = to_range(batch.images, flips, config.model.output, self._weights)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        real = real.contiguous(memory_format=layout).chunk(config.accumulate)
        noise = self._noise.at(state.images)
        d_due, g_due = state.iteration % config.optimizer.d_every == 0, state.iteration % config.optimizer.g_every == 0
        fake = generate(engine, noise, g_due) if d_due or g_due else []
        if d_due:
            self._stats.add(discriminator_step(state, engine, self._game, real, fake, noise))
        if g_due:
            self._stats.add(generator_step(state, engine, self._game, fake, noise))
        state.images += config.batch_size
        state.iteration += 1
        if g_due:
            update_ema(state.ema, state.netg, ema_beta(config.ema, state.images, config.batch_size))

    def _in_memory(self, pinned: bool) -> Iterator[Batch]:
        model = self._config.model
        slots = [empty_batch(self._config.batch_size, model.image_size, model.channels, pinned) for _ in range(SLOTS)]
        for slot in slots:
            slot.images.random_(0, 256)
        yield from itertools.cycle(slots)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
