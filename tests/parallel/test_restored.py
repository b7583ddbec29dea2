"""N iterations, kill -9 and M more equal N + M in one go, bit for bit, for every objective, precision and option with
state; and an attempt starts with exactly what the one before saved."""

import itertools
import json
import os
import signal
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support.ranks import run_ranks
from support.recording import begin, metrics, options
from support.training import TENSOR_FILES, before_each_iteration

from dcgan_dist import train as trainer
from dcgan_dist.config import Config
from dcgan_dist.config.groups import ModelConfig
from dcgan_dist.gan.losses import LOSSES
from dcgan_dist.gan.schedule import set_learning_rates
from dcgan_dist.gan.state import TrainState, create_state
from dcgan_dist.parallel.noise import NoiseSource
from dcgan_dist.parallel.precision import PRECISIONS
from dcgan_dist.run import wandb_folder
from dcgan_dist.run.saving import Saver
from dcgan_dist.run.session import Session

pytestmark = [pytest.mark.dist, pytest.mark.slow]

BATCH, SAVED, KILLED, LENGTH = 12, 36, 60, 96  # images; 36 lies between two reports
COMMON = f"--images {LENGTH} --checkpoint.every {SAVED}"
NEEDS = {"wasserstein": "--loss.gp_weight 10 --model.d_norm layer"}
PAIRS = [  # every loss in one precision, and every precision with one loss: a loss knows nothing of the precision
    *(("non_saturating", precision) for precision in PRECISIONS),
    *zip([loss for loss in LOSSES if loss != "non_saturating"], itertools.cycle(PRECISIONS)),
]
OBJECTIVES = {
    f"{loss} {precision}": f"--loss.name {loss} --precision {precision} {NEEDS.get(loss, '')}"
    for loss, precision in PAIRS
}
OPTIONS = {
    "r1": "--loss.r1_gamma 1 --model.d_norm none --loss.label_smoothing 0.1 --precision fp32",
    "spectral norm": "--model.spectral_norm --loss.name hinge --precision fp32",
    "augmented, accumulated, updates left out": "--augment color translation cutout --accumulate 2 "
    "--optimizer.d_every 2 --optimizer.g_every 3 --data.hflip --precision fp32",
    "learning rates that change": "--optimizer.warmup_images 60 --optimizer.decay cosine --optimizer.g_clip 0.1 "
    "--model.latent uniform --model.output sigmoid --ema.half_life 20 --precision fp32",
    "signs of collapse": f"--collapse.after 0 --collapse.pixel_std 1 --log.every {BATCH} --precision fp32",
}


def main_until_killed(given: list[str]) -> int:
    """The command; SIGKILL comes when the first checkpoint is two iterations old and its thread is done."""

    def kill(attempt: Session) -> None:
        if attempt.state.images == KILLED:
            attempt.saver.wait()
            os.kill(os.getpid(), signal.SIGKILL)

    before_each_iteration(kill)
    return trainer.main(given)


def learnt(run: Path) -> list[dict[str, float]]:
    """Of the reports, what does not tell of this attempt's reading."""
    return [{name: value for name, value in row.items() if not name.startswith("data/")} for row in metrics(run)]


def numbers(path: Path) -> dict[str, Any]:
    """state.json without the options, which have the run's folder, and the time, which no two runs take alike."""
    state = json.loads((path / "state.json").read_text())
    return {name: value for name, value in state.items() if name not in ("config", "run_seconds")}


def assert_same_end(ours: Path, theirs: Path) -> None:
    ends = [run / "checkpoints" / f"{LENGTH:09}" for run in (ours, theirs)]
    found, wanted = ({path.name: path.read_bytes() for path in end.glob("*.safetensors")} for end in ends)
    assert set(wanted) == {f"{name}.safetensors" for name in TENSOR_FILES}
    assert found == wanted
    assert numbers(ends[0]) == numbers(ends[1])
    assert learnt(ours) == learnt(theirs)


