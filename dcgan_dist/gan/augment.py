"""Differentiable augmentation of what D sees: DiffAugment (Zhao et al. 2020, arXiv 2006.10738).

The random numbers are handed in, so that an image is augmented alike on any number of ranks.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dcgan_dist.config.groups import Augmentation

UNIFORMS = 7  # uniform numbers on (0, 1) per image: brightness, saturation, contrast, shift y, x, hole y, x


def color(x: Tensor, u: Tensor) -> Tensor:
    """Brightness within +-0.5, saturation times 0..2, contrast times 0.5..1.5."""
    brightness, saturation, contrast = (u[:, i].view(-1, 1, 1, 1) for i in range(3))
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    level = x.mean((1, 2, 3), keepdim=True)
    return level + (x - level) * (contrast + 0.5)


def translation(x: Tensor, u: Tensor) -> Tensor:
    """Moves each image by up to 1/8 of its size; what comes in from outside is 0."""
    size, reach = x.shape[-1], round(x.shape[-1] / 8)
    shift = _uniform_integers(u[:, 3:5], 2 * reach + 1) - reach
    padded = functional.pad(x, (reach, reach, reach, reach))
    place = torch.arange(size, device=x.device)
    rows = (place[None] + reach + shift[:, :1])[:, None, :, None]
    columns = (place[None] + reach + shift[:, 1:])[:, None, None, :]
    # gather and not indexing, whose backward pass sorts all pixels on a GPU
    channels = x.shape[1]
    moved = padded.gather(2, rows.expand(-1, channels, -1, padded.shape[-1]))
    return moved.gather(3, columns.expand(-1, channels, size, -1))


def cutout(x: Tensor, u: Tensor) -> Tensor:
    """Sets a square of half the size to 0, its centre anywhere in the image."""
    size, half = x.shape[-1], x.shape[-1] // 4
    centre = _uniform_integers(u[:, 5:7], size + 1)  # the line between two pixels, the image's edges included
    place = torch.arange(size, device=x.device)
    distance = place - centre[..., None]  # (n, 2, size)
    hole_y, hole_x = ((distance >= -half) & (distance < half)).unbind(1)
    return x.masked_fill(hole_y[:, None, :, None] & hole_x[:, None, None, :], 0)


def _uniform_integers(u: Tensor, count: int) -> Tensor:
    """0 .. count - 1, each as often; u itself may have been rounded up to 1."""
    return (u * count).long().clamp(max=count - 1)


AUGMENTATIONS: dict[Augmentation, Callable[[Tensor, Tensor], Tensor]] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
}


def augment(x: Tensor, names: Sequence[Augmentation], u: Tensor | None) -> Tensor:
    """Applies the named augmentations to x (n, C, H, W) with u (n, UNIFORMS), in the order of the dict above."""
    for name, function in AUGMENTATIONS.items():
        if u is not None and name in names:
            x = function(x, u)
    return x
