"""The rendezvous of the ranks. Meanwhile the main thread waits in C++, where Python's signal handlers do not run."""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from dcgan_dist.errors import UserError, to_stderr

T = TypeVar("T")
STOP_GRACE = 10.0  # seconds from a request to stop; less than the 30 after which a launcher kills its ranks
LOOK_EVERY = 1.0  # seconds
MARGIN = 10.0  # seconds after torch's own timeout, which does not count while something else answers at the port


def rendezvous(join: Callable[[], T], timeout: float, asked: bool = False) -> T:
    """Returns what `join` returns when all ranks have joined. Raises UserError when they do not find each other.

    `timeout`: seconds for which torch waits for them; `asked`: this rank was already asked to stop. Such a rank gives
    the others some seconds to join, because all may have been asked and then stop together, and ends the process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or threading.current_thread() is not threading.main_thread():
        return join()
    signals, noted = socket.socketpair()
    noted.setblocking(False)
    before = signal.set_wakeup_fd(noted.fileno(), warn_on_full_buffer=False)
    met = threading.Event()
    if asked:
        noted.send(b"\0")
    guard = threading.Thread(target=_guard, args=(met, signals, timeout + MARGIN), name="rendezvous", daemon=True)
    guard.start()
    try:
        return join()
    except dist.DistError as error:
        raise UserError(_alone(" ".join(str(error).split())[:200])) from error
    finally:
        met.set()
        signal.set_wakeup_fd(before)
        noted.close()
        guard.join()
        signals.close()


def _guard(met: threading.Event, signals: socket.socket, seconds: float) -> None:
    """Ends the process after a request to stop or the timeout. `signals` is readable after a signal."""
    launcher, end = os.getppid(), time.monotonic() + seconds
    asked: object = None
    while not asked and time.monotonic() < end:
        asked = select.select([signals], [], [], LOOK_EVERY)[0] or os.getppid() != launcher  # which may hold the store
    if met.wait(STOP_GRACE if asked else 0):
        return
    why = f"error: {_alone(f'no answer in {seconds:g} s')}"
    why = "asked to stop while it waited for the other ranks; nothing had begun" if asked else why
    if not asked or os.environ.get("LOCAL_RANK", "0") == "0":  # a request is reported once per machine
        to_stderr(f"rank {os.environ.get('RANK', '?')}: {why}")
    os._exit(1)


def _alone(reason: str) -> str:
    place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    return (
        f"the {os.environ['WORLD_SIZE']} launched ranks do not find each other at {place} ({reason}); give an address "
        "and a free port that all nodes can reach; dcgan-dist doctor, without a launcher, checks each node"
    )
