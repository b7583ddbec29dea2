"""Reduced precision, and numbers that are not finite, on several ranks."""

import math

import pytest
import torch
from support.ranks import run_ranks
from support.recording import begin, deviations, metrics, options, record_training

from dcgan_dist.errors import UserError
from dcgan_dist.gan.step import discriminator_step, generate, generator_step
from dcgan_dist.run.session import Session
from dcgan_dist.train import train

pytestmark = pytest.mark.dist

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def dtypes(given: list[str], world_size: int) -> dict[str, str]:
    """Types at work in an iteration."""
    session = begin(given, world_size)
    seen: dict[str, str] = {}

    def note(name: str):
        return lambda module, args, result: seen.update({f"{name} in": str(args[0].dtype), f"{name} out": str(result.dtype)})

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
    seen = discriminator_step(session.state, session.engine, session.game, real, fake, noise)
    seen |= generator_step(session.state, session.engine, session.game, fake, noise)
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


@pytest.mark.parametrize("precision", HALF)
def test_half_precision_trains(precision, shards, tmp_path):
    """The first gradients are those of float32 within the precision of the format, on one rank and on two; ten iterations
    end in numbers like float32's."""
    single = run_ranks(1, record_training, options(shards, tmp_path / "single", "--precision fp32"), 1)[0][0]
    wanted = metrics(tmp_path / "single")[-1]
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        results = run_ranks(world_size, record_training, options(shards, folder, f"--precision {precision}"), world_size)
        assert len({digest for _, digest in results}) == 1
        found = deviations(results[0][0], single)
        assert max(value for name, value in found.items() if name.startswith("0/grad_")) < 0.1
        final = metrics(folder)[-1]
        assert all(math.isfinite(value) for value in final.values())
        assert final["loss/d"] == pytest.approx(wanted["loss/d"], rel=0.05)
        assert final["loss/g"] == pytest.approx(wanted["loss/g"], rel=0.05)


Facts = dict[str, float | str]


def facts(session: Session) -> Facts:
    found: Facts = {}
    for name in "gd":
        state = session.state
        network, optimizer, scaler = {"g": (state.netg, state.opt_g, state.scaler_g), "d": (state.netd, state.opt_d, state.scaler_d)}[name]
        found[f"{name} weights"] = repr([p.detach().double().sum().item() for p in network.parameters()])
        found[f"{name} steps"] = max(float(slots["step"]) for slots in optimizer.state.values())
        found[f"{name} scale"] = scaler.get_scale()
    return found


def spoil(given: list[str], world_size: int, network: str, rank: int) -> list[Facts]:
    """What is known after two ordinary iterations, after one in which a gradient is inf on one rank, and after another."""
    session = begin(given, world_size)
    victim = {"g": session.state.netg, "d": session.state.netd}[network]
    parameter = next(victim.parameters())
    for _ in range(2):
        iterate(session)
    found = [facts(session)]
    if session.world.rank == rank:
        # before DDP's average, as an overflow in this rank's images would come
        handle = parameter.register_hook(lambda gradient: torch.full_like(gradient, math.inf))
        iterate(session)
        handle.remove()
    else:
        iterate(session)
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
    assert before[f"{network} scale"] == before[f"{other} scale"] == 65536
    assert spoilt[f"{network} scale"] == 32768
    assert spoilt[f"{network} weights"] == before[f"{network} weights"]
    assert spoilt[f"{network} steps"] == before[f"{network} steps"] == 2
    assert spoilt[f"{other} scale"] == 65536
    assert spoilt[f"{other} weights"] != before[f"{other} weights"]
    assert spoilt[f"{other} steps"] == 3
    for name in "gd":
        assert after[f"{name} weights"] != spoilt[f"{name} weights"]
        assert after[f"{name} scale"] == spoilt[f"{name} scale"]


def diverge(given: list[str], world_size: int) -> str:
    session = begin(given, world_size)
    if session.world.rank == 1:
        session.state.netd.register_forward_hook(lambda module, args, logits: logits * math.nan)
    with pytest.raises(UserError) as caught:
        train(session)
    assert caught.value.on_all_ranks
    return str(caught.value)


def test_divergence_on_one_rank_ends_the_run_on_all(shards, tmp_path):
    first, second = run_ranks(2, diverge, options(shards, tmp_path / "run", "--precision fp32"), 2)
    assert first == second
    assert first.startswith("loss/d and loss/g became nan within the 24 images before 24")
