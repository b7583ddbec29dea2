"""The end of a rank: how it leaves, and whether another one left before it."""

import atexit
import os
import sys
from typing import NoReturn

import torch
import torch.distributed as dist

from dcgan_dist.errors import UserError


def rank_lost(error: RuntimeError) -> bool:
    """Whether an error says that another rank went away or does not answer."""
    signs = ("Connection closed by peer", "Connection reset", "Timed out waiting", "Broken pipe")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)


def out_of_memory(error: RuntimeError) -> UserError | None:
    """What to do when a GPU has too little memory; None for any other error."""
    if not isinstance(error, torch.OutOfMemoryError):
        return None
    what = " ".join(str(error).split()).partition(" If reserved")[0][:300]
    return UserError(
        f"{what} The last checkpoint is untouched: a larger --accumulate, a smaller --batch_size, more GPUs, or "
        "--checkpoint.blocking needs less"
    )


def leave(code: int) -> NoReturn:
    """Ends this process without Python's tear-down.

    Threads of torch may still be letting go of the last tensors. One that asks for Python's lock during the tear-down
    is ended in the middle of C++ code, which aborts the whole process (seen with gloo: "terminate called without an
    active exception"), and a launcher takes a complete run for a failed one. What programs put away at their exit, such
    as W&B's temporary folders, is put away.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
