"""Processes that share out work on this machine."""

import atexit
import math
import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

from dcgan_dist.data.system.cgroups import cpu_quotas

SENT_TO_ALL = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""What a person, a terminal or SLURM may send to all processes of a program."""


def available_cores() -> int:
    """CPU cores that this process may use: by its affinity, and by the quotas of its control groups, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, cpu_quotas())]))


def follow_parent() -> None:
    """Ties a worker process to the one that started it.

    What a person, a terminal or SLURM sends to everybody is the parent's to handle, and when the parent is killed, the
    worker ends instead of waiting for ever. SIGTERM ends it: that is how a pool puts away the rest when one was killed.
    """
    for number in SENT_TO_ALL - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Processes that are started within it get no signals that are sent to everybody; SIGKILL ends them.

    For a parent that acts on such a signal when their work is done. They inherit what is blocked here for a moment;
    here nothing is lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SENT_TO_ALL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _ShieldedProcess(SpawnProcess):
    def start(self) -> None:
        with signals_blocked():
            super().start()

    def terminate(self) -> None:
        """By a signal that reaches it: a pool puts away the rest when one was killed."""
        self.kill()


class _ShieldedProcesses(SpawnContext):
    Process = _ShieldedProcess


def shielded_processes() -> SpawnContext:
    """A context of multiprocessing for a pool whose processes get no signals that are sent to everybody."""
    with signals_blocked():
        resource_tracker.ensure_running()  # of Python's own; the same holds for it
    return _ShieldedProcesses()


@contextmanager
def interrupt_deferred(again: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Ctrl-C within it calls `again`, and raises KeyboardInterrupt at its end: for code that it must not cut in two."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield  # nothing is raised here
        return
    arrived = False

    def note(*_: Any) -> None:
        nonlocal arrived
        arrived = True
        again()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if arrived:
            raise KeyboardInterrupt


def kill_children() -> None:
    """Kills the processes that multiprocessing has started from here."""
    for process in multiprocessing.active_children():
        process.kill()


_programs: set[subprocess.Popen] = set()


@contextmanager
def shielded_program(command: str | Sequence[str | Path], **settings: Any) -> Iterator[subprocess.Popen]:
    """A program that gets no signals that are sent to everybody; `command`, `settings`: those of `subprocess.Popen`.

    It has a process group of its own, which is killed where the context, or this process, ends before the program.
    """
    with signals_blocked():
        program = subprocess.Popen(command, process_group=0, **settings)
    _programs.add(program)
    try:
        yield program
    finally:
        _kill(program)
        _programs.discard(program)
        program.wait()


@atexit.register
def end_programs() -> None:
    """Kills all that `shielded_program` runs, also for threads that wait for their output."""
    for program in list(_programs):
        _kill(program)


def _kill(program: subprocess.Popen) -> None:
    if program.returncode is None:  # else its number may be another's by now
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
