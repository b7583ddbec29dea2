"""Ctrl-C, and a reader of the output that goes away: a line or none, never a traceback."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.processes import children, of_group
from support.shards import write_ours
from support.waiting import LIMIT

from dcgan_dist.errors import run_and_report

INTERRUPTED, UNREAD = 128 + signal.SIGINT, 128 + signal.SIGPIPE
FRONT = "import sys; from dcgan_dist.__main__ import main; sys.exit(main())"
# Python runs this before anything else: at the import of a module, or the start of a process of a pool, as by Ctrl-C
CTRL_C = """
import os, signal, sys

class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ.get("AT_IMPORT"):
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Sender())
if "AT_START" in os.environ and "--multiprocessing-fork" in sys.argv:
    os.killpg(0, signal.SIGINT)
"""


@pytest.fixture
def start(tmp_path):
    """Starts a command of the front door in a process group of its own, of which nothing is left at the end."""
    (tmp_path / "sitecustomize.py").write_text(CTRL_C)
    started = []

    def start(*arguments, stdout=subprocess.PIPE, **variables):
        path = os.pathsep.join([str(tmp_path), *sys.path])
        process = subprocess.Popen(
            [sys.executable, "-c", FRONT, *map(str, arguments)],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            process_group=0,
            env=os.environ | variables | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        for left in of_group(process.pid):
            left.kill()
        process.communicate()


COMMANDS = {
    "shard": ("shard", "pictures", "out", "--size", 32),
    "verify": ("verify", "shards"),
    "inspect": ("inspect", "shards"),
    "sample": ("sample", "run"),
    "doctor": ("doctor",),
    "launch": ("launch", "--cpu"),
}
IMPORTED = {"launch": "argparse", "shard": "PIL", "verify": "xxhash"}  # of the others: torch


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_while_a_command_is_imported(start, name, tmp_path):
    process = start(*COMMANDS[name], AT_IMPORT=IMPORTED.get(name, "torch"))
    out, errors = process.communicate(timeout=LIMIT)
    assert (process.returncode, out, errors) == (INTERRUPTED, "", "interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["sitecustomize.py"]


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (
            "shard shards out --store keep --shard_size 2",
            "stopped; run it again to continue with what is complete\n",
        ),
        ("verify shards", "interrupted\n"),
    ],
)
def test_ctrl_c_while_processes_of_a_pool_begin(start, command, line, tmp_path):
    """It is their parent's, however early it comes."""
    (tmp_path / "shards").mkdir()
    for number in range(4):
        write_ours(tmp_path / "shards" / f"{number}.tar", 4, "png")
    process = start(*command.split(), "--processes", 2, AT_START="yes")
    out, errors = process.communicate(timeout=LIMIT)
    printed = [text for text in errors.splitlines(keepends=True) if not text.startswith("keys: ")]
    assert (process.returncode, out, printed) == (INTERRUPTED, "", [line])


HANGING = """
import threading
from dcgan_dist.data.system.pool import over_processes

def hang(job, tick):
    print(flush=True)
    threading.Event().wait()

if __name__ == "__main__":
    over_processes(hang, [1, 2], 2, lambda done: None)
"""


def test_a_second_ctrl_c_does_not_wait_for_a_job_that_hangs(tmp_path):
    (tmp_path / "hanging.py").write_text(HANGING)
    process = subprocess.Popen(
        [sys.executable, "hanging.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        process_group=0,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert (process.stdout.readline(), process.stdout.readline()) == ("\n", "\n")
    while children("spawn_main", process.pid):  # the first has it wait for its jobs
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    errors = process.communicate()[1]
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    assert of_group(process.pid) == []


@pytest.mark.parametrize("arguments", [["--help"], ["verify", "--help"], ["verify", "shards"], ["launch", "--help"]])
def test_a_reader_that_goes_away_ends_a_command_without_a_word(start, arguments, tmp_path):
    (tmp_path / "shards").mkdir()
    write_ours(tmp_path / "shards" / "0.tar", 4)
    process = start(*arguments)
    process.stdout.close()
    assert (process.stderr.read(), process.wait(timeout=LIMIT)) == ("", UNREAD)


def test_output_that_cannot_be_written_is_reported(start):
    with Path("/dev/full").open("w") as full:
        process = start("--help", stdout=full, PYTHONUNBUFFERED="")
        errors = process.communicate(timeout=LIMIT)[1]
    assert (process.returncode, errors) == (1, "error: standard output cannot be written (No space left on device)\n")


def test_ctrl_c_leaves_no_rank_of_the_doctor(start, tmp_path):
    process = start("doctor", "--only", "ranks", "--run_dir", tmp_path / "run")
    while not (ranks := children("front.main()", process.pid)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=120) == ("", "interrupted\n")
    assert process.returncode == INTERRUPTED
    assert psutil.wait_procs(ranks, timeout=60)[1] == []


def test_variables_of_ranks_silence_no_other_command(start):
    process = start("verify", RANK="1", LOCAL_RANK="1", WORLD_SIZE="x")
    assert process.communicate(timeout=120)[1].startswith("error: SHARDS is missing")


@pytest.mark.usefixtures("as_before")
def test_an_interrupt_may_hold_the_line(capsys):
    def act():
        raise KeyboardInterrupt("half of it is kept")

    assert run_and_report(act) == INTERRUPTED
    assert capsys.readouterr().err == "half of it is kept\n"
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # the program ends; another Ctrl-C changes nothing


def test_a_connection_that_breaks_is_no_reader_that_goes_away(capsys):
    def act():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert run_and_report(act) == 1
    assert capsys.readouterr().err == "error: Broken pipe\n"
