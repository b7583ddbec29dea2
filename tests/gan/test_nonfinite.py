"""A gradient with some bad numbers: it harms nothing, and is told of in numbers."""

import math

import pytest
import torch
from support.engines import plain

from dcgan_dist.config import Config
from dcgan_dist.config.groups import ModelConfig, OptimizerConfig
from dcgan_dist.gan.state import create_state
from dcgan_dist.gan.step import Noise, discriminator_step, generate

LAYER = "layers.0.weight"  # 2 x 3 x 4 x 4 numbers


class Play:
    """D's updates on a tiny network; one of them can be spoilt."""

    def __init__(self, clip: float | None = None) -> None:
        config = Config(
            model=ModelConfig(image_size=32, nz=4, ngf=2, ndf=2), optimizer=OptimizerConfig(d_clip=clip, d_lr=0.01)
        )
        self.state = create_state(config, torch.device("cpu"), torch.float32, scaled=False)
        self._config, self._engine = config, plain(self.state)

    def update(self, bad: dict[int, float] | None = None) -> None:
        """`bad`: numbers by their places in the gradient of D's first layer."""

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            spoilt = gradient.flatten().clone()
            for place, value in (bad or {}).items():
                spoilt[place] = value
            return spoilt.view_as(gradient)

        self.state.netd.requires_grad_(True)
        handle = dict(self.state.netd.named_parameters())[LAYER].register_hook(spoil)
        noise = [Noise(z=torch.ones(6, 4, 1, 1))]
        fake = generate(self._engine, noise, g_due=False)
        discriminator_step(self._config, self.state, self._engine, [torch.zeros(6, 3, 32, 32)], fake, noise)
        handle.remove()
        self.state.images += 6

    def learnt(self) -> list[torch.Tensor]:
        """Weights and moments of D."""
        tensors = self.state.tensors()
        weights = [tensors["netd"][name] for name, _ in self.state.netd.named_parameters()]
        return [tensor.clone() for tensor in [*weights, *tensors["optimizer_d"].values()]]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize(("bad", "norm"), [({5: math.inf, 90: -math.inf}, "inf"), ({5: math.nan, 7: 1.0}, "nan")])
def test_the_bad_numbers_of_a_gradient_are_counted_and_the_others_bounded(bad, norm, clip):
    """Clipping by such a norm would make all of them bad."""
    play = Play(clip)
    play.update()
    before = play.learnt()
    play.update(bad)
    assert same(play.learnt(), before)
    fault = play.state.detector_d.look()
    gradient = dict(play.state.netd.named_parameters())[LAYER].grad
    assert fault is not None
    assert gradient is not None
    fine = gradient[gradient.isfinite()]
    count = sum(not math.isfinite(value) for value in bad.values())
    assert (fault.images, fault.in_gradient) == (6, True)
    assert f"the gradient of {LAYER}: its norm is {norm} (1 of 8 parameters are affected" in fault.text
    assert fault.text.endswith(
        f"; as it is now, {count} of 96 numbers are not finite, the others lie in [{fine.min():.3g}, {fine.max():.3g}])"
    )


def test_of_an_older_update_the_norms_are_reported():
    play = Play()
    play.update()
    before = play.learnt()
    play.update({0: math.nan})
    play.update()  # finite, but the network stands still until it is restored
    assert same(play.learnt(), before)
    fault = play.state.detector_d.look()
    assert fault is not None
    assert fault.images == 6
    head, _, rest = fault.text.partition(", the norms of the others lie in [")
    assert head == f"the gradient of {LAYER}: its norm is nan (1 of 8 parameters are affected"
    low, high = map(float, rest.removesuffix("])").split(", "))
    assert 0 < low < high


def test_once_restored_the_network_learns_again():
    play = Play()
    play.update({0: math.nan})
    before = play.learnt()
    play.state.detector_d.reset()
    assert play.state.detector_d.look() is None
    play.update()
    assert not same(play.learnt()[:1], before[:1])
