"""Learning rates over a run, as a factor of the configured rate. Progress is counted in images."""

import math
from collections.abc import Callable

from dcgan_dist.config import Config
from dcgan_dist.config.groups import Decay, OptimizerConfig
from dcgan_dist.gan.state import TrainState

# progress through the decay, 0 to 1 -> factor
DECAYS: dict[Decay, Callable[[float], float]] = {
    "none": lambda _: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


def lr_factor(config: OptimizerConfig, images: int, batch_size: int, total: int) -> float:
    """Factor for the iteration that shows images `images` .. `images + batch_size` of `total`."""
    warmup = min(1.0, (images + batch_size) / config.warmup_images) if config.warmup_images else 1.0
    start = config.decay_from * total
    progress = min(max((images - start) / max(total - start, 1), 0.0), 1.0)
    return warmup * DECAYS[config.decay](progress)


def set_learning_rates(state: TrainState, config: Config) -> None:
    """Those of the next iteration."""
    options = config.optimizer
    factor = lr_factor(options, state.images, config.batch_size, config.images)
    factor *= config.divergence.lr_factor**state.rollbacks
    state.opt_g.param_groups[0]["lr"] = options.g_lr * factor
    state.opt_d.param_groups[0]["lr"] = options.d_lr * factor