@pytest.mark.parametrize("variant", [*OBJECTIVES, *OPTIONS])
def test_killed_and_gone_on_is_the_same_as_straight(variant, shards, tmp_path):
    straight, killed = (
        options(shards, tmp_path / name, f"{(OBJECTIVES | OPTIONS)[variant]} {COMMON}")
        for name in ("straight", "killed")
    )
    assert run_ranks(1, trainer.main, straight) == [0]
    with pytest.raises(AssertionError, match="rank 0 of 1 died without a word"):
        run_ranks(1, main_until_killed, killed)
    assert (tmp_path / "killed" / "checkpoints" / "latest").read_text() == f"{SAVED:09}"
    assert run_ranks(1, trainer.main, killed) == [0]
    assert_same_end(tmp_path / "killed", tmp_path / "straight")
    kept = numbers(tmp_path / "killed" / "checkpoints" / f"{LENGTH:09}")
    assert bool(kept["scaler_g"]) == ("fp16" in variant)
    assert kept["signs"].get("health/pixel_std") == ([LENGTH // BATCH, 0] if "signs" in variant else None)


ALL = (
    "--precision fp16 --loss.name hinge --loss.gp_weight 1 --model.d_norm layer --model.spectral_norm --data.hflip "
    "--augment color translation cutout --accumulate 2 --optimizer.warmup_images 60 --optimizer.decay linear "
    "--divergence.policy rollback --divergence.lr_factor 0.5 --collapse.after 0 --collapse.pixel_std 1"
)


def snapshot(attempt: Session, run_seconds: float) -> dict[str, Any]:
    """All that an iteration, a report or a checkpoint depends on, at this point of the run, as plain values."""
    state, weights = attempt.state, attempt.arithmetic.weights
    found: dict[str, Any] = {}
    for file, part in (state.tensors() | {"stats": attempt.stats.state_dict()}).items():
        for name, value in part.items():
            found[f"{file}/{name}"] = (str(value.dtype), value.stride(), value.contiguous().numpy().tobytes())
    found |= {f"number/{name}": json.dumps(value) for name, value in state.numbers().items()}
    set_learning_rates(state, attempt.config)
    for name, optimizer in (("g", state.opt_g), ("d", state.opt_d)):
        (group,) = optimizer.param_groups
        found[f"optimizer/{name}"] = {key: value for key, value in group.items() if key != "params"}
    noise = NoiseSource(attempt.config, attempt.split, attempt.world.device, weights, state.rollbacks)
    for number, each in enumerate(noise.at(state.images)):
        found |= {f"noise/{number}/{name}": value.numpy().tobytes() for name, value in vars(each).items()}
    batches = attempt.reader.batches(state.images, attempt.split)
    batch = next(batches)
    found |= {name: getattr(batch, name).numpy().tobytes() for name in ("images", "flips", "labels")}
    found["samples"] = batch.rows.samples.tolist()
    batches.close()
    found["modes"] = [network.training for network in (state.netg, state.netd, state.ema)]
    found["run_seconds"] = run_seconds
    found["wandb"] = wandb_folder.run_id(attempt.config.run_dir, print)[0] if attempt.world.main else ""
    return found


def saved_attempt(given: list[str], world_size: int) -> dict[str, Any]:
    """A training that was taken back once, up to the checkpoint; what it held there."""
    attempt, snapshots, seconds = begin(given, world_size), [], []
    attempt.state.rollbacks, really_save, really_write = 1, attempt.save, Saver.save

    def write(saver: Saver, images: int, tensors: Any, described: dict[str, Any], *more: Any) -> None:
        seconds.append(described["run_seconds"])
        really_write(saver, images, tensors, described, *more)

    def save(anyway: bool = False) -> None:
        really_save(anyway)
        snapshots.append(snapshot(attempt, attempt.world.from_main(lambda: seconds[-1])))

    attempt.save = save
    with mock.patch.object(Saver, "save", write):
        assert trainer.train(attempt)
    attempt.finish(0, 75)
    return snapshots[-1]


def restored_attempt(given: list[str], world_size: int) -> dict[str, Any]:
    """What the next attempt holds before its first iteration."""
    attempt = begin(given, world_size)
    found = snapshot(attempt, attempt.earlier)
    attempt.abandon(Exception("the test ends"))
    return found


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_attempt_begins_with_all_that_the_one_before_saved(world_size, shards, tmp_path):
    given = options(shards, tmp_path / "run", f"{ALL} --images {SAVED}")
    before = run_ranks(world_size, saved_attempt, given, world_size)
    after = run_ranks(world_size, restored_attempt, given, world_size)
    for saved, restored in zip(before, after, strict=True):
        assert saved.keys() == restored.keys()
        assert [name for name, value in saved.items() if restored[name] != value] == []
    main = before[0]
    assert main["number/rollbacks"] == "1"
    assert json.loads(main["number/signs"])["health/pixel_std"] == [1, 0]
    assert main["number/images"] == str(SAVED)
    assert json.loads(main["number/scaler_d"])["_growth_tracker"] > 0
    assert main["run_seconds"] > 0
    assert any(name.startswith("stats/loss") for name in main)
    assert any(name.startswith("noise/1/augment_g") for name in main)


def spoil_network(network: torch.nn.Module) -> None:
    with torch.no_grad():
        for value in [*network.parameters(), *network.buffers()]:
            value.add_(1)


def spoil_optimizer(optimizer: torch.optim.Adam) -> None:
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def spoil_scaler(scaler: Any) -> None:
    scaler.scale(torch.ones(()))
    scaler.update(new_scale=scaler.get_scale() / 4)


# field of the state -> something else in it, and what it holds as plain data
FIELDS = {
    **dict.fromkeys(("netg", "netd", "ema"), (spoil_network, lambda network: list(network.state_dict().values()))),
    **dict.fromkeys(
        ("opt_g", "opt_d"),
        (spoil_optimizer, lambda adam: [v for p in adam.state_dict()["state"].values() for v in p.values()]),
    ),
    **dict.fromkeys(("scaler_g", "scaler_d"), (spoil_scaler, lambda scaler: scaler.state_dict())),
    **dict.fromkeys(("images", "iteration", "rollbacks"), (lambda number: number + 5, lambda number: number)),
    "signs": (lambda _: {"health/ms_ssim": [2, 24]}, lambda signs: signs),
}
EMPTY_AT_A_SAVE = {"detector_g", "detector_d"}  # they are looked at, and emptied, before it


def test_every_field_of_the_state_is_known_here():
    """A new one has to be saved and restored, or to be known not to outlive a save."""
    assert {item.name for item in fields(TrainState)} == FIELDS.keys() | EMPTY_AT_A_SAVE


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_is_in_the_checkpoint(name):
    config = Config(model=ModelConfig(image_size=32, nz=2, ngf=2, ndf=2))
    states = [create_state(config, torch.device("cpu"), torch.float32, scaled=True) for _ in range(2)]
    spoil, view = FIELDS[name]
    changed = spoil(getattr(states[0], name))
    if changed is not None:
        setattr(states[0], name, changed)
    assert not alike(*(view(getattr(state, name)) for state in states))
    states[1].load(states[0].tensors(), json.loads(json.dumps(states[0].numbers())))
    assert alike(*(view(getattr(state, name)) for state in states))


def alike(ours: Any, theirs: Any) -> bool:
    if not isinstance(ours, list):
        return ours == theirs
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))
