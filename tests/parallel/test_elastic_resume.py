"""A run that is stopped or killed goes on by the same command on any number of ranks: real processes, real command."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import chain
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors.numpy
from support.ranks import QUIET, run_ranks
from support.recording import begin, deviations, metrics, options
from support.shards import key_of
from support.waiting import LIMIT, until

from dcgan_dist.data.corpus import Corpus
from dcgan_dist.train import main

pytestmark = [pytest.mark.dist, pytest.mark.slow]

# 36 is no multiple of the 24 images between two reports: the sums of a report outlive a stop, too
STOP, SAVE = 36, "--checkpoint.every 36"


def final_state(run_dir: Path) -> dict[str, np.ndarray]:
    """Every tensor of the newest checkpoint: networks, average, optimisers, sums of the next report."""
    folder = run_dir / "checkpoints" / (run_dir / "checkpoints" / "latest").read_text()
    files = sorted(folder.glob("*.safetensors"))
    assert {file.stem for file in files} >= {"netg", "netd", "netg_ema", "optimizer_g", "optimizer_d"}
    return {
        f"{file.stem}/{name}": value
        for file in files
        for name, value in safetensors.numpy.load(file.read_bytes()).items()
    }


def assert_same_bits(ours: Path, theirs: Path) -> None:
    found, wanted = final_state(ours), final_state(theirs)
    assert found.keys() == wanted.keys()
    assert [name for name, value in wanted.items() if found[name].tobytes() != value.tobytes()] == []
    assert metrics(ours) == metrics(theirs)


def assert_equal_in_float64(ours: Path, theirs: Path) -> None:
    worst = max((deviation, name) for name, deviation in deviations(final_state(ours), final_state(theirs)).items())
    assert worst[0] < 1e-9, worst
    for found, wanted in zip(metrics(ours), metrics(theirs), strict=True):
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def train_on(world_size: int, given: list[str]) -> None:
    assert run_ranks(world_size, main, given) == [0] * world_size


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def straight(shards, folder):
    """Number of ranks -> the folder of a run that nothing disturbed."""
    for world_size in (1, 2):
        train_on(world_size, options(shards, folder / f"straight{world_size}", SAVE))
    return {world_size: folder / f"straight{world_size}" for world_size in (1, 2)}


@pytest.fixture(scope="module")
def stopped(shards, folder):
    """The folder of a run on two ranks that was meant to be shorter."""
    train_on(2, options(shards, folder / "stopped", f"{SAVE} --images {STOP}"))
    return folder / "stopped"


@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 3)])
def test_other_changes_of_the_number_of_ranks(before, after, straight, shards, tmp_path):
    run = tmp_path / "run"
    train_on(before, options(shards, run, f"{SAVE} --images {STOP}"))
    train_on(after, options(shards, run, SAVE))
    assert_equal_in_float64(run, straight[1])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_two_ranks_go_on_as_any_number(world_size, straight, stopped, shards, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    train_on(world_size, options(shards, tmp_path / "run", SAVE))
    assert_equal_in_float64(tmp_path / "run", straight[1])
    if world_size == 2:
        assert_same_bits(tmp_path / "run", straight[2])


def next_keys(given: list[str], world_size: int, batches: int) -> list[str]:
    """Shard and key of the images of this rank's n-th batch from here."""
    session = begin(given, world_size)
    assert isinstance(session.data, Corpus)
    stream = session.reader.batches(session.state.images, session.split)
    samples = [next(stream).rows.samples.tolist() for _ in range(batches)]
    return [key_of(session.data, sample) for sample in samples[-1]]


@pytest.mark.parametrize("world_size", [1, 3])
def test_next_images_after_a_stop(world_size, stopped, shards, tmp_path):
    (wanted,) = run_ranks(1, next_keys, options(shards, tmp_path / "fresh"), 1, STOP // 12 + 1)
    shutil.copytree(stopped, tmp_path / "run")
    shares = run_ranks(world_size, next_keys, options(shards, tmp_path / "run", SAVE), world_size, 1)
    assert list(chain.from_iterable(shares)) == wanted
    assert len(set(wanted)) > 1


def main_until_killed(given: list[str], victims: list[int], checkpoints: Path, delay: float) -> int:
    """The command; SIGKILL comes `delay` seconds after the first checkpoint, and nothing can be put in order."""

    def kill() -> None:
        while not (checkpoints / "latest").exists():
            time.sleep(0.001)
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)

    if int(os.environ["RANK"]) in victims:
        threading.Thread(target=kill, daemon=True).start()
    return main(given)


LENGTH = 480
LONG = f"--images {LENGTH} --checkpoint.every 36 --checkpoint.keep 2"


def newest(run_dir: Path) -> int:
    return int((run_dir / "checkpoints" / "latest").read_text())


@pytest.fixture(scope="module")
def undisturbed(shards, folder):
    train_on(2, options(shards, folder / "undisturbed", LONG))
    return folder / "undisturbed"


@pytest.mark.parametrize(("seed", "victims"), [(2, [1]), (3, [0, 1])])
def test_kill_at_a_random_moment(seed, victims, undisturbed, shards, tmp_path):
    """Of one rank or of both: the same command ends with the same bits, whatever was being done or written."""
    given = options(shards, tmp_path / "run", LONG)
    delay = random.Random(seed).uniform(0, 0.4)
    with pytest.raises(AssertionError, match="died without a word"):
        run_ranks(2, main_until_killed, given, victims, tmp_path / "run" / "checkpoints", delay)
    assert newest(tmp_path / "run") < LENGTH
    train_on(2, given)
    assert_same_bits(tmp_path / "run", undisturbed)


def torchrun(world_size: int, given: list[str], home: Path) -> subprocess.Popen[bytes]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
    variables = os.environ | QUIET | {"XDG_CACHE_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([*launcher, "-m", "dcgan_dist.train", *given], env=variables, start_new_session=True)


def end(launcher: subprocess.Popen[bytes]) -> None:
    """Kills the launcher and its ranks, which are process groups of their own."""
    try:
        processes = psutil.Process(launcher.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        processes = []
    launcher.kill()
    for process in processes:
        process.kill()
    launcher.wait()


def test_torchrun_killed_and_started_again(undisturbed, shards, tmp_path):
    """The launcher and both ranks at once; then the very same command."""
    run = tmp_path / "run"
    given = options(shards, run, LONG)
    launcher = torchrun(2, given, tmp_path)
    try:
        until(lambda: launcher.poll() is not None or (run / "checkpoints" / "latest").exists())
        time.sleep(random.Random(4).uniform(0, 0.4))
        assert launcher.poll() is None
    finally:
        end(launcher)
    assert newest(run) < LENGTH
    again = torchrun(2, given, tmp_path)
    try:
        assert again.wait(LIMIT) == 0
    finally:
        end(again)
    assert_same_bits(run, undisturbed)
