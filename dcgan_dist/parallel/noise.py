"""The noise of the run: every position has its own numbers, from a generator keyed by (seed, purpose).

So a global batch has the same noise on any number of ranks, a rank draws only its slice, and there is no state to save.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcgan_dist import keyed
from dcgan_dist.config import Config
from dcgan_dist.config.groups import Latent, ModelConfig
from dcgan_dist.data.order import Split
from dcgan_dist.gan.augment import UNIFORMS
from dcgan_dist.gan.step import Noise
from dcgan_dist.parallel.world import World

Draw = Callable[[NDArray[np.uint64], int, int], NDArray[np.float64]]
LATENTS: dict[Latent, Draw] = {
    "gaussian": keyed.normal,
    "uniform": lambda key, start, count: 2 * keyed.uniform(key, start, count) - 1,
}


def split_of(config: Config, world: World) -> Split:
    """This rank's part of every global batch."""
    return Split(batch=config.batch_size, micro_batches=config.accumulate, rank=world.rank, world_size=world.size)


class NoiseSource:
    """Draws the noise of this rank's micro-batches."""

    def __init__(
        self, config: Config, split: Split, device: torch.device, dtype: torch.dtype, rollbacks: int = 0
    ) -> None:
        """`rollbacks`: of the run so far; each continues with new numbers."""
        self._config, self._split, self._device, self._dtype = config, split, device, dtype
        self._again = ("rollback", rollbacks) if rollbacks else ()

    def at(self, position: int) -> list[Noise]:
        """The noise of the iteration whose global batch begins at `position`, one for each micro-batch."""
        return [self._micro_batch(start) for start in self._split.slices(position)]

    def _micro_batch(self, start: int) -> Noise:
        model, augmented = self._config.model, bool(self._config.augment)

        def uniforms(purpose: str, each: int) -> Tensor:
            return self._draw(keyed.uniform, purpose, start, each)

        return Noise(
            z=self._draw(LATENTS[model.latent], "z", start, model.nz)[:, :, None, None],
            mix=uniforms("mix", 1)[:, 0] if self._config.loss.gp_weight else None,
            augment_real=uniforms("augment_real", UNIFORMS) if augmented else None,
            augment_fake=uniforms("augment_fake", UNIFORMS) if augmented else None,
            augment_g=uniforms("augment_g", UNIFORMS) if augmented else None,
        )

    def _draw(self, draw: Draw, purpose: str, start: int, each: int) -> Tensor:
        """`each` numbers for every image from position `start` on: (n, each)."""
        count = self._split.per_rank_micro
        numbers = draw(keyed.key(self._config.seed, purpose, *self._again), start * each, count * each)
        drawn = torch.from_numpy(numbers.reshape(count, each)).to(self._dtype)
        if self._device.type != "cuda":
            return drawn
        return drawn.pin_memory().to(self._device, non_blocking=True)  # else the copy waits for the GPU


def sample_latents(model: ModelConfig, seed: int, first: int, count: int, like: Tensor) -> Tensor:
    """Latents (count, nz, 1, 1) of a seed's samples from number `first`; dtype and device of `like`."""
    numbers = LATENTS[model.latent](keyed.key(seed, "samples"), first * model.nz, count * model.nz)
    return torch.from_numpy(numbers.reshape(count, model.nz, 1, 1)).to(like)
