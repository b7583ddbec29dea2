"""The end of a rank, and the errors after the end of another one."""

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn

import torch.distributed as dist


def rank_lost(error: RuntimeError) -> bool:
    """Whether an error means that another rank is gone or does not answer."""
    signs = ("Connection closed by peer", "Connection reset", "Timed out waiting", "Broken pipe")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)


def leave(code: int) -> NoReturn:
    """Ends this process without Python's finalisation, but with its atexit functions.

    A thread of torch that asks for the GIL during finalisation is ended inside C++ code, which aborts the process (seen
    with gloo: "terminate called without an active exception"), so that a launcher sees a failure.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a full disk
            stream.flush()
    os._exit(code)
