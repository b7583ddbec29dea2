"""How often the ranks talk in an iteration: no more than the algorithm needs."""

from collections import Counter

import pytest
import torch
from support.ranks import run_ranks
from support.recording import begin, options
from support.shards import write_ours
from torch.profiler import ProfilerActivity, profile

from dcgan_dist.gan.step import discriminator_step, generate, generator_step
from dcgan_dist.run.session import Session

pytestmark = pytest.mark.dist

G_NORMS, D_NORMS = 4, 3  # BatchNorm layers at 64 pixels
GRADIENTS = 2  # one bucket each for networks this small; they cannot be one, for G learns from the D that has learnt


def collectives(given: list[str], world_size: int) -> tuple[dict[str, int], bool]:
    """Collectives of the third iteration, by name; and whether D's gradients outlived G's step bit for bit."""
    session = begin(given, world_size)
    for _ in range(2):  # in its second forward pass DDP sorts its buckets anew, and tells the other ranks once
        iterate(session)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        untouched = iterate(session)
    names = [event.name.removeprefix("c10d::") for event in profiler.events() or [] if event.name.startswith("c10d::")]
    return dict(Counter(names)), untouched


def iterate(session: Session) -> bool:
    config, state, engine = session.config, session.state, session.engine
    real, noise = next(session.inputs())
    fake = generate(engine, noise, g_due=True)
    discriminator_step(config, state, engine, real, fake, noise)
    before = [p.grad.clone() for p in state.netd.parameters() if p.grad is not None]
    generator_step(config, state, engine, fake, noise)
    session.state.images += session.config.batch_size
    after = [p.grad for p in state.netd.parameters() if p.grad is not None]
    return len(before) > 0 and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.fixture(scope="module")
def count(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collectives")
    shard = write_ours(folder / "0.tar", 30, size=64)

    def run(changes: str) -> dict[str, int]:
        given = options(shard, folder / "run", f"--model.image_size 64 {changes}")
        (counted, untouched), other = run_ranks(2, collectives, given, 2)
        assert (counted, untouched) == other
        assert untouched
        return counted

    return run


def test_shared_statistics_cost_one_sum_each_way(count):
    """G forward and backward, D's pass over real and fake together, D forward and backward in G's step."""
    assert count("") == {"allreduce_": 2 * G_NORMS + 2 * D_NORMS + 2 * D_NORMS + GRADIENTS}


def test_local_statistics_cost_nothing(count):
    assert count("--sync_batchnorm none") == {"allreduce_": GRADIENTS}


def test_accumulated_gradients_are_averaged_once(count):
    """Each of two micro-batches: images for D, D's update, images for G, D in G's step; then one average each."""
    statistics = G_NORMS + 2 * D_NORMS + 2 * G_NORMS + 2 * D_NORMS
    assert count("--accumulate 2") == {"allreduce_": 2 * statistics + GRADIENTS}


def test_penalties_need_no_collectives(count):
    changes = "--loss.r1_gamma 1 --loss.gp_weight 1 --model.d_norm layer"
    assert count(changes) == {"allreduce_": 2 * G_NORMS + GRADIENTS}


def ddp_settings(given: list[str], world_size: int) -> list[bool]:
    session = begin(given, world_size)
    wrapped = (session.engine.g, session.engine.d)
    assert all(isinstance(network, torch.nn.parallel.DistributedDataParallel) for network in wrapped)
    assert session.engine.d.module is session.state.netd
    return [bool(network.broadcast_buffers) for network in wrapped] + [bool(n.gradient_as_bucket_view) for n in wrapped]


def test_ddp_sends_no_buffers(shards, tmp_path):
    """They are the same on all ranks already, or local on purpose."""
    assert run_ranks(2, ddp_settings, options(shards, tmp_path / "run"), 2) == [[False, False, True, True]] * 2
