"""Which ranks share BatchNorm statistics."""

from collections.abc import Callable
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dcgan_dist.config.groups import SyncBatchNorm
from dcgan_dist.errors import UsageError
from dcgan_dist.gan.layers import GroupedBatchNorm
from dcgan_dist.parallel.world import World


class TorchSyncBatchNorm(nn.SyncBatchNorm):
    """PyTorch's own synchronised BatchNorm, one pass per group. Needs GPUs, and waits for them in each layer."""

    def forward(self, input: Tensor, groups: int = 1) -> Tensor:  # noqa: A002
        """As GroupedBatchNorm: (groups * n, C, H, W), each group with its own statistics."""
        return torch.cat([super(TorchSyncBatchNorm, self).forward(part) for part in input.chunk(groups)])


def _shared(network: nn.Module, group: dist.ProcessGroup | None, ranks: int, world: World) -> None:
    def sum_over_ranks(tensor: Tensor) -> Tensor:
        world.activity.collective("BatchNorm", dist.all_reduce, tensor, group=group)
        return tensor

    for layer in network.modules():
        if isinstance(layer, GroupedBatchNorm):
            layer.sum_over_ranks, layer.ranks = sum_over_ranks, ranks


def _torch(network: nn.Module, world: World) -> None:
    if world.device.type != "cuda":
        raise UsageError("--sync_batchnorm torch: torch.nn.SyncBatchNorm needs GPUs; use global")
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, GroupedBatchNorm):
                twin = TorchSyncBatchNorm(layer.num_features)
                # the same tensors, which the optimiser already holds
                twin._parameters, twin._buffers = layer._parameters, layer._buffers
                setattr(parent, name, twin)


@cache
def _node_group(world: World) -> dist.ProcessGroup:
    """The group of this node's ranks; made once. All ranks must take part in making every group."""
    largest, smallest = world.maximum(world.local_size, -world.local_size)
    if largest != -smallest:
        problem = f"the nodes have {-smallest} to {largest} ranks; it needs the same number on each"
        raise UsageError(f"--sync_batchnorm node: {problem}")
    nodes = (range(first, first + world.local_size) for first in range(0, world.size, world.local_size))
    groups = [dist.new_group(list(ranks), timeout=world.timeout) for ranks in nodes]
    return next(group for group in groups if isinstance(group, dist.ProcessGroup))  # else this rank is not in it


SYNCHRONISATIONS: dict[SyncBatchNorm, Callable[[nn.Module, World], None]] = {
    "global": lambda network, world: _shared(network, None, world.size, world),
    "node": lambda network, world: _shared(network, _node_group(world), world.local_size, world),
    "none": lambda *_: None,
    "torch": _torch,
}


def synchronise(network: nn.Module, how: SyncBatchNorm, world: World) -> None:
    """Makes the BatchNorm layers of a network share statistics over ranks, in place."""
    if world.size > 1:
        SYNCHRONISATIONS[how](network, world)
