"""The moving average of G's weights that makes the samples (Yazici et al. 2019); half-life in images."""

import torch
from torch import nn

from dcgan_dist.config.groups import EmaConfig


def ema_beta(config: EmaConfig, images: int, images_since: int) -> float:
    """Weight of the old average at `images`, so many images after the update before.

    beta = 0.5 ** (images_since / half-life), the half-life never more than `ramp` times the images seen.
    """
    half_life = min(config.half_life, config.ramp * images) if config.ramp else config.half_life
    return 0.5 ** (images_since / half_life) if half_life else 0.0


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, beta: float) -> None:
    """average <- beta * average + (1 - beta) * network, parameters and running statistics; counters are copied."""
    new = network.state_dict(keep_vars=True)
    for name, old in average.state_dict(keep_vars=True).items():
        if old.is_floating_point():
            old.lerp_(new[name].to(old.dtype), 1 - beta)
        else:
            old.copy_(new[name])
