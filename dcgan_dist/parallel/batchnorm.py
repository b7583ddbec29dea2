"""Which ranks share BatchNorm statistics."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dcgan_dist.config import SyncBatchNorm
from dcgan_dist.errors import UsageError
from dcgan_dist.gan.layers import GroupedBatchNorm
from dcgan_dist.parallel.world import World


class TorchSyncBatchNorm(nn.SyncBatchNorm):
    """PyTorch's own synchronised BatchNorm, one pass for each group. Needs GPUs; waits for them in every layer."""

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


def _global(network: nn.Module, world: World) -> None:
    _shared(network, None, world.size, world)


def _node(network: nn.Module, world: World) -> None:
    _shared(network, _node_group(world), world.local_size, world)


def _none(network: nn.Module, world: World) -> None:
    del network, world


def _torch(network: nn.Module, world: World) -> None:
    if world.device.type != "cuda":
        raise UsageError(
            "--sync_batchnorm torch: torch.nn.SyncBatchNorm runs on GPUs only; use global, which runs anywhere"
        )
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, GroupedBatchNorm):
                twin = TorchSyncBatchNorm(layer.num_features)
                # the very same tensors, which the optimiser already holds
                twin._parameters, twin._buffers = layer._parameters, layer._buffers
                setattr(parent, name, twin)


_own_node: list[dist.ProcessGroup] = []


def _node_group(world: World) -> dist.ProcessGroup:
    """This node's ranks, `local_size` in a row; made once. Every rank has to take part in making every node's group."""
    largest, smallest = world.maximum(world.local_size, -world.local_size)
    if largest != -smallest:
        raise UsageError(
            f"--sync_batchnorm node: the nodes have from {-smallest} to {largest} ranks; it needs as many on each"
        )
    if not _own_node:
        for first in range(0, world.size, world.local_size):
            group = dist.new_group(list(range(first, first + world.local_size)), timeout=world.timeout)
            if isinstance(group, dist.ProcessGroup):  # else this rank is not in it
                _own_node.append(group)
    return _own_node[0]


SYNCHRONISATIONS: dict[SyncBatchNorm, Callable[[nn.Module, World], None]] = {
    "global": _global,
    "node": _node,
    "none": _none,
    "torch": _torch,
}


def synchronise(network: nn.Module, how: SyncBatchNorm, world: World) -> None:
    """Lets the BatchNorm layers of a network share statistics over ranks, in place. Nothing to do with one rank."""
    if world.size > 1:
        SYNCHRONISATIONS[how](network, world)
