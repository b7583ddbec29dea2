"""The state and the engine of the step."""

import torch

from dcgan_dist.config import Config
from dcgan_dist.gan.state import TrainState, create_state
from dcgan_dist.gan.step import Engine
from dcgan_dist.parallel.batchnorm import synchronise
from dcgan_dist.parallel.precision import Arithmetic
from dcgan_dist.parallel.world import World


def create(config: Config, world: World, arithmetic: Arithmetic) -> tuple[TrainState, Engine]:
    """New networks, the same on every rank, and the engine that runs them on all ranks."""
    state = create_state(config, world.device, arithmetic.weights, arithmetic.scaled)
    for network in (state.netg, state.netd):
        synchronise(network, config.sync_batchnorm, world)
    world.broadcast_buffers(state.netg, state.netd, state.ema)
    if world.device.type == "cuda":
        # convolutions in TF32 round inputs to 10 bits of mantissa; fp32 asked for by name stays fp32
        convolutions = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
        convolutions.fp32_precision = "ieee" if arithmetic.forward is None else "tf32"
        torch.backends.cudnn.benchmark = True
    engine = Engine(
        g=world.wrap(state.netg),
        d=world.wrap(state.netd),
        autocast=arithmetic.autocast(world.device),
        backward=world.backward,
        no_sync=world.no_sync,
    )
    return state, engine
