"""A process that ends at any point of a save, as by `kill -9`, leaves a run that goes on."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ranks import run_ranks

from dcgan_dist.config import CheckpointConfig
from dcgan_dist.run import checkpoint
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.lease import Lease
from dcgan_dist.run.saving import Saver

OPTIONS = CheckpointConfig(keep=2)


def state(images: int) -> tuple[checkpoint.Tensors, dict[str, Any]]:
    tensors = {
        name: {"weight": torch.full((3, 2), images + number), "step": torch.tensor(images)}
        for number, name in enumerate(checkpoint.TENSOR_FILES)
    }
    return tensors, {"images": images, "config": {"seed": images}}


def save(root: Path, images: int) -> list[str]:
    """By a life of its own; returns what was said."""
    said: list[str] = []
    lease = Lease(root, said.append)
    lease.take()
    saver = Saver(RunFolder(root), OPTIONS, lease, said.append)
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


def test_the_points_are_all_that_a_save_meets(root, monkeypatch):
    met: list[str] = []
    monkeypatch.setattr(checkpoint, "reach", met.append)
    save(root, 300)
    assert set(met) == set(checkpoint.POINTS)
    assert len(set(checkpoint.POINTS)) == len(checkpoint.POINTS)


def end_at(point: str, root: Path) -> None:
    """Saves, in a thread as a training does, and dies there."""

    def reach(met: str) -> None:
        if met == point:
            os._exit(9)

    checkpoint.reach = reach
    save(root, 300)


def half_written(root: Path) -> set[str]:
    return {path.name for path in (root / "checkpoints").iterdir() if path.name.startswith(".tmp-")}


@pytest.mark.dist
@pytest.mark.parametrize("point", checkpoint.POINTS)
def test_a_life_that_ends_there_is_followed_by_another(root, point):
    with pytest.raises(AssertionError, match="rank 0 of 1 died without a word"):
        run_ranks(1, end_at, point, root)
    said: list[str] = []
    newest = checkpoint.find_newest(root / "checkpoints", said.append)
    assert newest is not None
    images = int(newest.name)
    published = checkpoint.POINTS.index(point) >= checkpoint.POINTS.index("renamed")
    assert images == (300 if published else 200)
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
    whole = [path for path in checkpoint.all_checkpoints(root / "checkpoints") if checkpoint.verify(path) is None]
    assert len(whole) == OPTIONS.keep
