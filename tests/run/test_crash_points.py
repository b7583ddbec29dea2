"""A process that `kill -9` ends at any moment of a save leaves a run that goes on."""

import itertools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ranks import run_ranks
from support.training import TENSOR_FILES

from dcgan_dist.config.run_groups import CheckpointConfig
from dcgan_dist.run import checkpoint
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.lease import Lease
from dcgan_dist.run.saving import Saver

OPTIONS = CheckpointConfig(keep=2)
CHANGES: tuple[tuple[Any, str], ...] = (
    (Path, "mkdir"), (Path, "open"), (os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "unlink"),
    (shutil, "rmtree"),
)  # fmt: skip


def state(images: int) -> tuple[checkpoint.Tensors, dict[str, Any]]:
    tensors = {
        name: {"weight": torch.full((3, 2), images + number), "step": torch.tensor(images)}
        for number, name in enumerate(TENSOR_FILES)
    }
    return tensors, {"images": images, "config": {"seed": images}}


def save(root: Path, images: int) -> list[str]:
    """By an attempt of its own; returns what was said."""
    said: list[str] = []
    lease = Lease(root, said.append)
    lease.take()
    saver = Saver(RunFolder(root), OPTIONS, lease, said.append, torch.device("cpu"))
    saver.save(images, *state(images))
    saver.finish()
    lease.release()
    return said


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A run whose next save has everything to do: a leftover, a damaged one of the same name, one too many."""
    root = tmp_path_factory.mktemp("before")
    checkpoints = root / "checkpoints"
    for images in (100, 200, 300):
        checkpoint.save(checkpoints, images, *state(images), keep=9)
    (checkpoints / "000000300" / "state.json").write_bytes(b"{}")
    (checkpoints / ".tmp-0-000000300").mkdir()
    (checkpoints / ".tmp-0-000000300" / "netg.safetensors").write_bytes(b"half")
    return root


@pytest.fixture
def root(before, tmp_path):
    return shutil.copytree(before, tmp_path / "run")


def equal(found: tuple[checkpoint.Tensors, dict[str, Any]], wanted: tuple[checkpoint.Tensors, dict[str, Any]]) -> bool:
    (ours, our_state), (theirs, their_state) = found, wanted
    assert ours.keys() == theirs.keys()
    same = [torch.equal(value, ours[file][name]) for file, part in theirs.items() for name, value in part.items()]
    return all(same) and our_state == their_state


def die_at(step: int) -> None:
    """Lets this process be killed before the step-th change of the disk, counted from 1."""
    steps = itertools.count(1)

    def counted(original: Callable) -> Callable:
        def call(*args, **settings):
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **settings)

        return call

    for owner, name in CHANGES:
        setattr(owner, name, counted(getattr(owner, name)))


def save_until_killed(before: Path, work: Path) -> int:
    """A save by a process that is killed before each change of the disk in turn; how many changes there are."""
    for step in itertools.count(1):
        root = shutil.copytree(before, work / str(step))
        child = os.fork()
        if not child:
            die_at(step)
            save(root, 300)
            os._exit(0)
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            return step - 1
    raise AssertionError


def half_written(root: Path) -> set[str]:
    return {path.name for path in (root / "checkpoints").iterdir() if path.name.startswith(".tmp-")}


@pytest.mark.dist
def test_a_save_that_is_killed_at_any_moment_is_followed_by_another(before, tmp_path):
    (steps,) = run_ranks(1, save_until_killed, before, tmp_path)
    published = [goes_on(tmp_path / str(step)) for step in range(1, steps + 1)]
    assert published == sorted(published)  # once it is there, it stays
    assert set(published) == {False, True}
    assert steps > 2 * len(TENSOR_FILES)  # each is opened and synced


def goes_on(root: Path) -> bool:
    """Whether the killed save had published its checkpoint; a run goes on from the newest intact one in any case."""
    said: list[str] = []
    newest = checkpoint.find_newest(root / "checkpoints", said.append)
    assert newest is not None
    images = int(newest.name)
    published = images == 300
    assert published or images == 200
    assert equal(checkpoint.load(newest), state(images))
    shown = checkpoint.all_checkpoints(root / "checkpoints")
    damaged = [path.name for path in shown if checkpoint.verify(path) is not None]
    assert set(damaged) <= (set() if published else {"000000300"})
    assert (root / "checkpoints" / "latest").read_text() in ("000000200", "000000300")

    assert save(root, images + 100) == []
    following = checkpoint.find_newest(root / "checkpoints", said.append)
    assert following is not None
    assert following.name == (root / "checkpoints" / "latest").read_text() == f"{images + 100:09d}"
    assert equal(checkpoint.load(following), state(images + 100))
    assert half_written(root) == set()
    intact = [path for path in checkpoint.all_checkpoints(root / "checkpoints") if checkpoint.verify(path) is None]
    assert len(intact) == OPTIONS.keep
    return published
