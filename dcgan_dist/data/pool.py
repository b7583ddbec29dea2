"""The same work on many files, by several processes, with progress in one number."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import TypeVar

from dcgan_dist.data.workers import available_cores, follow_parent
from dcgan_dist.errors import UserError

POLL = 0.2  # seconds

J = TypeVar("J")
R = TypeVar("R")
Tick = Callable[[int], None]
"""Called with what was done since the last time."""


class _StopError(Exception):
    """Another process has failed, or the command was interrupted."""


def over_processes(
    work: Callable[[J, Tick], R], jobs: Sequence[J], processes: int, report: Callable[[int], None]
) -> list[R]:
    """The results of all jobs, in their order.

    Args:
        work: a function of a module, called with a job and what it is to call with its progress.
        jobs: what travels to other processes.
        processes: 0: as many as CPU cores; with 1, or one job alone, everything happens in this process.
        report: called in this process with the progress of all jobs together.

    Raises UserError when a process was killed, and whatever `work` raises.
    """
    processes = min(processes or available_cores(), len(jobs))
    if processes > 1:
        return _spread(work, jobs, processes, report)
    done = 0

    def tick(more: int) -> None:
        nonlocal done
        done += more
        report(done)

    return [work(job, tick) for job in jobs]


def _spread(work: Callable[[J, Tick], R], jobs: Sequence[J], processes: int, report: Callable[[int], None]) -> list[R]:
    # spawned, because a forked process inherits the locks of threads that it does not have
    context = multiprocessing.get_context("spawn")
    try:
        counter, stop = context.Value("q", 0), context.Event()
    except OSError as error:
        raise UserError(
            f"/dev/shm: no room for what {processes} processes share ({error.strerror}); one process needs none"
        ) from error
    with ProcessPoolExecutor(processes, context, _begin, (counter, stop)) as pool:
        futures = [pool.submit(_do, work, job) for job in jobs]
        try:
            pending = set(futures)
            while pending:
                finished, pending = wait(pending, timeout=POLL, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                report(counter.value)
        except BrokenProcessPool as error:
            raise UserError("a process was killed, perhaps for want of memory; try fewer --processes") from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


_ticks: list[Tick] = []  # in a process of the pool: its own


def _begin(counter: "Synchronized[int]", stop: Event) -> None:
    follow_parent()

    def tick(more: int) -> None:
        with counter.get_lock():
            counter.value += more
        if stop.is_set():
            raise _StopError

    _ticks.append(tick)


def _do(work: Callable[[J, Tick], R], job: J) -> R:
    return work(job, _ticks[0])
