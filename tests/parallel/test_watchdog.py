"""Hangs and deaths of ranks in real trainings: all ranks end, and say what they were doing."""

import ctypes
import itertools
import os
import re
import signal
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
import torch.distributed as dist
from support.ranks import ends_of_ranks
from support.recording import options

from dcgan_dist import train

pytestmark = pytest.mark.dist

LIMIT = 2.0
CALL = 5  # the fault's iteration; the first four are complete


def sleeps_for_ever():
    threading.Event().wait()


def is_stopped():
    os.kill(os.getpid(), signal.SIGSTOP)


def holds_the_lock():
    ctypes.PyDLL(None).sleep(60)


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


def train_with(given, fault, rank=1, place="discriminator_step"):
    """The command; `fault` happens on `rank` in the middle of an iteration."""
    calls, true = itertools.count(1), getattr(train, place)

    def faulty(*args):
        if next(calls) == CALL and os.environ["RANK"] == str(rank):
            fault()
        return true(*args)

    assert os.environ["WORLD_SIZE"] == str(len(os.environ["WORLD_SIZE"]) and int(os.environ["WORLD_SIZE"]))
    with mock.patch.object(train, place, faulty):
        return train.main(given)
