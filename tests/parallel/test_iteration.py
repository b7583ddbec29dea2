"""The trainer's iteration as the doctor runs it."""

import itertools
from dataclasses import replace

import pytest
import torch

from dcgan_dist.commands.doctor.ranks import ITERATIONS, small_run
from dcgan_dist.config import Config
from dcgan_dist.config.groups import OptimizerConfig
from dcgan_dist.gan import step as module
from dcgan_dist.parallel.engine import Iteration
from dcgan_dist.parallel.world import launch

SCHEDULE = OptimizerConfig(decay="linear", decay_from=0.0, warmup_images=8, g_lr=1e-3, d_lr=4e-3, g_every=2)


def test_it_sets_the_learning_rates_that_the_training_sets(monkeypatch):
    config = small_run(replace(Config(), optimizer=SCHEDULE), 1)
    world = launch(config)
    batch = (
        torch.zeros(config.batch_size, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(config.batch_size, dtype=torch.bool),
    )
    iteration = Iteration(config, world, itertools.repeat(batch))
    since, true = [], module.ema_beta
    monkeypatch.setattr(module, "ema_beta", lambda *given: since.append(given[2]) or true(*given))
    rates = []
    for _ in range(ITERATIONS):
        iteration.run()
        rates.append([each.param_groups[0]["lr"] for each in (iteration.state.opt_g, iteration.state.opt_d)])
    factors = [0.5, 2 / 3, 1 / 3]  # half of the warm-up, then the fall over the three iterations
    assert rates == [pytest.approx([1e-3 * factor, 4e-3 * factor]) for factor in factors]
    assert set(since) == {2 * config.batch_size}
