"""Jobs that several processes share, with their progress as one number."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Any, TypeVar

from dcgan_dist.data.system.workers import available_cores, follow_parent, kill_children, shielded_spawn, uninterrupted
from dcgan_dist.errors import UserError

POLL = 0.2  # seconds
WAITING = 2  # jobs for each process that are made beforehand

J = TypeVar("J")
R = TypeVar("R")
Tick = Callable[[int], None]  # called with the progress since the last call
Work = Callable[[J, Tick], R]  # called with a job and a Tick
Opened = Callable[[], AbstractContextManager[Work[J, R]]]  # sent to each process and called there once
Report = Callable[[int], None]  # called in this process with the progress of all jobs together


class WorkerKilledError(UserError):
    """A process of the pool was killed."""


class _StopError(Exception):
    """Another process has failed, or the command was interrupted."""


def over_processes(work: Work[J, R], jobs: Sequence[J], processes: int, report: Report) -> list[R]:
    """As run_jobs, for work that needs nothing opened: a function of a module. `processes` 0: as many as CPU cores."""
    return list(run_jobs(partial(nullcontext, work), jobs, min(processes or available_cores(), len(jobs)), report))


def run_jobs(opened: Opened[J, R], jobs: Iterable[J], processes: int, report: Report) -> Generator[R, None, None]:
    """The results of all jobs, in their order. Closing the generator stops the processes.

    `opened`: gives the work, with what it needs. `jobs`: made one by one, as they are needed. `processes`: with 1,
    everything happens in this process.

    Raises WorkerKilledError when a process was killed, and whatever the work raises.
    """
    if processes > 1:
        yield from _spread(opened, iter(jobs), processes, report)
        return
    done = 0

    def tick(more: int) -> None:
        nonlocal done
        done += more
        report(done)

    with opened() as work:
        for job in jobs:
            yield work(job, tick)


def _spread(opened: Opened[J, R], jobs: Iterator[J], processes: int, report: Report) -> Iterator[R]:
    # spawned, because a forked process inherits the locks of threads that it does not have
    context = shielded_spawn()  # Ctrl-C is for this process, which has them stop
    try:
        counter, stop = context.Value("q", 0), context.Event()
    except OSError as error:
        problem = f"not enough space for {processes} processes ({error.strerror}); one process needs none"
        raise UserError(f"/dev/shm: {problem}") from error
    futures: deque[Future[R]] = deque()  # in the order of the jobs
    with ProcessPoolExecutor(processes, context, _begin, (opened, counter, stop)) as pool:
        try:
            pending: set[Future[R]] = set()
            while True:
                new_jobs = list(itertools.islice(jobs, WAITING * processes - len(pending)))
                with uninterrupted():  # an executor is useless where one comes while it starts its processes
                    more = [pool.submit(_do, job) for job in new_jobs]
                futures += more
                pending |= set(more)
                if not futures:
                    break
                finished, pending = wait(pending, timeout=POLL, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                report(counter.value)
                while futures and futures[0].done():
                    yield futures.popleft().result()
        except BrokenProcessPool as error:
            problem = "a process was killed, perhaps for want of memory; try fewer --processes"
            raise WorkerKilledError(problem) from error
        finally:
            with uninterrupted(kill_children):  # Ctrl-C a second time does not wait for the jobs in hand
                stop.set()
                pool.shutdown(cancel_futures=True)


# in a process of the pool: its work and its tick, and what keeps open what the work needs until the process ends
_mine: list[tuple[Work[Any, Any], Tick]] = []
_open = ExitStack()


def _begin(opened: Opened[Any, Any], counter: "Synchronized[int]", stop: Event) -> None:
    follow_parent()

    def tick(more: int) -> None:
        with counter.get_lock():
            counter.value += more
        if stop.is_set():
            raise _StopError

    _mine.append((_open.enter_context(opened()), tick))


def _do(job: Any) -> Any:
    work, tick = _mine[0]
    return work(job, tick)
