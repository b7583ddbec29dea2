import signal

import pytest

from dcgan_dist.run.signals import SIGNALS, StopRequest


@pytest.fixture(autouse=True)
def own_handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_that_asks_for_a_stop_is_only_noted(tmp_path, number):
    request = StopRequest(tmp_path / "STOP")
    assert not request.wanted()
    signal.raise_signal(number)
    assert request.wanted()
    assert request.reason == signal.Signals(number).name


def test_schedulers_and_people_are_heard():
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2} == set(SIGNALS)


def test_nohup_is_obeyed(tmp_path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request = StopRequest(tmp_path / "STOP")
    signal.raise_signal(signal.SIGHUP)
    assert not request.wanted()


def test_the_first_reason_stays(tmp_path):
    request = StopRequest(tmp_path / "STOP")
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)
    request.ask("stopped in W&B")
    assert (request.wanted(), request.reason) == (True, "SIGUSR1")


def test_a_file_asks_for_a_stop(tmp_path):
    request = StopRequest(tmp_path / "STOP")
    (tmp_path / "STOP").touch()
    assert request.wanted()
    assert request.reason == f"{tmp_path / 'STOP'} exists"


def test_another_part_of_the_program_asks_for_a_stop(tmp_path):
    request = StopRequest(tmp_path / "STOP")
    request.ask("stopped in W&B")
    assert (request.wanted(), request.reason) == (True, "stopped in W&B")
