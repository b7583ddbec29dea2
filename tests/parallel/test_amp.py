"""Reduced precision, and numbers that are not finite, on several ranks."""

import math
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from support.ranks import run_ranks
from support.recording import begin, deviations, metrics, options, record_training
from torch.nn.functional import softplus

from dcgan_dist.errors import UserError
from dcgan_dist.gan.losses import LOSSES
from dcgan_dist.gan.step import discriminator_step, generate, generator_step
from dcgan_dist.run.session import Session
from dcgan_dist.train import train

pytestmark = pytest.mark.dist

WARM_UP = 6  # iterations in which the scales of such small networks come down to where they stay
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def dtypes(given: list[str], world_size: int) -> dict[str, str]:
    """Types at work in an iteration."""
    session = begin(given, world_size)
    seen: dict[str, str] = {}

    def note(name: str):
        return lambda module, args, result: seen.update(
            {f"{name} in": str(args[0].dtype), f"{name} out": str(result.dtype)}
        )

    session.state.netg.layers[0].register_forward_hook(note("G's convolution"))
    session.state.netd.layers[2].register_forward_hook(note("D's convolution"))
    session.state.netd.layers[3].register_forward_hook(note("D's BatchNorm"))
    iterate(session)
    for name, network in (("G", session.state.netg), ("D", session.state.netd)):
        kinds = {str(t.dtype) for p in network.parameters() if p.grad is not None for t in (p, p.grad)}
        kinds |= {str(buffer.dtype) for buffer in network.buffers() if buffer.is_floating_point()}
        seen[f"{name}'s weights, gradients and statistics"] = " ".join(sorted(kinds))
    return seen


def iterate(session: Session) -> dict[str, float]:
    real, noise = next(session.inputs())
    fake = generate(session.engine, noise, g_due=True)
    seen = discriminator_step(session.config, session.state, session.engine, real, fake, noise)
    seen |= generator_step(session.config, session.state, session.engine, fake, noise)
    session.state.images += session.config.batch_size
    return {name: float(value.mean()) for name, value in seen.items()}


@pytest.mark.parametrize("precision", HALF)
def test_forward_pass_is_half_and_everything_kept_is_single(precision, shards, tmp_path):
    half, single = str(HALF[precision]), "torch.float32"
    for found in run_ranks(2, dtypes, options(shards, tmp_path / "run", f"--precision {precision}"), 2):
        assert found == {
            "G's convolution in": single, "G's convolution out": half,
            "D's convolution in": half, "D's convolution out": half,
            "D's BatchNorm in": half, "D's BatchNorm out": half,
            "G's weights, gradients and statistics": single,
            "D's weights, gradients and statistics": single,
        }  # fmt: skip


def first_gradients(given: list[str], world_size: int) -> dict[str, np.ndarray]:
    """Of both networks, all parameters in a row."""
    session = begin(given, world_size)
    for scaler in (session.state.scaler_g, session.state.scaler_d):
        if scaler.is_enabled():  # as it is after the first few iterations, which find the scale
            scaler.load_state_dict(scaler.state_dict() | {"scale": 1024.0})
    iterate(session)
    networks = {"g": session.state.netg, "d": session.state.netd}
    return {
        name: torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).numpy()
        for name, network in networks.items()
    }


@pytest.mark.parametrize(("precision", "error"), [("bf16", 0.25), ("fp16", 0.15)])
def test_first_gradients_are_those_of_float32(precision, error, shards, tmp_path):
    """On one rank and on two, but for the units of (leaky) ReLU that rounding pushes over their kink."""
    (single,) = run_ranks(1, first_gradients, options(shards, tmp_path / "single", "--precision fp32"), 1)
    for world_size in (1, 2):
        given = options(shards, tmp_path / str(world_size), f"--precision {precision}")
        for found in run_ranks(world_size, first_gradients, given, world_size):
            assert max(deviations(found, single).values()) < error


