"""A number that is not finite on one rank of two: found by all, saved by none, and survived by going back."""

import contextlib
import hashlib
import io
import json
import math
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import rewrite_manifest
from support.ranks import run_ranks
from support.recording import metrics, options

from dcgan_dist import cli
from dcgan_dist import train as trainer
from dcgan_dist.data.order import Split
from dcgan_dist.errors import UserError
from dcgan_dist.gan import step as gan_step
from dcgan_dist.gan.losses import LOSSES
from dcgan_dist.parallel import agreement
from dcgan_dist.parallel.noise import NoiseSource
from dcgan_dist.run import checkpoint
from dcgan_dist.run.saving import Saver
from dcgan_dist.run.session import Session

pytestmark = pytest.mark.dist

BATCH, AT, SICK = 12, 5, 1  # images of an iteration; the iteration and the rank in which something goes wrong
BUFFER = "layers.1.running_var"  # of a BatchNorm; no gradient tells of it
CHECKPOINTS = f"--checkpoint.every {2 * BATCH} --checkpoint.keep 9 --precision fp32"
BACK = f"{CHECKPOINTS} --log.every {BATCH} --divergence.policy rollback --divergence.lr_factor 0.5"


def attempt(
    given: list[str], world_size: int, fault: str, last_rollback: int = 0, until: int = AT, stop: bool = False
) -> dict[str, Any]:
    """A training, by the command itself, in which a number is bad on the sick rank; what came of it on this rank.

    `fault`: "NETWORK KIND", or empty. It strikes in iterations AT to `until`, while there were no more than
    `last_rollback` rollbacks. `stop`: and there the sick rank is asked to stop.
    """
    found: dict[str, Any] = {"closed": []}
    _strike(fault, last_rollback, until, stop)
    agreement.ASK_EVERY = 0.0 if stop else agreement.ASK_EVERY  # asked in every iteration
    really_train = trainer.train

    def noting(session: Session) -> bool:
        assert session.world.size == world_size
        really_close = session.trackers.close

        def close(exit_code: int = 0) -> None:
            found["closed"].append(exit_code)
            really_close(exit_code)

        session.trackers.close = close
        try:
            return really_train(session)
        except UserError as error:
            found["error"] = str(error)
            raise
        finally:
            tensors = [tensor for file in session.state.tensors().values() for tensor in file.values()]
            found["finite"] = all(bool(tensor.isfinite().all()) for tensor in tensors)
            found["images"] = session.state.images

    trainer.train = noting
    with contextlib.redirect_stderr(io.StringIO()) as spoken:
        found["code"] = trainer.main(given)
    return found | {"spoken": spoken.getvalue()}


def _strike(fault: str, last_rollback: int, until: int, stop: bool) -> None:
    network, _, kind = fault.partition(" ")
    name = {"d": "discriminator_step", "g": "generator_step", "": "probe"}[network]
    module = gan_step if network else trainer
    really_step = getattr(module, name)

    def step(config, state, engine, *inputs):
        here = torch.distributed.get_rank() == SICK if torch.distributed.is_initialized() else True
        if not (network and here and AT <= state.iteration <= until and state.rollbacks <= last_rollback):
            return really_step(config, state, engine, *inputs)
        if stop:
            signal.raise_signal(signal.SIGTERM)
        if kind == "loss":
            function = {"d": "d_fake", "g": "g"}[network]
            loss = LOSSES[config.loss.name]
            well = getattr(loss, function)
            spoilt = replace(loss, **{function: lambda logits: well(logits) * _one_bad(logits)})
            with mock.patch.dict(LOSSES, {config.loss.name: spoilt}):
                return really_step(config, state, engine, *inputs)
        victim = {"d": state.netd, "g": state.netg}[network]
        if kind == "buffer":
            result = really_step(config, state, engine, *inputs)
            victim.get_buffer(BUFFER)[1] = math.nan
            return result
        victim.requires_grad_(True)
        parameter = dict(victim.named_parameters())["layers.0.weight"]
        # in front of DDP's average, where a bad number of this rank's own images would come from
        handle = parameter.register_hook(lambda gradient: gradient * float(kind))
        result = really_step(config, state, engine, *inputs)
        handle.remove()
        return result

    setattr(module, name, step)


