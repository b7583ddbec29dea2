"""Processes that share out work on this machine."""

import multiprocessing
import os
import signal
import threading


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def follow_parent() -> None:
    """Ties a worker process to the one that started it.

    What a person, a terminal or SLURM sends to everybody is the parent's to handle, and when the parent is killed, the
    worker ends instead of waiting for ever. SIGTERM ends it: that is how a pool puts away the rest when one was killed.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
