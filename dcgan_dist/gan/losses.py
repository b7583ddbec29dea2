"""Adversarial losses of D and G: pure functions of logits, in float32 or float64. Each returns a loss per image, (n,).

D(x) = sigmoid(logit); -log D(x) = softplus(-logit) and -log(1 - D(x)) = softplus(logit), which never overflow.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import relu, softplus

from dcgan_dist.config.groups import LossName


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What D minimises for real and for fake images, and what G minimises. Logits (n,) -> losses (n,)."""

    d_real: Callable[[Tensor, float], Tensor]  # second argument: label smoothing, 0 for none
    d_fake: Callable[[Tensor], Tensor]
    g: Callable[[Tensor], Tensor]


def cross_entropy_real(logits: Tensor, smoothing: float) -> Tensor:
    """-(1 - s) log D(x) - s log(1 - D(x)), one-sided smoothing s (Salimans et al. 2016, section 3.4)."""
    return softplus(-logits) + smoothing * logits


LOSSES: dict[LossName, Loss] = {
    # G: -log D(G(z)) (Goodfellow et al. 2014, section 3)
    "non_saturating": Loss(d_real=cross_entropy_real, d_fake=softplus, g=lambda x: softplus(-x)),
    # G: log(1 - D(G(z))) (Goodfellow et al. 2014, equation 1); its gradient vanishes where D is sure
    "minimax": Loss(d_real=cross_entropy_real, d_fake=softplus, g=lambda x: -softplus(x)),
    # Lim & Ye 2017; Miyato et al. 2018, equations 16 and 17
    "hinge": Loss(d_real=lambda x, _: relu(1 - x), d_fake=lambda x: relu(1 + x), g=lambda x: -x),
    # Mao et al. 2017, equation 9 with a = 0, b = c = 1
    "least_squares": Loss(
        d_real=lambda x, _: 0.5 * (x - 1).square(),
        d_fake=lambda x: 0.5 * x.square(),
        g=lambda x: 0.5 * (x - 1).square(),
    ),
    # Arjovsky et al. 2017; needs a bound on D's slope
    "wasserstein": Loss(d_real=lambda x, _: -x, d_fake=lambda x: x, g=lambda x: -x),
}
