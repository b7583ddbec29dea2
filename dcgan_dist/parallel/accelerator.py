"""The Accelerator, with all its settings, so that no environment variable changes a number."""

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from dcgan_dist.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator


def accelerator_for(seconds: int, cpu: bool) -> "Callable[[], Accelerator]":
    """A function that joins the other ranks. It raises UserError when a package is missing that a setting needs.

    `seconds`: the timeout of the ranks; `cpu`: do not use GPUs.
    """
    # only now: with settings that it does not know Accelerate cannot be imported; they were refused before
    from accelerate import Accelerator, utils

    log = logging.getLogger("accelerate")
    if "ACCELERATE_LOG_LEVEL" in os.environ and not log.handlers:
        log.addHandler(logging.StreamHandler())

    def join() -> Accelerator:
        given = "LOCAL_WORLD_SIZE" in os.environ
        try:
            # if it is unset, Accelerate warns and sets threads itself; a list it cannot read
            with utils.patch_environment(OMP_NUM_THREADS=1):
                return Accelerator(
                    cpu=cpu,
                    mixed_precision="no",  # the engine chooses the precision of every forward pass itself
                    dynamo_backend="no",
                    gradient_accumulation_plugin=utils.GradientAccumulationPlugin(num_steps=1),  # the step accumulates
                    kwargs_handlers=[
                        utils.DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                        utils.InitProcessGroupKwargs(timeout=timedelta(seconds=seconds)),
                    ],
                )
        except ImportError as error:
            raise UserError(f"Accelerate: {' '.join(str(error).split())}") from error
        finally:
            if not given:  # for example by srun; Accelerate has set it to 1
                os.environ.pop("LOCAL_WORLD_SIZE", None)

    return join


def tracker_classes() -> dict[str, type]:
    """Accelerate's tracker classes by name, also those that were registered with it. Imports no tool."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    return {str(name): kind for name, kind in LOGGER_TYPE_TO_CLASS.items()}
