import errno
import os
import sys

import pytest
import torch

from dcgan_dist.errors import UsageError, UserError, run_and_report, show_tracebacks


def failing(error: Exception):
    def act() -> int:
        raise error

    return act


def on_all_ranks(error: UserError) -> UserError:
    error.on_all_ranks = True
    return error


@pytest.mark.parametrize(
    ("error", "rank", "code", "text"),
    [
        (UserError("disk full"), 0, 1, "error: disk full\n"),
        (UserError("disk full"), 3, 1, "rank 3: error: disk full\n"),
        (UsageError("--seed x"), 0, 2, "error: --seed x\n"),
        (on_all_ranks(UsageError("--seed x")), 3, 2, ""),
        (on_all_ranks(UserError("bad shard")), 3, 1, ""),
    ],
)
def test_an_error_is_one_line_by_one_rank(capsys, error, rank, code, text):
    assert run_and_report(failing(error), rank=rank) == code
    assert capsys.readouterr() == ("", text)


@pytest.mark.parametrize(("local_rank", "speaks"), [("0", True), ("1", False)])
def test_a_command_that_is_wrong_on_one_node_is_reported_once_there(capsys, monkeypatch, local_rank, speaks):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert run_and_report(failing(UsageError("--config x.yaml: cannot be read")), rank=9) == 2
    assert capsys.readouterr().err == ("rank 9: error: --config x.yaml: cannot be read\n" if speaks else "")


def test_debug_lets_it_through():
    show_tracebacks(True)
    with pytest.raises(UserError, match="disk full"):
        run_and_report(failing(UserError("disk full")))


EXHAUSTED = [
    MemoryError(),
    MemoryError("Unable to allocate 6.87 MiB for an array"),
    torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. If reserved but unallocated memory is large"
    ),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 99 bytes"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("can't start new thread"),
    RuntimeError("unable to start watchdog thread"),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
]


@pytest.mark.parametrize("error", EXHAUSTED, ids=map(repr, EXHAUSTED))
def test_what_the_system_has_no_more_of_is_one_line(capsys, error):
    assert run_and_report(failing(error)) == 1
    line = capsys.readouterr().err
    assert line.startswith(f"error: out of memory, threads or processes ({type(error).__name__}")
    assert (line.count("\n"), "If reserved" in line) == (1, False)


def test_a_file_that_the_system_refuses_is_one_line(capsys, tmp_path):
    assert run_and_report(lambda: len(tmp_path.read_bytes())) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}: Is a directory\n"


def test_a_current_folder_that_is_gone_is_one_line(capsys, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run_and_report(lambda: 0) == 1
    assert capsys.readouterr().err == "error: the current folder is gone; change to another one\n"


def test_a_bug_is_no_users_error():
    with pytest.raises(ZeroDivisionError):
        run_and_report(lambda: 1 // 0)


def test_the_exit_code_is_the_commands_own():
    assert run_and_report(lambda: 75) == 75


@pytest.mark.parametrize(("counts", "code", "word"), [(True, 1, "error"), (False, 0, "WARNING")])
def test_a_full_disk_behind_the_output_fails_only_what_has_no_other_results(capsys, monkeypatch, counts, code, word):
    """A training that is complete is not a failed one: its results are in its folder."""
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr("sys.stdout", full)
        assert run_and_report(lambda: print("done") or 0, output_counts=counts) == code
    assert capsys.readouterr().err.startswith(f"{word}: standard output cannot be written (No space left on device)")


def test_closed_streams_lead_nowhere(monkeypatch):
    """Else the next file that is opened would have the number of the output, and get what is printed."""
    for name in "stdin", "stdout", "stderr":
        monkeypatch.setattr(sys, name, None)

    def act():
        print("done")
        raise UserError("no")

    assert run_and_report(act) == 1
    for name in "stdin", "stdout", "stderr":
        getattr(sys, name).close()
