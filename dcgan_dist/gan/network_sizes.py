"""Sizes of the networks of a run, without allocating them."""

from dataclasses import dataclass
from math import prod

import torch

from dcgan_dist.config import Config
from dcgan_dist.gan.networks import NetD, NetG, layer_table

ADAM = 2  # numbers that Adam keeps for each parameter


@dataclass(frozen=True, kw_only=True)
class NetworkSizes:
    """Bytes of the networks of a run."""

    gradients: int  # of both networks
    checkpoint: int  # the tensors of one: three networks, and Adam's state of two
    largest_file: int  # of a checkpoint
    outputs: int  # of all layers for one image: G's once and D's twice, for a real and a generated one


def measure_networks(config: Config, weights: torch.dtype) -> NetworkSizes:
    """Counts on torch's meta device, which holds no numbers. `weights`: dtype of the parameters."""
    model = config.model
    with torch.device("meta"):
        netg, netd = NetG(model).to(weights), NetD(model).to(weights)
        z = torch.zeros(1, model.nz, 1, 1, dtype=weights)
        x = torch.zeros(1, model.channels, model.image_size, model.image_size, dtype=weights)
        outputs = _outputs(netg, z) + 2 * _outputs(netd, x)
    files: list[int] = []
    for network in (netg, netd):
        tensors = sum(tensor.nbytes for tensor in network.state_dict().values())
        files += [tensors, sum(ADAM * p.nbytes + 4 for p in network.parameters())]  # and its count of steps
    return NetworkSizes(
        gradients=sum(p.nbytes for network in (netg, netd) for p in network.parameters()),
        checkpoint=sum(files) + files[0],  # the average of G
        largest_file=max(files),
        outputs=outputs * weights.itemsize,
    )


def count_parameters(config: Config) -> dict[str, int]:
    """Numbers that training changes, of "g" and "d"."""
    with torch.device("meta"):
        networks = {"g": NetG(config.model), "d": NetD(config.model)}
    return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}


def _outputs(network: NetG | NetD, example: torch.Tensor) -> int:
    return sum(prod(map(int, shape.split(" x "))) for _, shape, _ in layer_table(network, example))
