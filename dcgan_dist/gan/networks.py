"""NetG and NetD of DCGAN (Radford, Metz & Chintala 2016, arXiv 1511.06434) for every supported image size.

Kernel 4, stride 2, padding 1 doubles the size; the first layer of G takes z from 1 x 1 to 4 x 4 (kernel 4, stride 1,
padding 0). Sizes that are three times a power of two end with kernel 5, stride 3, padding 1: (32 - 1) * 3 - 2 + 5 = 96.
D mirrors G. The names NetG and NetD and the 96 x 96 variant follow the common PyTorch implementations of the paper.
"""

from functools import partial
from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from dcgan_dist.config.groups import DNorm, ImageSize, ModelConfig, Output
from dcgan_dist.gan.layers import GroupedBatchNorm

WIDEST = 16  # multiples of ngf/ndf; without a bound the 4 x 4 layer at 256 pixels would hold most of the parameters

Geometry = tuple[int, int, int]  # kernel, stride, padding
DOUBLE: Geometry = (4, 2, 1)
TRIPLE: Geometry = (5, 3, 1)
STEM: Geometry = (4, 1, 0)


def geometry(image_size: int) -> tuple[list[int], Geometry]:
    """Widths (multiples of ngf) of G's hidden layers at 4, 8, 16 .. pixels, and the geometry of its last layer."""
    if image_size not in get_args(ImageSize):
        raise ValueError(f"image size {image_size}: must be one of {', '.join(map(str, get_args(ImageSize)))}")
    last = TRIPLE if image_size % 3 == 0 else DOUBLE
    hidden_layers = (image_size // last[1] // 4).bit_length()
    return [min(WIDEST, 2**power) for power in reversed(range(hidden_layers))], last


class NetG(nn.Module):
    """The generator: z (n, nz, 1, 1) -> images (n, channels, size, size) in [-1, 1] (tanh) or [0, 1] (sigmoid)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths, last = geometry(config.image_size)
        layers: list[nn.Module] = []
        before, shape = config.nz, STEM
        for width in (multiple * config.ngf for multiple in widths):
            layers += [
                nn.ConvTranspose2d(before, width, *shape, bias=False),
                GroupedBatchNorm(width),
                nn.ReLU(inplace=True),
            ]
            before, shape = width, DOUBLE
        layers += [nn.ConvTranspose2d(before, config.channels, *last, bias=False), OUTPUTS[config.output]()]
        self.layers = nn.Sequential(*layers)
        initialize(self)

    def forward(self, z: Tensor) -> Tensor:
        """Latents -> images."""
        return self.layers(z)


class NetD(nn.Module):
    """The discriminator: images (groups * n, channels, size, size) -> logits (groups * n,).

    `groups` batches pass at once, each normalised by its own statistics. sigmoid(logit) is the paper's D(x).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths, last = geometry(config.image_size)
        hidden = [multiple * config.ndf for multiple in reversed(widths)]
        layers: list[nn.Module] = [
            nn.Conv2d(config.channels, hidden[0], *last, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for before, width in pairwise(hidden):
            # without a BatchNorm's shift behind it, a convolution needs its own
            layers += [nn.Conv2d(before, width, *DOUBLE, bias=config.d_norm == "none")]
            layers += [norm(width) for norm in NORMS[config.d_norm]]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Conv2d(hidden[-1], 1, *STEM, bias=False)]
        self.layers = nn.ModuleList(layers)
        initialize(self)
        if config.spectral_norm:
            for layer in layers:
                if isinstance(layer, nn.Conv2d):
                    spectral_norm(layer)

    def forward(self, x: Tensor, groups: int = 1) -> Tensor:
        """Images -> logits."""
        for layer in self.layers:
            x = layer(x, groups) if isinstance(layer, _BatchNorm) else layer(x)
        return x.flatten()


@torch.no_grad()
def initialize(network: nn.Module) -> None:
    """Weights N(0, 0.02), BatchNorm scales N(1, 0.02), shifts and biases 0 (DCGAN, section 4)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.weight.normal_(0.0, 0.02)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.normal_(1.0, 0.02)
            module.bias.zero_()


def layer_table(network: NetG | NetD, example: Tensor) -> list[tuple[str, str, int]]:
    """For every layer: its description, its output shape without the batch, and its number of parameters."""
    rows: list[tuple[str, str, int]] = []

    def note(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        name = type(layer).__name__.removeprefix("Parametrized") + f"({layer.extra_repr()})"
        name += ", spectral norm" if is_parametrized(layer) else ""
        rows.append((name, " x ".join(map(str, output.shape[1:])), sum(p.numel() for p in layer.parameters())))

    hooks = [layer.register_forward_hook(note) for layer in network.layers]
    was_training = network.training
    with torch.no_grad():
        network.eval()(example)
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    return rows


OUTPUTS: dict[Output, type[nn.Module]] = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
# "layer" normalises every image by itself, over channels and space (Gulrajani et al. 2017, section 4)
NORMS: dict[DNorm, tuple] = {"batch": (GroupedBatchNorm,), "layer": (partial(nn.GroupNorm, 1),), "none": ()}
