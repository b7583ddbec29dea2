"""Networks run as they are."""

from contextlib import nullcontext

import torch

from dcgan_dist.gan.state import TrainState
from dcgan_dist.gan.step import Engine


def plain(state: TrainState) -> Engine:
    """In their own precision, in this process alone."""
    return Engine(
        g=state.netg,
        d=state.netd,
        autocast=nullcontext,
        backward=torch.Tensor.backward,
        no_sync=lambda _: nullcontext(),
    )
