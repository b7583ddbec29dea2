"""The launcher alone, with ranks that are a few lines of Python: what they hear, when it ends, with which code."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
from support.waiting import LIMIT

from dcgan_dist.data.system.workers import SENT_TO_ALL
from dcgan_dist.errors import UsageError
from dcgan_dist.parallel.launcher import Job, run
from dcgan_dist.parallel.variables import MARK

LAUNCHER = """
import json, os, sys
from dcgan_dist.parallel import launcher
launcher.GRACE, launcher.KILL_AFTER, launcher.TICK = json.loads(sys.argv[1])
launcher._store = lambda _: None  # which takes seconds, and whose place is taken by pipes here
job = launcher.Job(here=2, port=launcher.free_port())
sys.exit(launcher.run([sys.executable, "-c", sys.argv[2]], job, os.environ))
"""
# each rank says a word when it has begun, in one write, for all share standard output
RANK = """
import os, signal, subprocess, sys, time
rank = int(os.environ["RANK"])
say = lambda word: os.write(1, f"{rank} {word}\\n".encode())
"""
LISTEN = """
heard = []
numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
for number in numbers:
    signal.signal(number, lambda number, _: heard.append(number))
"""
WAIT = """
signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
while not heard:
    time.sleep(0.01)
time.sleep(0.3)  # a second one would come now
say(" ".join(signal.Signals(number).name for number in heard))
sys.exit(75)
"""


@pytest.fixture
def start():
    """Starts the launcher in a process group of its own; at the end nothing is left of it and its ranks."""
    started: list[subprocess.Popen[str]] = []

    def start(rank, *, grace=60.0, patience=60.0, tick=0.05, ignored=()):
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, json.dumps([grace, patience, tick]), textwrap.dedent(RANK + rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            process_group=0,
            preexec_fn=lambda: [signal.signal(number, signal.SIG_IGN) for number in ignored],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.communicate()


def words(process, count):
    """What so many lines of the ranks say, sorted."""
    return sorted(process.stdout.readline().rstrip("\n") for _ in range(count))


@pytest.mark.parametrize(
    ("codes", "code"), [((0, 0), 0), ((75, 75), 75), ((0, 75), 75), ((2, 2), 2), ((0, 1), 1), ((75, 3), 3)]
)
def test_the_exit_code_is_the_ranks(start, codes, code):
    process = start(f"sys.exit({codes}[rank])")
    out, errors = process.communicate(timeout=LIMIT)
    assert (process.returncode, out, errors) == (code, "", "")


def test_the_exit_code_is_the_ranks_where_ends_of_children_were_ignored(start):
    process = start("sys.exit((0, 3)[rank])", ignored=[signal.SIGCHLD])
    out, errors = process.communicate(timeout=LIMIT)
    assert (process.returncode, out, errors) == (3, "", "")


def test_a_rank_that_is_killed_is_named(start):
    process = start("os.kill(os.getpid(), signal.SIGKILL) if rank else sys.exit(1)")
    errors = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 1
    assert errors.startswith("error: rank 1 (process ")
    assert errors.endswith(") was ended by SIGKILL; perhaps out of memory (see dmesg)\n")


@pytest.mark.parametrize("number", sorted(SENT_TO_ALL))
@pytest.mark.parametrize("to_group", [False, True])
def test_a_signal_reaches_each_rank_once_and_the_launcher_waits(start, number, to_group):
    process = start(LISTEN + 'say("ready")\n' + WAIT)
    assert words(process, 2) == ["0 ready", "1 ready"]
    (os.killpg if to_group else os.kill)(process.pid, number)
    assert words(process, 2) == [f"{rank} {number.name}" for rank in (0, 1)]
    assert process.communicate(timeout=LIMIT) == ("", "")
    assert process.returncode == 75


def test_a_signal_that_comes_before_a_rank_can_handle_it_waits_there(start):
    process = start(f'say("begun")\nsys.stdin.read()\ntime.sleep(0.3)\n{LISTEN}{WAIT}')
    assert words(process, 2) == ["0 begun", "1 begun"]
    process.send_signal(signal.SIGTERM)
    assert words(process, 2) == ["0 SIGTERM", "1 SIGTERM"]
    assert process.wait(timeout=LIMIT) == 75


def test_nohup_is_obeyed(start):
    process = start(
        'say("deaf" if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else "hears")\n'
        + LISTEN.replace("signal.SIGHUP, ", "")
        + WAIT,
        ignored=[signal.SIGHUP],
    )
    assert words(process, 2) == ["0 deaf", "1 deaf"]
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    assert words(process, 2) == ["0 SIGINT", "1 SIGINT"]
    assert process.wait(timeout=LIMIT) == 75


def test_sigquit_ends_all_at_once(start):
    process = start('child = subprocess.Popen(["sleep", "1000"])\nsay(child.pid)\nchild.wait()')
    children = [psutil.Process(int(line.split()[1])) for line in words(process, 2)]
    process.send_signal(signal.SIGQUIT)
    assert process.communicate(timeout=LIMIT) == ("", "")
    assert process.returncode == 128 + signal.SIGQUIT
    assert psutil.wait_procs(children, timeout=LIMIT)[1] == []


def test_ctrl_z_halts_the_ranks_and_fg_wakes_them(start):
    process = start(LISTEN + "say(os.getpid())\n" + WAIT)
    ranks = [psutil.Process(int(line.split()[1])) for line in words(process, 2)]
    process.send_signal(signal.SIGTSTP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    while [rank.status() for rank in ranks] != [psutil.STATUS_STOPPED] * 2:  # else pytest's own limit ends it
        time.sleep(0.01)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    assert words(process, 2) == ["0 SIGINT", "1 SIGINT"]
    assert process.wait(timeout=LIMIT) == 75


def test_ranks_follow_one_that_failed(start):
    """First by themselves, then asked to, then by force."""
    process = start(f"if rank == 0: sys.exit(3)\n{LISTEN}{WAIT}", grace=0.3)
    assert words(process, 1) == ["1 SIGTERM"]
    assert process.communicate(timeout=LIMIT) == ("", "")
    assert process.returncode == 3
    process = start("if rank == 0: sys.exit(3)\ntime.sleep(1000)", grace=0.1, patience=0.3)
    errors = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 3
    assert errors == "error: rank 1 did not end within 0 s after another one failed: killed\n"


def test_no_rank_outlives_a_launcher_that_fails(start, tmp_path):
    process = start(f"time.sleep(1000)  # {tmp_path}", tick="no number")
    assert process.wait(timeout=LIMIT) == 1
    while [
        other for other in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(other.info["cmdline"] or ())
    ]:
        time.sleep(0.01)  # else pytest's own limit ends it


def test_a_port_that_is_taken_is_named(capsys):
    with socket.socket() as busy:
        busy.bind(("", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(
            UsageError, match=rf"^--main_process_port {port}: cannot be used \(Address already in use\)"
        ):
            run([sys.executable, "-c", ""], Job(here=2, port=port), os.environ)


def test_the_variables_of_a_rank():
    first, second = Job(machines=2, machine=1, here=2, address="host", port=7).environments({"RANK": "9", "X": "y"})
    place = {"MASTER_ADDR": "host", "MASTER_PORT": "7", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "X": "y"}
    for rank, environment in enumerate((first, second)):
        assert environment.items() >= (place | {"RANK": str(2 + rank), "LOCAL_RANK": str(rank)}).items()
        assert "OMP_NUM_THREADS" not in environment  # nobody asked
    alone = Job().environments({"RANK": "9", "WORLD_SIZE": "0", "PMI_SIZE": "2", "X": "y"})
    assert alone == [{"X": "y", MARK: str(os.getpid())}]