def _one_bad(logits: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(len(logits)) == 2, math.nan, 1.0)


def digest(run_dir: Path) -> str:
    """Of all tensors of the newest checkpoint."""
    checkpoints = run_dir / "checkpoints"
    files = sorted((checkpoints / (checkpoints / "latest").read_text()).glob("*.safetensors"))
    assert len(files) == 6
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def numbers(path: Path) -> dict[str, Any]:
    return json.loads((path / "state.json").read_text())


def all_finite(run_dir: Path) -> bool:
    files = list(run_dir.glob("checkpoints/*/*.safetensors"))
    assert files
    return all(bool(tensor.isfinite().all()) for file in files for tensor in load_file(file).values())


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("d loss", "loss/d: 1 of 6 numbers are not finite, the others lie in [1."),
        ("g loss", "loss/g: 1 of 6 numbers are not finite, the others lie in [0."),
        ("d nan", "D: the gradient of layers.0.weight: its norm is nan (1 of "),
        ("g inf", "G: the gradient of layers.0.weight: its norm is inf (1 of "),
    ],
)
def test_all_ranks_stop_at_one_step_and_nothing_bad_is_kept(fault, what, shards, tmp_path):
    run_dir = tmp_path / "run"
    main, sick = run_ranks(2, attempt, options(shards, run_dir, CHECKPOINTS), 2, fault)
    assert main["error"] == sick["error"]
    assert main["error"].startswith(f"training has diverged: {what}")
    where = " on rank 1" if "loss" in fault else " numbers are not finite)"
    assert f"{where} in iteration 5, images 60 to 72, found at 72; the last checkpoint is 000000048: " in main["error"]
    assert "--divergence.policy rollback" in main["error"]
    assert main["spoken"] == f"error: {main['error']}\n"
    assert sick["spoken"] == ""
    assert [(one["code"], one["images"], one["closed"]) for one in (main, sick)] == [(1, 72, [1])] * 2
    assert main["finite"]  # weights, moments and the average of G, too, met nothing bad
    assert sick["finite"]
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["000000024", "000000048", "latest"]
    assert all_finite(run_dir)
    assert [record["images"] for record in metrics(run_dir)] == [24, 48, 72]  # the bad numbers are shown


def attempt_with_a_slow_disk(given: list[str]) -> dict[str, Any]:
    """A training that diverges while its second checkpoint is being written; this ends when somebody waits for it."""
    really_save, awaited = checkpoint.save, threading.Event()

    def save(folder, images, *rest):
        assert images < 48 or awaited.wait(600)
        return really_save(folder, images, *rest)

    def waiting(method):
        return lambda saver: awaited.set() or method(saver)

    patches = [mock.patch.object(Saver, name, waiting(getattr(Saver, name))) for name in ("wait", "close")]
    with mock.patch.object(checkpoint, "save", save), patches[0], patches[1]:
        return attempt(given, 2, "g loss")


def test_the_checkpoint_that_is_named_is_the_one_that_is_still_being_written(shards, tmp_path):
    for one in run_ranks(2, attempt_with_a_slow_disk, options(shards, tmp_path / "run", CHECKPOINTS)):
        assert "; the last checkpoint is 000000048: " in one["error"]


def resumed_by_hand(run_dir: Path, name: str, target: Path) -> None:
    """A run's folder with only this checkpoint, as it would be after a rollback to it."""
    path = target / "checkpoints" / name
    shutil.copytree(run_dir / "checkpoints" / name, path)
    shutil.copy(run_dir / "config.yaml", target)
    state = json.dumps(numbers(path) | {"rollbacks": 1}).encode()
    (path / "state.json").write_bytes(state)
    rewrite_manifest(path, lambda files: None)
    assert checkpoint.verify(path) is None


@pytest.fixture(scope="module")
def taken_back(shards, tmp_path_factory):
    """The folder of a run of ten iterations that went back once, and what its ranks say."""
    run_dir = tmp_path_factory.mktemp("back") / "run"
    return run_dir, run_ranks(2, attempt, options(shards, run_dir, BACK), 2, "g nan")


