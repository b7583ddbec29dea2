"""Signals to complete programs: while they import, and to the launcher of ranks, once and twice."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support.launching import ROOT, TINY, environment
from support.waiting import LIMIT, until

from dcgan_dist.run import signals

pytestmark = [pytest.mark.dist, pytest.mark.slow]

OPTIONS = [*map(str, TINY), "--wandb.mode", "disabled", "--log.every", "16", "--images", "1000000000"]
# Python runs this before anything else
SIGNALS_WHEN_TORCH_IS_IMPORTED = """
import os, sys

class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.meta_path.remove(self)
            for number in os.environ["NUMBERS"].split():
                os.kill(os.getpid(), int(number))

sys.meta_path.insert(0, Sender())
"""
CONSOLE_SCRIPT = "import sys; from dcgan_dist.__main__ import main; sys.exit(main())"


@pytest.fixture
def start():
    """Starts a command in a session of its own; at the end nothing is left of it and its children."""
    started, known = [], []

    def start(command, **variables):
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=environment(**variables),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start, known
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            known += psutil.Process(process.pid).children(recursive=True)
        process.kill()
    for process in known:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for process in started:
        process.communicate()


def test_signals_while_torch_is_imported(start, tmp_path):
    """To every way in: the run sets up, sees the request, has nothing to save, and leaves as documented."""
    begin, _ = start
    (tmp_path / "sitecustomize.py").write_text(SIGNALS_WHEN_TORCH_IS_IMPORTED)
    variables = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    everything = " ".join(str(int(number)) for number in (*signals.SIGNALS, signal.SIGINT))
    module, front = [sys.executable, "-m", "dcgan_dist.train"], [sys.executable, "-c", CONSOLE_SCRIPT, "train"]
    attempts = [
        begin([*module, *OPTIONS, "--run_dir", tmp_path / "module"], **variables, NUMBERS=everything),
        begin([*front, *OPTIONS, "--run_dir", tmp_path / "front"], **variables, NUMBERS=int(signal.SIGHUP)),
        begin([*module, *OPTIONS, "--dry_run"], **variables, NUMBERS=int(signal.SIGTERM)),
    ]
    errors = [attempt.communicate(timeout=LIMIT)[1] for attempt in attempts]
    # a dry run has nothing to save, and the script that asked for it must see that it was interrupted
    assert [attempt.returncode for attempt in attempts] == [75, 75, -signal.SIGTERM], errors
    assert errors == [signals.NOT_BEGUN.decode(), "", ""]
    assert (tmp_path / "module/PREEMPTED").read_text() == "0\nSIGTERM\n"
    assert (tmp_path / "front/PREEMPTED").read_text() == "0\nSIGHUP\n"
    for name in ("module", "front"):
        assert list((tmp_path / name).glob("checkpoints/*")) == []


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = [Path(sys.executable).parent / "accelerate", "launch", "--config_file", "accelerate_config.yaml"]
LAUNCHERS = {
    "torchrun, terminated twice": (TORCHRUN, [signal.SIGTERM, signal.SIGTERM], "SIGTERM", 2),
    # it has no handler for it, and dies
    "torchrun, killed by a signal of SLURM": (TORCHRUN, [signal.SIGUSR1], "its launcher ended", 2),
    "accelerate launch, one rank": (ACCELERATE, [signal.SIGTERM], "its launcher ended", 1),
}


def wait_for_a_report(run, launcher):
    file = run / "metrics.jsonl"
    until(lambda: launcher.poll() is not None or (file.exists() and file.read_text()))
    assert launcher.poll() is None, launcher.stderr.read()


def test_a_signal_to_the_launcher_stops_its_ranks_in_order(start, tmp_path):
    begin, known = start
    attempts = {}
    for number, (name, (command, *_)) in enumerate(LAUNCHERS.items()):
        run = tmp_path / str(number)
        attempts[name] = run, begin([*command, "-m", "dcgan_dist.train", *OPTIONS, "--run_dir", run], OMP_NUM_THREADS=1)
    for name, (run, launcher) in attempts.items():
        wait_for_a_report(run, launcher)
        ranks = psutil.Process(launcher.pid).children(recursive=True)
        known += ranks
        for number in LAUNCHERS[name][1]:
            os.kill(launcher.pid, number)
    psutil.wait_procs(known, timeout=LIMIT)
    for name, (run, launcher) in attempts.items():
        errors = launcher.communicate(timeout=LIMIT)[1]
        *_, reason, world_size = LAUNCHERS[name]
        assert (run / "PREEMPTED").exists(), f"{name}: {errors}"
        images, why = (run / "PREEMPTED").read_text().splitlines()
        assert why == reason, name
        assert int(images) == int((run / "checkpoints/latest").read_text()) > 0
        assert json.loads((run / "environment.json").read_text())["world_size"] == world_size


OURS = {  # command, signal, why it stopped, exit code
    "Ctrl-C": ([ROOT / "launch/cpu.sh", "2"], signal.SIGINT, "SIGINT", 75),
    "one rank": ([sys.executable, "-m", "dcgan_dist", "launch", "--cpu"], signal.SIGHUP, "SIGHUP", 75),
    "killed": ([ROOT / "launch/cpu.sh", "2"], signal.SIGKILL, "its launcher ended", -signal.SIGKILL),
}


def test_our_launcher_ends_with_its_ranks_and_their_code(start, tmp_path):
    """And with not a line on standard error; a signal to its process group, as by a terminal, is one to each rank."""
    begin, known = start
    attempts = {
        name: (tmp_path / name, begin([*command, *OPTIONS, "--run_dir", tmp_path / name]))
        for name, (command, *_) in OURS.items()
    }
    for name, (run, launcher) in attempts.items():
        wait_for_a_report(run, launcher)
        ranks = psutil.Process(launcher.pid).children(recursive=True)
        assert len(ranks) == 2 * (name != "one rank")
        known += ranks
        _, number, reason, code = OURS[name]
        os.killpg(launcher.pid, number)
        launcher.wait(timeout=LIMIT)
        left = [rank for rank in ranks if rank.is_running()]
        assert not left or number == signal.SIGKILL
        psutil.wait_procs(left, timeout=LIMIT)
        assert (launcher.communicate(timeout=LIMIT)[1], launcher.returncode) == ("", code), name
        assert (run / "PREEMPTED").read_text().split("\n")[1] == reason
        assert int((run / "checkpoints/latest").read_text()) > 0
