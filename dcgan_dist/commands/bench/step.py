"""The training step alone, on batches that lie in memory."""

import itertools
import time
from collections.abc import Iterator

import torch

from dcgan_dist.commands.bench.turns import Turn, until
from dcgan_dist.commands.iteration import Iteration
from dcgan_dist.config import Config
from dcgan_dist.data.reading.ring import Batch, empty_batch
from dcgan_dist.parallel.feed import on_device
from dcgan_dist.parallel.world import World

SLOTS = 4  # batches in memory
WARM_UP = 3  # iterations


class Step:
    """The trainer's iteration, timed."""

    def __init__(self, config: Config, world: World) -> None:
        self._config, self._device = config, world.device
        batches = on_device(self._in_memory(world.device.type == "cuda"), world.device)
        self._iteration = Iteration(config, world, ((batch.images, batch.flips) for batch in batches))
        self.precision = self._iteration.precision
        self._warm = False

    def turn(self, seconds: float) -> Turn:
        """Iterations for about so many seconds."""
        if not self._warm:
            for _ in range(WARM_UP):
                self._iteration.run()
            self._warm = True
        return until(seconds, self._iterations(seconds))

    def _iterations(self, seconds: float) -> Iterator[int]:
        """A GPU is waited for where the time is read: now, and when the time may be over."""
        self._wait()
        began = time.perf_counter()
        while True:
            images = 0
            while not images or time.perf_counter() - began < seconds:
                self._iteration.run()
                images += self._config.batch_size
            self._wait()
            yield images

    def _in_memory(self, pinned: bool) -> Iterator[Batch]:
        model = self._config.model
        slots = [empty_batch(self._config.batch_size, model.image_size, model.channels, pinned) for _ in range(SLOTS)]
        for slot in slots:
            slot.images.random_(0, 256)
        yield from itertools.cycle(slots)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
