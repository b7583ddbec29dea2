"""How watchdogs talk, and that none of them hangs where nobody answers."""

import os
import signal
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from dcgan_dist.parallel import peers as module
from dcgan_dist.parallel.peers import Peers


def peer(rank, size=3):
    world: Any = SimpleNamespace(rank=rank, size=size)
    return Peers(world)


def test_an_alarm_reaches_all_and_the_first_to_raise_it_is_one(store):
    first, second, third = (peer(rank) for rank in range(3))
    assert [each.alarm() for each in (first, second, third)] == [None] * 3
    assert [second.raise_alarm("hang"), first.raise_alarm("lost")] == [True, False]
    assert [each.alarm() for each in (first, second, third)] == ["hang"] * 3
    second.answer()
    first.answer()
    assert second.silent(0) == [f"rank 2 on {socket.gethostname()}"]
    third.answer()
    assert second.silent(0) == []


def test_a_restart_of_the_ranks_knows_nothing_of_the_alarm_before(store, monkeypatch):
    peer(0).raise_alarm("lost")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert peer(0).alarm() is None


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_store_that_does_not_answer_keeps_nobody(store, monkeypatch, number):
    monkeypatch.setattr(module, "PATIENCE", 1.0)
    one = peer(1)
    assert one.alarm() is None
    os.kill(store.pid, number)
    assert one.alarm() is None
    assert one.raise_alarm("hang") is True  # then each speaks for itself
    one.answer()
    assert one.silent(0) == []


def test_one_rank_alone_asks_nobody():
    alone = peer(0, size=1)
    assert (alone.raise_alarm("hang"), alone.alarm(), alone.silent(10)) == (True, None, [])
