import errno
import multiprocessing.synchronize as synchronize

import pytest

from dcgan_dist.data.system.pool import over_processes
from dcgan_dist.errors import UserError


def test_a_full_dev_shm_is_one_line(monkeypatch):
    """Locks that processes share live there."""

    def full(*args, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(synchronize.SemLock, "__init__", full)
    problem = r"^/dev/shm: not enough space for 2 processes \(No space left on device\); one process needs none$"
    with pytest.raises(UserError, match=problem):
        over_processes(lambda job, tick: job, [1, 2], 2, lambda done: None)
