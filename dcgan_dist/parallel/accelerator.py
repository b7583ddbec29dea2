"""The Accelerator, of which everything is given here, so that no variable of the environment changes a number."""

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from dcgan_dist.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator


def accelerator_for(seconds: int, cpu: bool) -> "Callable[[], Accelerator]":
    """What joins the other ranks; it raises UserError when a package is missing that a setting needs.

    `seconds`: how long the ranks wait for each other; `cpu`: they leave GPUs alone.
    """
    # Only now: under settings that it does not understand Accelerate cannot be imported. They were refused before.
    from accelerate import Accelerator
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        GradientAccumulationPlugin,
        InitProcessGroupKwargs,
        patch_environment,
    )

    log = logging.getLogger("accelerate")
    if "ACCELERATE_LOG_LEVEL" in os.environ and not log.handlers:
        log.addHandler(logging.StreamHandler())

    def join() -> Accelerator:
        said = "LOCAL_WORLD_SIZE" in os.environ
        try:
            # where it is unset Accelerate warns, and sets threads itself; a list of numbers it cannot read
            with patch_environment(OMP_NUM_THREADS=1):
                return Accelerator(
                    cpu=cpu,
                    mixed_precision="no",  # the engine chooses the precision of every forward pass itself
                    dynamo_backend="no",
                    gradient_accumulation_plugin=GradientAccumulationPlugin(
                        num_steps=1
                    ),  # the step weighs micro-batches
                    kwargs_handlers=[
                        DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                        InitProcessGroupKwargs(timeout=timedelta(seconds=seconds)),
                    ],
                )
        except ImportError as error:
            raise UserError(f"Accelerate: {' '.join(str(error).split())}") from error
        finally:
            if not said:  # by srun, for example; Accelerate set it to 1, however many ranks the node has
                os.environ.pop("LOCAL_WORLD_SIZE", None)

    return join
