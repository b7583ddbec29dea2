"""Worker processes of this machine: their number, their signals, and their end."""

import atexit
import math
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from dcgan_dist.data.system.cgroups import cpu_quotas

T = TypeVar("T")
SENT_TO_ALL = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""Signals that a user, a terminal or SLURM may send to all processes of a job."""


def available_cores() -> int:
    """CPU cores of this process: its affinity, limited by the quotas of its control groups, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, cpu_quotas())]))


def follow_parent() -> None:
    """Ties a worker process to its parent, which handles the signals that are sent to all processes.

    The worker ends when the parent is killed, and by SIGTERM, which a pool sends to the others when one was killed.
    """
    for number in SENT_TO_ALL - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


class DaemonThreads:
    """Threads that act on request; daemons, for one that hangs in a read must not delay the end of the program."""

    def __init__(self, count: int, name: str) -> None:
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, act: Callable[[], T]) -> "Future[T]":
        """The result of `act`, which the next free thread calls."""
        future: Future[T] = Future()
        self._tasks.put((future, act))
        return future

    def close(self, seconds: float) -> None:
        """Ends the threads, and waits at most so long for what they do."""
        for _ in self._threads:
            self._tasks.put(None)
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))

    def _work(self) -> None:
        while task := self._tasks.get():
            future, act = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(act())
                except BaseException as error:
                    future.set_exception(error)
            del task, future, act  # not kept until the next one


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Processes started within it ignore all SENT_TO_ALL signals; SIGKILL ends them.

    They inherit the signal mask. The parent receives signals that arrive meanwhile at the end of the context.
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
        """Kills it, because SIGTERM is blocked; a pool calls this for the others when one was killed."""
        self.kill()


class _ShieldedProcesses(SpawnContext):
    Process = _ShieldedProcess


def shielded_spawn() -> SpawnContext:
    """A context of multiprocessing for a pool whose processes ignore all SENT_TO_ALL signals."""
    with signals_blocked():
        resource_tracker.ensure_running()  # the same for this process of Python's
    return _ShieldedProcesses()


@contextmanager
def uninterrupted(again: Callable[[], None] = lambda: None) -> Iterator[None]:
    """For code that Ctrl-C must not interrupt: calls `again` instead, and raises KeyboardInterrupt at the end."""
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
    """Kills the processes that multiprocessing has started in this process."""
    for process in multiprocessing.active_children():
        process.kill()


_programs: set[subprocess.Popen] = set()


@contextmanager
def shielded_program(command: str | Sequence[str | Path], **settings: Any) -> Iterator[subprocess.Popen]:
    """A program that ignores all SENT_TO_ALL signals; `command`, `settings`: those of `subprocess.Popen`.

    It has its own process group, which is killed if the context, or this process, ends before the program.
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
    """Kills all programs of `shielded_program`, so that threads stop waiting for their output."""
    for program in list(_programs):
        _kill(program)


def _kill(program: subprocess.Popen) -> None:
    if program.returncode is None:  # else another process may have its pid
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
