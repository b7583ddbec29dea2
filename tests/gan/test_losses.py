import math
from typing import get_args

import pytest
import torch
from torch.nn.functional import binary_cross_entropy

from dcgan_dist.config.groups import LossName
from dcgan_dist.gan.losses import LOSSES

LOGITS = torch.linspace(-8, 8, 33, dtype=torch.float64)


def bce(logits, target):
    """Cross-entropy of probabilities, written by PyTorch."""
    probability = torch.sigmoid(logits)
    return binary_cross_entropy(probability, torch.full_like(probability, target), reduction="none")


# name -> D's loss on a real logit and on a fake one, and G's, each worked out by hand in plain Python
BY_HAND = {
    "hinge": (lambda x: max(0.0, 1 - x), lambda x: max(0.0, 1 + x), lambda x: -x),
    "least_squares": (lambda x: (x - 1) ** 2 / 2, lambda x: x**2 / 2, lambda x: (x - 1) ** 2 / 2),
    "wasserstein": (lambda x: -x, lambda x: x, lambda x: -x),
    "non_saturating": (
        lambda x: -math.log(1 / (1 + math.exp(-x))),
        lambda x: -math.log(1 - 1 / (1 + math.exp(-x))),
        lambda x: -math.log(1 / (1 + math.exp(-x))),
    ),
    "minimax": (
        lambda x: -math.log(1 / (1 + math.exp(-x))),
        lambda x: -math.log(1 - 1 / (1 + math.exp(-x))),
        lambda x: math.log(1 - 1 / (1 + math.exp(-x))),
    ),
}


def test_the_registry_is_the_option_and_all_are_tested():
    assert set(LOSSES) == set(get_args(LossName)) == set(BY_HAND)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_the_formula(name):
    loss = LOSSES[name]
    for ours, by_hand in zip((lambda x: loss.d_real(x, 0.0), loss.d_fake, loss.g), BY_HAND[name], strict=True):
        expected = torch.tensor([by_hand(x) for x in LOGITS.tolist()], dtype=torch.float64)
        torch.testing.assert_close(ours(LOGITS), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_cross_entropy_is_that_of_the_probability(smoothing):
    for name in ("non_saturating", "minimax"):
        loss = LOSSES[name]
        torch.testing.assert_close(loss.d_real(LOGITS, smoothing), bce(LOGITS, 1 - smoothing))
        torch.testing.assert_close(loss.d_fake(LOGITS), bce(LOGITS, 0.0))  # one-sided: never smoothed
    torch.testing.assert_close(LOSSES["non_saturating"].g(LOGITS), bce(LOGITS, 1.0))
    torch.testing.assert_close(LOSSES["minimax"].g(LOGITS), -bce(LOGITS, 0.0))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", LOSSES)
def test_large_logits_give_finite_losses_and_gradients(name, smoothing):
    loss = LOSSES[name]
    for act in (lambda x: loss.d_real(x, smoothing), loss.d_fake, loss.g):
        logits = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], requires_grad=True)
        values = act(logits)
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        assert values.shape == (5,)
        assert values.isfinite().all()
        assert gradient.isfinite().all()


def gradient_of_g(name, logit):
    logits = torch.tensor([logit], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(LOSSES[name].g(logits).sum(), logits)
    return gradient.item()


@pytest.mark.parametrize("logit", [-12.0, -3.0, 0.0, 3.0])
def test_minimax_stops_teaching_where_d_is_sure_and_the_other_does_not(logit):
    d = 1 / (1 + math.exp(-logit))
    assert gradient_of_g("minimax", logit) == pytest.approx(-d, rel=1e-12)
    assert gradient_of_g("non_saturating", logit) == pytest.approx(d - 1, rel=1e-12)


def test_label_smoothing_moves_the_best_logit_to_the_log_odds():
    logits = torch.linspace(-5, 5, 100_001, dtype=torch.float64)
    best = logits[LOSSES["non_saturating"].d_real(logits, 0.1).argmin()]
    assert best.item() == pytest.approx(math.log(0.9 / 0.1), abs=1e-4)
