"""Work over several processes: results in order, progress in one number, and errors that arrive."""

import os
import signal

import pytest

from dcgan_dist.data.pool import over_processes
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


def test_nothing_to_do():
    assert over_processes(square, [], 0, lambda _: None) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_ends_all(processes):
    with pytest.raises(UserError, match=r"^job 3$"):
        over_processes(fails, range(6), processes, lambda _: None)


def test_a_killed_process_is_one_line():
    with pytest.raises(UserError, match="a process was killed"):
        over_processes(dies, range(4), 2, lambda _: None)
