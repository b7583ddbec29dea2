"""Penalties on D's slope. Each image's penalty must depend on that image alone, so D must not use batch statistics."""

from collections.abc import Callable

import torch
from torch import Tensor

Discriminator = Callable[[Tensor], Tensor]


def _input_gradient(d: Discriminator, x: Tensor) -> Tensor:
    """dD(x)/dx flattened, (n, C*H*W), itself differentiable with respect to D alone."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(d(x).sum(), x, create_graph=True)
    return gradient.flatten(1)


def r1_penalty(d: Discriminator, real: Tensor) -> Tensor:
    """|grad D(x)|^2 / 2 for each real image, (n,) (Mescheder et al. 2018, equation 9, without gamma)."""
    return 0.5 * _input_gradient(d, real).square().sum(1)


def gradient_penalty(d: Discriminator, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """(|grad D(x)| - 1)^2 at x = mix * real + (1 - mix) * fake, (n,) (Gulrajani et al. 2017, equation 3).

    `mix` (n,), uniform on [0, 1).
    """
    mix = mix.view(-1, 1, 1, 1)
    between = mix * real + (1 - mix) * fake
    # the square root has no slope at 0
    norm = (_input_gradient(d, between).square().sum(1) + 1e-12).sqrt()
    return (norm - 1).square()
