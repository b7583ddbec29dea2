"""Several ranks: do they talk, how fast, and is what they compute together what one computes alone?"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dcgan_dist import keyed
from dcgan_dist.commands.iteration import Iteration
from dcgan_dist.config import Config
from dcgan_dist.data.reading.reader import Split
from dcgan_dist.parallel.world import Alone, World

SMALL, LARGE = 8, 16 * 2**20  # bytes that are added up
TURNS = 10
ITERATIONS = 3
IMAGES = 4  # of a micro-batch on each rank
MOST_MICRO_BATCHES = 3


@dataclass(frozen=True, kw_only=True)
class Talk:
    """What some ranks did together."""

    ranks: int
    device: str
    """cpu: through gloo; cuda: through NCCL."""
    latency: float
    """Seconds to add up a number."""
    rate: float
    """Bytes a second of a large array that is added up."""
    deviation: float
    """Of the weights from those of one rank, relative, the worst of all tensors and ranks; inf: not a number."""
    tensor: str
    """Which one it is."""


def talk(config: Config, world: World) -> Talk:
    """All ranks call it together; the same answer on each."""
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)  # a thread has a device of its own, which barriers take
    latency, seconds = (_time_sum(world, count) for count in (SMALL, LARGE))
    deviation, tensor = max(world.gather(deviate(small_run(config, world.size), world)))
    return Talk(
        ranks=world.size,
        device=world.device.type,
        latency=latency,
        rate=LARGE / seconds,
        deviation=deviation,
        tensor=tensor,
    )


def _time_sum(world: World, count: int) -> float:
    """Seconds to add up so many bytes over all ranks: the median of the slowest rank's."""
    tensor = torch.zeros(count // 4, device=world.device)
    turns = []
    for _ in range(TURNS + 2):
        world.barrier()
        began = time.perf_counter()
        world.sum_(tensor)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        turns.append(time.perf_counter() - began)
    return max(world.gather(statistics.median(turns[2:])))


def small_run(config: Config, ranks: int) -> Config:
    """The same training with tiny networks in float64: its loss, penalties, augmentation, schedule, order of memory."""
    accumulate = min(config.accumulate, MOST_MICRO_BATCHES)
    size = 48 if config.model.image_size % 3 == 0 else 32
    # without shared statistics the ranks train another network, which is what the line then says
    shared = "global" if config.sync_batchnorm in ("none", "node") else config.sync_batchnorm
    batch = IMAGES * ranks * accumulate
    return replace(
        config,
        images=ITERATIONS * batch,
        model=replace(config.model, image_size=size, nz=8, ngf=4, ndf=4),
        precision="fp64",
        accumulate=accumulate,
        batch_size=batch,
        sync_batchnorm=shared,
        world_size=None,
    )


def deviate(config: Config, world: World) -> tuple[float, str]:
    """Trains the same on all ranks together and on this one alone; the largest difference, and of which tensor."""
    together, alone = (_trained(config, each) for each in (world, _alone(world)))
    return max((_difference(together[name], alone[name]), name) for name in alone)


def _alone(world: World) -> World:
    return Alone(accelerator=world.accelerator, timeout=world.timeout)


def _trained(config: Config, world: World) -> dict[str, Tensor]:
    iteration = Iteration(config, world, _images(config, world))
    for _ in range(ITERATIONS):
        iteration.run()
    tensors = iteration.state.tensors()
    return {f"{file}/{name}": t.double() for file, each in tensors.items() for name, t in each.items()}


def _images(config: Config, world: World) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's part of images that are numbers drawn by position, as the order of the images is."""
    split = Split(batch=config.batch_size, micro_batches=config.accumulate, rank=world.rank, world_size=world.size)
    shape = (config.model.channels, config.model.image_size, config.model.image_size)
    for position in range(0, 2**62, config.batch_size):
        parts, flips = [], []
        for start in split.slices(position):
            count = split.per_rank_micro
            each = int(np.prod(shape))
            parts.append(256 * keyed.uniform(keyed.key(config.seed, "doctor"), start * each, count * each))
            flips.append(np.arange(start, start + count) % 2 == 0)
        images = torch.from_numpy(np.concatenate(parts).astype(np.uint8).reshape(-1, *shape))
        yield images.to(world.device), torch.from_numpy(np.concatenate(flips)).to(world.device)


def _difference(ours: Tensor, theirs: Tensor) -> float:
    norm, difference = float(theirs.norm()), float((ours - theirs).norm())
    found = difference / norm if norm else difference
    return found if found == found else float("inf")