def test_a_run_that_was_taken_back_completes(taken_back):
    run_dir, attempts = taken_back
    assert [(one["code"], one["images"], one["closed"]) for one in attempts] == [(0, 120, [0])] * 2
    assert numbers(run_dir / "checkpoints" / "000000120")["rollbacks"] == 1
    assert numbers(run_dir / "checkpoints" / "000000048")["rollbacks"] == 0
    assert all_finite(run_dir)
    records = metrics(run_dir)
    # what was reported of the iterations behind the checkpoint is gone
    assert [(r["images"], r.get("health/rollbacks")) for r in records] == [
        (12, None), (24, None), (36, None), (48, None), (48, 1), (60, 1), (72, 1), (84, 1), (96, 1), (108, 1), (120, 1)
    ]  # fmt: skip
    assert records[4]["rollback_from"] == 72
    assert str(records[4]["rollback_reason"]).startswith("training has diverged: G: the gradient of layers.0.weight")
    assert [r.get("lr/g") for r in records] == [2e-4] * 4 + [None] + [1e-4] * 6


def test_noise_and_augmentation_are_others_after_each_rollback(tmp_path):
    config = cli.load(options("x", tmp_path, "--augment color --loss.gp_weight 1 --model.d_norm layer"))
    split = Split(batch=BATCH, micro_batches=1, rank=0, world_size=1)
    drawn = [NoiseSource(config, split, torch.device("cpu"), torch.float64, back).at(48)[0] for back in (0, 0, 1, 2)]
    for name in ("z", "mix", "augment_real", "augment_fake", "augment_g"):
        before, same, once, twice = (getattr(noise, name) for noise in drawn)
        assert torch.equal(before, same)
        for one, other in ((before, once), (before, twice), (once, twice)):
            assert (one == other).sum() == 0


def test_it_is_the_run_that_was_resumed_by_hand_with_the_new_key(taken_back, shards, tmp_path):
    run_dir, _ = taken_back
    by_hand, undisturbed = tmp_path / "by_hand", tmp_path / "undisturbed"
    for folder in (by_hand, undisturbed):
        resumed_by_hand(run_dir, "000000048", folder)
    shutil.rmtree(undisturbed / "checkpoints")
    shutil.copytree(run_dir / "checkpoints" / "000000048", undisturbed / "checkpoints" / "000000048")
    for folder in (by_hand, undisturbed):
        assert [one["code"] for one in run_ranks(2, attempt, options(shards, folder, BACK), 2, "")] == [0, 0]
    assert digest(by_hand) == digest(run_dir)
    assert digest(undisturbed) != digest(run_dir)
    assert metrics(by_hand) == metrics(run_dir)[-6:]


def test_it_is_the_run_that_was_stopped_after_going_back_and_went_on(taken_back, shards, tmp_path):
    run_dir, _ = taken_back
    for iterations in (8, 10):
        given = options(shards, tmp_path / "two", f"{BACK} --images {BATCH * iterations}")
        assert [one["code"] for one in run_ranks(2, attempt, given, 2, "g nan")] == [0, 0]
        assert numbers(tmp_path / "two" / "checkpoints" / f"{BATCH * iterations:09d}")["rollbacks"] == 1
    assert digest(tmp_path / "two") == digest(run_dir)
    assert metrics(tmp_path / "two") == metrics(run_dir)


def test_a_fault_behind_the_last_report_is_found_before_the_end(shards, tmp_path):
    given = options(shards, tmp_path / "run", f"{BACK} --log.every 1000 --checkpoint.every 1000 --images {6 * BATCH}")
    for one in run_ranks(2, attempt, given, 2, "d nan"):
        assert (one["code"], one["images"]) == (0, 6 * BATCH)
    assert numbers(tmp_path / "run" / "checkpoints" / "000000072")["rollbacks"] == 1
    assert all_finite(tmp_path / "run")


