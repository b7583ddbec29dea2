"""The file RUN/STOP over several attempts: each request stops exactly one of them."""

import errno
import os

import pytest

from dcgan_dist.errors import UsageError
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.signals import RequestMonitor


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def test_a_request_from_before_the_first_attempt_is_kept(folder):
    folder.root.mkdir()
    folder.stop.touch()
    folder.prepare("images: 1\n", {})
    assert folder.stop.exists()


def test_a_request_does_not_make_a_foreign_folder_ours(folder):
    folder.root.mkdir()
    folder.stop.touch()
    (folder.root / "mine.txt").touch()
    with pytest.raises(UsageError, match="holds other files"):
        folder.prepare("images: 1\n", {})


@pytest.mark.parametrize("marker", ["preempted", "done"])
@pytest.mark.parametrize("date", [1_000, 4_000_000_000])
def test_a_request_is_removed_once_an_attempt_has_ended_with_it(folder, marker, date):
    """Whatever time the file has: it may have been copied here, or by a machine whose clock is wrong."""
    folder.prepare("images: 1\n", {})
    folder.stop.touch()
    os.utime(folder.stop, (date, date))
    end = getattr(folder, marker)
    folder.mark(end, "1280")
    assert end.read_text().splitlines()[0] == "1280"
    folder.prepare("images: 1\n", {})
    assert not folder.stop.exists()
    assert not end.exists()


@pytest.mark.parametrize("marker", ["preempted", "done"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("date", [1_000, 4_000_000_000])
def test_a_request_from_between_two_attempts_stops_the_next(folder, marker, before, date):
    """`before`: the attempt that ended had obeyed another one."""
    folder.prepare("images: 1\n", {})
    if before:
        folder.stop.touch()
    folder.mark(getattr(folder, marker), "1280")
    folder.stop.touch()
    os.utime(folder.stop, (date, date))
    folder.prepare("images: 1\n", {})
    assert folder.stop.exists()


def test_a_request_that_comes_while_the_attempt_begins_is_not_removed(folder, monkeypatch):
    folder.prepare("images: 1\n", {})
    folder.stop.touch()
    folder.mark(folder.preempted, "1280")
    really = folder._was_obeyed

    def look(stop):
        obeyed = really(stop)
        os.utime(folder.stop, (5, 5))  # somebody touches it anew
        return obeyed

    monkeypatch.setattr(folder, "_was_obeyed", look)
    folder.prepare("images: 1\n", {})
    assert folder.stop.exists()


def test_a_disk_that_does_not_answer_for_a_moment_removes_no_request(folder, monkeypatch):
    folder.prepare("images: 1\n", {})
    folder.stop.touch()

    def stale(*_, **__):
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as moment:
        moment.setattr(type(folder.stop), "read_text", stale)
        folder._remove_markers()
    assert folder.stop.exists()


def test_a_request_outlives_an_attempt_that_crashed(folder):
    folder.prepare("images: 1\n", {})
    folder.stop.touch()
    folder.prepare("images: 1\n", {})
    assert folder.stop.exists()


@pytest.mark.parametrize(
    ("job", "restarts", "stays"),
    [("7", "2", True), ("7", "3", False), ("7", None, False), ("8", "2", False), (None, None, False)],
)
def test_the_end_of_the_time_of_a_slurm_job_s_attempt_ends_no_other_attempt(folder, monkeypatch, job, restarts, stays):
    """The attempt that it was meant for was killed before it could say that it obeyed."""
    for name, value in (("SLURM_JOB_ID", job), ("SLURM_RESTART_COUNT", restarts)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    folder.prepare("images: 1\n", {})
    folder.stop.write_text("SLURM job 7, restart 2\n")
    folder.prepare("images: 1\n", {})
    assert folder.stop.exists() == stays


def test_a_running_attempt_hears_its_own_warning_and_that_of_no_other_job(folder, monkeypatch):
    """A job that was kept out of the folder may be warned, too."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    folder.prepare("images: 1\n", {})
    requests = RequestMonitor()
    requests.restore_handlers()
    requests.watch(folder.stop, None, 0.0)
    assert not requests.stop_wanted()
    folder.stop.write_text("SLURM job 8, restart 0\n")
    assert not requests.stop_wanted()
    folder.stop.write_text("SLURM job 7, restart 0\n")
    assert requests.stop_wanted()


def test_the_first_attempt_of_a_slurm_job_is_number_0(folder, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    folder.prepare("images: 1\n", {})
    folder.stop.write_text("SLURM job 7, restart 0\n")
    folder.prepare("images: 1\n", {})
    assert folder.stop.exists()