@pytest.mark.parametrize("precision", HALF)
def test_half_precision_trains(precision, shards, tmp_path):
    """Twenty iterations end in numbers like float32's; the ranks agree to the bit."""
    run_ranks(1, record_training, options(shards, tmp_path / "single", "--precision fp32", iterations=20), 1)
    given = options(shards, tmp_path / "half", f"--precision {precision}", iterations=20)
    results = run_ranks(2, record_training, given, 2)
    assert len({digest for _, digest in results}) == 1
    final = {name: value for name, value in results[0][0].items() if name.startswith("netg_ema/")}
    assert {str(value.dtype) for name, value in final.items() if "num_batches" not in name} == {"float32"}
    ours, wanted = metrics(tmp_path / "half")[-1], metrics(tmp_path / "single")[-1]
    assert all(math.isfinite(value) for value in ours.values())
    for name in ("loss/d", "loss/g", "d/real", "d/fake"):
        assert ours[name] == pytest.approx(wanted[name], rel=0.1)


Facts = dict[str, Any]


def facts(session: Session) -> Facts:
    found: Facts = {}
    state = session.state
    for name, network, optimizer, scaler in (
        ("g", state.netg, state.opt_g, state.scaler_g),
        ("d", state.netd, state.opt_d, state.scaler_d),
    ):
        found[f"{name} weights"] = repr([p.detach().double().sum().item() for p in network.parameters()])
        found[f"{name} steps"] = max(float(slots["step"]) for slots in optimizer.state.values())
        found[f"{name} scale"] = scaler.get_scale()
    return found


def spoil(given: list[str], world_size: int, network: str, rank: int) -> list[Facts]:
    """What is known before an iteration in which a gradient is inf on one rank, after it, and after another."""
    session = begin(given, world_size)
    victim = {"g": session.state.netg, "d": session.state.netd}[network]
    parameter = next(victim.parameters())
    for _ in range(WARM_UP):
        iterate(session)
    found = [facts(session)]
    victim.requires_grad_(True)
    # before DDP's average, where an overflow in this rank's images would come
    handle = parameter.register_hook(lambda gradient: gradient * (math.inf if session.world.rank == rank else 1))
    iterate(session)
    handle.remove()
    found.append(facts(session))
    iterate(session)
    return [*found, facts(session)]


@pytest.mark.parametrize(("network", "other"), [("d", "g"), ("g", "d")])
@pytest.mark.parametrize("changes", ["", "--optimizer.g_clip 1 --optimizer.d_clip 1"], ids=["plain", "clipped"])
def test_overflow_skips_one_network_on_all_ranks(network, other, changes, shards, tmp_path):
    given = options(shards, tmp_path / "run", f"--precision fp16 {changes}")
    first, second = run_ranks(2, spoil, given, 2, network, 1)
    assert first == second
    before, spoilt, after = first
    assert spoilt[f"{network} scale"] == before[f"{network} scale"] / 2
    assert spoilt[f"{network} weights"] == before[f"{network} weights"]
    assert spoilt[f"{network} steps"] == before[f"{network} steps"] > 0
    assert spoilt[f"{other} scale"] == before[f"{other} scale"]
    assert spoilt[f"{other} weights"] != before[f"{other} weights"]
    assert spoilt[f"{other} steps"] == before[f"{other} steps"] + 1
    for name in "gd":
        assert after[f"{name} weights"] != spoilt[f"{name} weights"]
        assert after[f"{name} scale"] == spoilt[f"{name} scale"]


def diverge(given: list[str], world_size: int) -> str:
    session = begin(given, world_size)
    loss = LOSSES[session.config.loss.name]
    if session.world.rank == 1:
        loss = replace(loss, d_fake=lambda logits: softplus(logits) * math.nan)
    with mock.patch.dict(LOSSES, {session.config.loss.name: loss}), pytest.raises(UserError) as caught:
        train(session)
    assert caught.value.on_all_ranks
    return str(caught.value)


def test_divergence_on_one_rank_ends_the_run_on_all(shards, tmp_path):
    first, second = run_ranks(2, diverge, options(shards, tmp_path / "run", "--precision fp32"), 2)
    assert first == second
    assert first.startswith(
        "training has diverged: loss/d: 6 of 6 numbers are not finite on rank 1 in iteration 0, images 0 to 12, "
        "found at 24; there is no checkpoint yet: "
    )
