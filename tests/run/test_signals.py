import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dcgan_dist.parallel.variables import MARK
from dcgan_dist.run import signals
from dcgan_dist.run.signals import SIGNALS, RequestMonitor

pytestmark = pytest.mark.usefixtures("as_before")


@pytest.fixture
def requests(tmp_path):
    requests = RequestMonitor()
    requests.watch(tmp_path / "STOP", tmp_path / "SAVE", 0.0)
    return requests


@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_that_asks_for_a_stop_is_only_noted(requests, number):
    assert not requests.stop_wanted()
    signal.raise_signal(number)
    assert requests.stop_wanted()
    assert requests.reason == signal.Signals(number).name


@pytest.mark.parametrize(
    "make", [Path.touch, Path.mkdir, lambda path: path.write_bytes(b"\xff SLURM job 7, restart 0")]
)
def test_anything_of_that_name_asks_for_a_stop(requests, tmp_path, make):
    make(tmp_path / "STOP")
    assert requests.stop_wanted()


def test_a_disk_that_does_not_answer_asks_for_nothing(requests, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ESTALE, "Stale file handle")

    def deny(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "STOP").touch()
    for read, stat in ((fail, Path.stat), (deny, deny)):  # the second: a ticket for the whole folder has run out
        with monkeypatch.context() as context:
            context.setattr(Path, "read_text", read)
            context.setattr(Path, "stat", stat)
            assert not requests.stop_wanted()
    assert requests.stop_wanted()


def test_schedulers_and_people_are_heard():
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2} == set(SIGNALS)


def test_nohup_is_obeyed():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    requests = RequestMonitor()
    signal.raise_signal(signal.SIGHUP)
    assert not requests.stop_wanted()


def test_the_first_reason_stays(requests, tmp_path):
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)
    requests.ask("stopped in W&B")
    (tmp_path / "STOP").touch()
    assert (requests.stop_wanted(), requests.reason) == (True, "SIGUSR1")


def test_a_file_asks_for_a_stop(requests, tmp_path):
    (tmp_path / "STOP").touch()
    assert requests.stop_wanted()
    assert requests.reason == f"{tmp_path / 'STOP'} exists"


def test_another_part_of_the_program_asks_for_a_stop(requests):
    requests.ask("stopped in W&B")
    assert (requests.stop_wanted(), requests.reason) == (True, "stopped in W&B")


def test_a_rank_says_that_it_stops_where_its_launcher_may_be_gone_before(capfd, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    RequestMonitor()
    signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == signals.STOPPING.decode()
    signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == signals.NOT_BEGUN.decode()
    monkeypatch.setenv(MARK, "1")  # ours waits
    RequestMonitor()
    signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize(("numbers", "answers"), [([2], 0), ([2, 2], 1), ([2, 2, 2], 1), ([15, 2], 1), ([2, 15], 0)])
def test_a_person_who_presses_ctrl_c_again_is_answered_once(numbers, answers, begun, capfd, tmp_path):
    """Before the first iteration there is nothing to save."""
    requests = RequestMonitor()
    if begun:
        requests.watch(tmp_path / "STOP", None, 0.0)
    for number in numbers:
        signal.raise_signal(number)
    spoken = capfd.readouterr().err
    assert spoken == answers * (signals.ALREADY_STOPPING if begun else signals.NOT_BEGUN).decode()
    assert ("with a checkpoint" in spoken) == bool(begun and answers)
    assert requests.reason == signal.Signals(numbers[0]).name


def test_one_rank_answers(capfd, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    requests = RequestMonitor()
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == ""
    assert requests.stop_wanted()


def test_the_budget_counts_from_the_start_of_the_process(monkeypatch, tmp_path):
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    signals.listen()
    now += 40  # the import of torch
    requests = signals.take()
    requests.watch(tmp_path / "STOP", None, 1.5)
    now += 49.9
    assert not requests.stop_wanted()
    now += 0.1
    assert (requests.stop_wanted(), requests.reason) == (True, "--stop.after_minutes 1.5")
    assert requests.seconds() == pytest.approx(90)


def test_what_was_heard_early_is_not_lost_and_taken_by_one_attempt_only():
    signals.listen()
    signal.raise_signal(signal.SIGTERM)
    assert signals.take().reason == "SIGTERM"
    assert signals.take().reason == ""


def test_a_command_that_saves_nothing_ends_by_the_signal_that_came_early():
    signals.listen()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signals.take().restore_handlers()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_checkpoint_is_asked_for_by_a_file_that_goes_once_it_is_there(requests, tmp_path):
    assert not requests.save_wanted()
    file = tmp_path / "SAVE"
    file.touch()
    assert requests.save_wanted()
    assert requests.save_noted
    assert file.exists()
    requests.saved()
    assert not requests.save_noted
    assert not file.exists()
    assert not requests.save_wanted()


def test_a_file_that_nobody_has_seen_yet_asks_for_the_next_checkpoint(requests, tmp_path):
    (tmp_path / "SAVE").touch()
    assert not requests.save_noted
    requests.saved()
    assert requests.save_wanted()


def test_who_asks_again_during_a_save_gets_another_one(requests, tmp_path):
    file = tmp_path / "SAVE"
    file.touch()
    assert requests.save_wanted()
    later = file.stat().st_mtime_ns + 1_000
    os.utime(file, ns=(later, later))
    requests.saved()
    assert file.exists()
    assert requests.save_wanted()


def test_the_end_of_its_launcher_stops_a_rank(requests, monkeypatch):
    monkeypatch.setattr(os, "getppid", lambda: 7)
    assert not requests.stop_wanted()  # a shell may go
    monkeypatch.setenv("LOCAL_RANK", "0")
    launched = RequestMonitor()
    assert not launched.stop_wanted()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert (launched.stop_wanted(), launched.reason) == (True, "its launcher ended")


def test_listening_waits_for_no_heavy_import():
    heavy = "{'torch', 'numpy', 'tyro', 'yaml', 'accelerate'}"
    code = f"import dcgan_dist.run.signals, sys; print(sorted({heavy} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
