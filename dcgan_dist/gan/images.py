"""Between stored pixels (uint8, 0..255) and what the networks see."""

import torch
from torch import Tensor

from dcgan_dist.config.groups import Output

# lowest value and width of the range of G's output
RANGES: dict[Output, tuple[float, float]] = {"tanh": (-1.0, 2.0), "sigmoid": (0.0, 1.0)}


def to_range(pixels: Tensor, flips: Tensor | None, output: Output, dtype: torch.dtype) -> Tensor:
    """uint8 (n, C, H, W) -> dtype in the range of `output`; images whose flip (n,) is set are mirrored (None: none)."""
    low, width = RANGES[output]
    x = pixels.to(dtype).mul_(width / 255).add_(low)
    if flips is None:
        return x
    return torch.where(flips.view(-1, 1, 1, 1), x.flip(-1), x)


def to_pixels(x: Tensor, output: Output) -> Tensor:
    """Images of G -> uint8 (n, C, H, W), rounded."""
    low, width = RANGES[output]
    return ((x.float() - low) * (255 / width)).round().clamp(0, 255).to(torch.uint8)
