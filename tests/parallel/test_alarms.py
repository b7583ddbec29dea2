"""How watchdogs talk, and that none of them hangs where nobody answers."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.waiting import LIMIT, until

from dcgan_dist.parallel import store as module
from dcgan_dist.parallel.store import Alarms


def peer(rank, size=3):
    world: Any = SimpleNamespace(rank=rank, size=size)
    return Alarms(world)


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A store that answers may take long to do it on a machine with other work."""
    monkeypatch.setattr(module, "ANSWER_TIMEOUT", LIMIT)


def stop(store, number):
    """Returns when the process has stopped or ended; a signal may take its time."""
    os.kill(store.pid, number)
    states = [path / "stat" for path in Path(f"/proc/{store.pid}/task").iterdir()]
    until(
        lambda: all(not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "TZX" for state in states)
    )


def test_an_alarm_reaches_all_and_the_first_to_raise_it_is_one(store):
    first, second, third = (peer(rank) for rank in range(3))
    assert [each.alarm() for each in (first, second, third)] == [None] * 3
    assert [second.raise_alarm("hang"), first.raise_alarm("lost")] == [True, False]
    # a store does not confirm what it is given: another connection sees it a moment later
    until(lambda: [each.alarm() for each in (first, second, third)] == ["hang"] * 3)
    second.answer()
    first.answer()
    until(lambda: second.silent(0) == [f"rank 2 on {socket.gethostname()}"])
    third.answer()
    until(lambda: second.silent(0) == [])


def test_a_restart_of_the_ranks_knows_nothing_of_the_alarm_before(store, monkeypatch):
    peer(0).raise_alarm("lost")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert peer(0).alarm() is None


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_store_that_does_not_answer_holds_up_no_rank(store, monkeypatch, number):
    one = peer(1)
    assert one.alarm() is None
    monkeypatch.setattr(module, "ANSWER_TIMEOUT", 0.5)
    stop(store, number)
    assert one.alarm() is None
    assert one.raise_alarm("hang") is True  # then each speaks for itself
    one.answer()
    assert one.silent(0) == []


def test_one_rank_alone_asks_no_store():
    alone = peer(0, size=1)
    assert (alone.raise_alarm("hang"), alone.alarm(), alone.silent(10)) == (True, None, [])


def hears(one: Alarms) -> None:
    """Returns when it has heard of the alarm."""
    until(lambda: one.alarm() == "hang")


def test_a_store_that_was_silent_is_asked_again(store, monkeypatch):
    """By one thread that waits for it, however often it was asked meanwhile."""
    one, other = peer(1), peer(2)
    monkeypatch.setattr(module, "ANSWER_TIMEOUT", 0.2)
    stop(store, signal.SIGSTOP)
    try:
        assert [one.alarm() for _ in range(4)] == [None] * 4
        assert sum(thread.name == "asks the store" for thread in threading.enumerate()) == 1
    finally:
        os.kill(store.pid, signal.SIGCONT)
    until(lambda: other.raise_alarm("hang"))
    hears(one)


def test_a_store_that_comes_back_is_found_again(store, monkeypatch):
    monkeypatch.setattr(module, "RECONNECT_EVERY", 0.0)
    one = peer(1)
    monkeypatch.setattr(module, "ANSWER_TIMEOUT", 3.0)
    store.kill()
    store.wait()
    assert one.alarm() is None
    again = store.args[2].replace('"127.0.0.1", 0', f'"127.0.0.1", {os.environ["MASTER_PORT"]}')
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", again], **pipes) as process:
        assert process.stdout is not None
        process.stdout.readline()
        peer(2).raise_alarm("hang")
        hears(one)
        process.kill()


def test_a_store_that_was_not_there_at_the_start_is_found_later(store, monkeypatch):
    monkeypatch.setattr(module, "RECONNECT_EVERY", 0.0)
    real, refusals = module.connect, ["busy"]

    def connect(*given):
        if refusals:
            raise RuntimeError(refusals.pop())
        return real(*given)

    monkeypatch.setattr(module, "connect", connect)
    one, other = peer(1, 2), peer(0, 2)
    assert refusals == []
    other.raise_alarm("hang")
    hears(one)
    until(lambda: other.silent(0) == [f"rank 1 on {socket.gethostname()}"])
