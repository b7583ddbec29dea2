"""The end of a rank: how it leaves, and whether another one left before it."""

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn

import torch.distributed as dist


def rank_lost(error: RuntimeError) -> bool:
    """Whether an error says that another rank went away or does not answer."""
    signs = ("Connection closed by peer", "Connection reset", "Timed out waiting", "Broken pipe")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)


def leave(code: int) -> NoReturn:
    """Ends this process without Python's tear-down.

    Threads of torch may still be letting go of the last tensors. One that asks for Python's lock during the tear-down
    is ended in the middle of C++ code, which aborts the whole process (seen with gloo: "terminate called without an
    active exception"), and a launcher takes a complete run for a failed one. What programs put away at their exit, such
    as W&B's temporary folders, is put away.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a full disk behind it: what could be printed is
            stream.flush()
    os._exit(code)
