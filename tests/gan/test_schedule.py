import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcgan_dist.config.groups import Decay, OptimizerConfig
from dcgan_dist.gan.schedule import DECAYS, lr_factor

TOTAL = 10_000


def test_the_registry_is_the_option():
    assert set(DECAYS) == set(get_args(Decay))


def test_by_default_the_rate_never_changes():
    assert {lr_factor(OptimizerConfig(), images, 100, TOTAL) for images in range(0, 2 * TOTAL, 100)} == {1.0}


def test_warmup_rises_linearly_and_the_first_iteration_already_learns():
    config = OptimizerConfig(warmup_images=1_000)
    factors = [lr_factor(config, images, 100, TOTAL) for images in range(0, 1_200, 100)]
    assert factors == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("decay", "quarters"),
    [("linear", [1, 0.75, 0.5, 0.25, 0]), ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0])],
)
def test_decay_falls_to_0_between_its_start_and_the_end(decay, quarters):
    config = OptimizerConfig(decay=decay, decay_from=0.6)
    factors = [lr_factor(config, images, 100, TOTAL) for images in (6_000, 7_000, 8_000, 9_000, 10_000)]
    assert factors == pytest.approx(quarters)
    assert {lr_factor(config, images, 100, TOTAL) for images in range(0, 6_001, 500)} == {1.0}
    assert lr_factor(config, 99_999, 100, TOTAL) == pytest.approx(0)  # a run that was made shorter


def test_warmup_and_decay_multiply():
    config = OptimizerConfig(warmup_images=8_000, decay="linear", decay_from=0.0)
    assert lr_factor(config, 3_900, 100, TOTAL) == pytest.approx(0.5 * 0.61)


@given(
    decay=st.sampled_from(get_args(Decay)),
    warmup=st.integers(0, 5_000),
    decay_from=st.floats(0, 0.99),
    images=st.integers(0, 3 * TOTAL),
    batch=st.integers(1, 4_096),
)
def test_the_factor_is_always_between_0_and_1(decay, warmup, decay_from, images, batch):
    config = OptimizerConfig(warmup_images=warmup, decay=decay, decay_from=decay_from)
    assert 0 <= lr_factor(config, images, batch, TOTAL) <= 1
