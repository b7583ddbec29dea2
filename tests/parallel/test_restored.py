"""N iterations, kill -9 and M more are N + M in one go, bit for bit: for every game, every precision and every option
that keeps something; and what a life begins with is, item by item, what the life before it saved."""

import json
import os
import signal
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.ranks import run_ranks
from support.recording import begin, metrics, options

from dcgan_dist import train as trainer
from dcgan_dist.config import Config, ModelConfig
from dcgan_dist.gan.losses import LOSSES
from dcgan_dist.gan.state import TrainState, create_state
from dcgan_dist.parallel.noise import NoiseSource
from dcgan_dist.parallel.precision import PRECISIONS
from dcgan_dist.run import checkpoint, session
from dcgan_dist.run.session import Session
from dcgan_dist.run.stats import Stats

pytestmark = [pytest.mark.dist, pytest.mark.slow]

BATCH, SAVED, KILLED, LENGTH = 12, 36, 60, 96  # images; 36 lies between two reports
COMMON = f"--images {LENGTH} --checkpoint.every {SAVED}"
NEEDS = {"wasserstein": "--loss.gp_weight 10 --model.d_norm layer"}
GAMES = {
    f"{loss} {precision}": f"--loss.name {loss} --precision {precision} {NEEDS.get(loss, '')}"
    for loss in LOSSES
    for precision in PRECISIONS
}
OPTIONS = {
    "r1": "--loss.r1_gamma 1 --model.d_norm none --loss.label_smoothing 0.1 --precision fp32",
    "spectral norm": "--model.spectral_norm --loss.name hinge --precision fp32",
    "augmented, accumulated, updates left out": "--augment color translation cutout --accumulate 2 "
    "--optimizer.d_every 2 --optimizer.g_every 3 --data.hflip --precision fp32",
    "learning rates that change": "--optimizer.warmup_images 60 --optimizer.decay cosine --optimizer.g_clip 0.1 "
    "--model.latent uniform --model.output sigmoid --ema.half_life 20 --precision fp32",
    "rollback": "--divergence.policy rollback --divergence.lr_factor 0.5 --collapse.after 0 --collapse.pixel_std 9",
}


def main_until_killed(given: list[str]) -> int:
    """The command; SIGKILL comes when the first checkpoint is two iterations old and its thread is done."""
    really_set = Session.set_learning_rates

    def set_learning_rates(life: Session) -> None:
        if life.state.images == KILLED:
            life.saver.wait()
            os.kill(os.getpid(), signal.SIGKILL)
        really_set(life)

    Session.set_learning_rates = set_learning_rates
    return trainer.main(given)


def learnt(run: Path) -> list[dict[str, float]]:
    """Of the reports, what does not tell of this life's reading."""
    return [{name: value for name, value in row.items() if not name.startswith("data/")} for row in metrics(run)]


def numbers(path: Path) -> dict[str, Any]:
    """state.json without the options, which have the run's folder, and the time, which no two runs take alike."""
    state = json.loads((path / "state.json").read_text())
    return {name: value for name, value in state.items() if name not in ("config", "run_seconds")}


def assert_same_end(ours: Path, theirs: Path) -> None:
    ends = [run / "checkpoints" / f"{LENGTH:09}" for run in (ours, theirs)]
    found, wanted = ({path.name: path.read_bytes() for path in end.glob("*.safetensors")} for end in ends)
    assert set(wanted) == {f"{name}.safetensors" for name in checkpoint.TENSOR_FILES}
    assert found == wanted
    assert numbers(ends[0]) == numbers(ends[1])
    assert learnt(ours) == learnt(theirs)


@pytest.mark.parametrize("variant", [*GAMES, *OPTIONS])
def test_killed_and_gone_on_is_the_same_as_straight(variant, shards, tmp_path):
    straight, killed = (
        options(shards, tmp_path / name, f"{(GAMES | OPTIONS)[variant]} {COMMON}") for name in ("straight", "killed")
    )
    assert run_ranks(1, trainer.main, straight) == [0]
    with pytest.raises(AssertionError, match="rank 0 of 1 died without a word"):
        run_ranks(1, main_until_killed, killed)
    assert (tmp_path / "killed" / "checkpoints" / "latest").read_text() == f"{SAVED:09}"
    assert run_ranks(1, trainer.main, killed) == [0]
    assert_same_end(tmp_path / "killed", tmp_path / "straight")
    scaler = numbers(tmp_path / "killed" / "checkpoints" / f"{LENGTH:09}")["scaler_g"]
    assert bool(scaler) == ("fp16" in variant)