def test_a_buffer_that_is_bad_on_one_rank_is_found_and_replaced(shards, tmp_path):
    """No gradient tells of it, and only this rank has it."""
    given = options(shards, tmp_path / "stopped", CHECKPOINTS)
    for one in run_ranks(2, attempt, given, 2, "g buffer"):
        assert (one["code"], one["images"]) == (1, 72)
        assert one["error"].startswith(f"training has diverged: netg: {BUFFER}: 1 of 16 numbers are not finite, the ")
        assert "] on rank 1 at 72 images; the last checkpoint is 000000048: " in one["error"]
    assert all_finite(tmp_path / "stopped")
    given = options(shards, tmp_path / "back", BACK)
    assert [(one["code"], one["finite"]) for one in run_ranks(2, attempt, given, 2, "g buffer")] == [(0, True)] * 2
    assert numbers(tmp_path / "back" / "checkpoints" / "000000120")["rollbacks"] == 1


@pytest.mark.parametrize(("policy", "code"), [("stop", 1), ("rollback", 0)])
def test_a_stop_in_a_bad_iteration_keeps_nothing_bad(policy, code, shards, tmp_path):
    run_dir = tmp_path / "run"
    given = options(shards, run_dir, f"{BACK} --divergence.policy {policy} --log.every 1000")
    main, sick = run_ranks(2, attempt, given, 2, "d nan", 0, AT, True)
    assert (main["code"], main["images"]) == (sick["code"], sick["images"]) == (code, 72 if code else 48)
    assert (run_dir / "checkpoints/latest").read_text() == "000000048"
    assert all_finite(run_dir)
    preempted = run_dir / "PREEMPTED"
    assert (preempted.read_text() if preempted.exists() else "") == ("" if code else "48\nrank 1: SIGTERM\n")
    for one in run_ranks(2, attempt, given, 2, ""):
        assert (one["code"], one["images"]) == (0, 120)


def test_a_run_that_began_from_a_checkpoint_elsewhere_goes_back_to_it(taken_back, shards, tmp_path):
    """In its own folder, for the other one may be gone by then."""
    source, run_dir = taken_back[0] / "checkpoints" / "000000048", tmp_path / "run"
    given = options(shards, run_dir, f"{BACK} --checkpoint.every 1000 --resume.source {source}")
    for one in run_ranks(2, attempt, given, 2, "g nan"):
        assert (one["code"], one["images"]) == (0, 120)
    assert [path.name for path in checkpoint.all_checkpoints(run_dir / "checkpoints")] == ["000000048", "000000120"]
    assert numbers(run_dir / "checkpoints" / "000000120")["rollbacks"] == 1
    assert all_finite(run_dir)


def test_after_the_last_rollback_it_stops(shards, tmp_path):
    """It goes back to the very beginning where no other checkpoint was due."""
    given = options(shards, tmp_path / "run", f"{BACK} --checkpoint.every 1000 --divergence.most_rollbacks 2")
    main, sick = run_ranks(2, attempt, given, 2, "d loss", 9)
    assert main["error"] == sick["error"]
    assert (main["code"], sick["code"]) == (1, 1)
    assert "the last checkpoint is 000000000: " in main["error"]
    assert main["error"].endswith("rollbacks so far: 2")
    assert [r["health/rollbacks"] for r in metrics(tmp_path / "run")] == [1] + [2] * 7  # the first one is of image 0
    assert all_finite(tmp_path / "run")


def test_overflows_in_fp16_are_no_fault_unless_they_never_end(shards, tmp_path):
    given = options(shards, tmp_path / "some", f"{CHECKPOINTS} --precision fp16")
    assert [one["code"] for one in run_ranks(2, attempt, given, 2, "d inf", 0, AT + 1)] == [0, 0]
    shown = [str(record["grad_norm/d"]) for record in metrics(tmp_path / "some")]
    assert shown.count("Infinity") == 2  # in iterations 5 and 6
    given = options(shards, tmp_path / "all", "--precision fp16 --checkpoint.every 10000", iterations=60)
    (alone,) = run_ranks(1, attempt, given, 1, "d inf", 0, 1000)
    assert alone["code"] == 1
    assert "D: the gradient of layers.0.weight: its norm is inf" in alone["error"]
    assert 30 * BATCH < alone["images"] < 50 * BATCH  # from a scale of 2^16 to below 1e-4, halved each time
    assert not list((tmp_path / "all" / "checkpoints").iterdir())
