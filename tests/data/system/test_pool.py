"""Work over several processes: results in order, progress in one number, and errors that arrive."""

import itertools
import multiprocessing
import os
import signal
from contextlib import contextmanager
from functools import partial

import pytest

from dcgan_dist.data.system.pool import WAITING, over_processes, run_jobs
from dcgan_dist.errors import UserError


def square(job, tick):
    tick(job)
    tick(1)
    return job * job, os.getpid()


def fails(job, tick):
    tick(1)
    if job == 3:
        raise UserError("job 3")
    return job


def dies(job, tick):
    if job == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order_and_progress_is_of_all(processes):
    seen = []
    results = over_processes(square, range(20), processes, seen.append)
    assert [result for result, _ in results] == [number * number for number in range(20)]
    assert seen[-1] == sum(range(20)) + 20
    assert seen == sorted(seen)
    assert (os.getpid() in {process for _, process in results}) == (processes == 1)


@contextmanager
def counting(first):
    """Work that counts from a number on, in each process that opened it."""
    numbers = itertools.count(first)

    def work(job, tick):
        tick(1)
        return job, next(numbers), os.getpid()

    yield work


@pytest.mark.parametrize("processes", [1, 2])
def test_each_process_opens_its_work_once_and_jobs_are_made_as_they_are_needed(processes):
    made = 0

    def jobs():
        nonlocal made
        for job in range(1, 31):
            made = job
            yield job

    def report(done):
        assert made <= done + WAITING * processes

    results = list(run_jobs(partial(counting, 100), jobs(), processes, report))
    assert [job for job, _, _ in results] == list(range(1, 31))
    for process in {process for _, _, process in results}:
        numbers = [number for _, number, its in results if its == process]
        assert numbers == list(range(100, 100 + len(numbers)))


@pytest.mark.parametrize("processes", [1, 2])
def test_results_arrive_one_by_one_and_closing_stops_the_processes(processes):
    jobs = iter(range(1_000))
    results = run_jobs(partial(counting, 0), jobs, processes, lambda _: None)
    assert [next(results)[0] for _ in range(3)] == [0, 1, 2]
    results.close()
    assert next(jobs) < 100
    assert multiprocessing.active_children() == []


def test_nothing_to_do():
    assert over_processes(square, [], 0, lambda _: None) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_ends_all(processes):
    with pytest.raises(UserError, match=r"^job 3$"):
        over_processes(fails, range(6), processes, lambda _: None)


def test_a_killed_process_is_one_line():
    with pytest.raises(UserError, match="a process was killed"):
        over_processes(dies, range(4), 2, lambda _: None)
