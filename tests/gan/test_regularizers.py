import pytest
import torch
from torch.autograd.functional import jacobian

from dcgan_dist.config.groups import ModelConfig
from dcgan_dist.gan.networks import NetD
from dcgan_dist.gan.regularizers import gradient_penalty, r1_penalty


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(2, 3, 3, 32, 32, dtype=torch.float64).unbind()


@pytest.fixture(params=["layer", "none"])
def netd(request):
    torch.manual_seed(1)
    return NetD(ModelConfig(image_size=32, ndf=2, d_norm=request.param)).double()


def input_gradients(netd, images):
    """dD(x)/dx of each image alone, flattened."""
    rows = [jacobian(lambda x: netd(x[None])[0], image) for image in images]
    return torch.stack(rows).flatten(1)


def test_r1_is_half_the_squared_gradient_of_each_image(netd, images):
    real, _ = images
    expected = 0.5 * input_gradients(netd, real).norm(dim=1) ** 2
    torch.testing.assert_close(r1_penalty(netd, real), expected)


def test_gradient_penalty_is_taken_between_real_and_fake(netd, images):
    real, fake = images
    mix = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    points = torch.stack([fake[0], 0.25 * real[1] + 0.75 * fake[1], real[2]])
    expected = (input_gradients(netd, points).norm(dim=1) - 1) ** 2
    torch.testing.assert_close(gradient_penalty(netd, real, fake, mix), expected)


def test_of_a_linear_d_both_are_known():
    w = torch.randn(3 * 4 * 4, dtype=torch.float64, requires_grad=True)
    real, fake = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)

    def d(x):
        return x.flatten(1) @ w + 7

    r1 = r1_penalty(d, real)
    torch.testing.assert_close(r1, (0.5 * w.square().sum()).expand(5).detach())
    torch.testing.assert_close(torch.autograd.grad(r1.sum(), w)[0], 5 * w.detach())
    gp = gradient_penalty(d, real, fake, torch.rand(5, dtype=torch.float64))
    norm = w.norm().detach()
    torch.testing.assert_close(gp, ((norm - 1) ** 2).expand(5))
    torch.testing.assert_close(torch.autograd.grad(gp.sum(), w)[0], 5 * 2 * (norm - 1) / norm * w.detach())


@pytest.mark.parametrize("penalty", ["r1", "gp"])
def test_the_penalty_teaches_d(netd, images, penalty):
    real, fake = images
    mix = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)

    def value():
        penalties = r1_penalty(netd, real) if penalty == "r1" else gradient_penalty(netd, real, fake, mix)
        return penalties.sum()

    weight = netd.layers[2].weight
    (gradient,) = torch.autograd.grad(value(), weight)
    largest = int(gradient.abs().argmax())
    step = 1e-6
    with torch.no_grad():
        weight.view(-1)[largest] += step
    above = value().item()
    with torch.no_grad():
        weight.view(-1)[largest] -= 2 * step
    below = value().item()
    assert gradient.flatten()[largest].item() == pytest.approx((above - below) / (2 * step), rel=1e-4)


def test_a_flat_d_has_a_finite_penalty_and_gradient():
    w = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    real, fake = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64)
    gp = gradient_penalty(lambda x: x.flatten(1) @ w, real, fake, torch.rand(2, dtype=torch.float64))
    torch.testing.assert_close(gp, torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-5)
    assert torch.autograd.grad(gp.sum(), w)[0].isfinite().all()


def test_g_is_not_taught_by_the_penalty():
    fake = torch.randn(2, 3, 2, 2, requires_grad=True)
    w = torch.randn(12, requires_grad=True)
    gp = gradient_penalty(lambda x: (x.flatten(1) @ w).square(), torch.randn(2, 3, 2, 2), fake, torch.rand(2))
    assert torch.autograd.grad(gp.sum(), fake, allow_unused=True) == (None,)
