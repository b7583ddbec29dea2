import copy

import pytest
import torch

from dcgan_dist.config.groups import EmaConfig, ModelConfig
from dcgan_dist.gan.ema import ema_beta, update_ema
from dcgan_dist.gan.networks import NetG


def constant(network, value):
    network = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in network.state_dict(keep_vars=True).values():
            tensor.fill_(value)
    return network


@pytest.fixture
def netg():
    return NetG(ModelConfig(image_size=32, nz=2, ngf=1)).double()


def values(network):
    state = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    return torch.cat([value.flatten() for value in state.values()])


def test_half_of_the_distance_is_left_after_a_half_life(netg):
    config = EmaConfig(half_life=1_000, ramp=0)
    average, target = constant(netg, 0), constant(netg, 8)
    for images, left in ((1_000, 4.0), (2_000, 2.0), (3_000, 1.0)):
        for seen in range(images - 1_000 + 50, images + 50, 50):
            update_ema(average, target, ema_beta(config, seen, 50))
        torch.testing.assert_close(values(average), torch.full_like(values(average), 8 - left), rtol=1e-12, atol=0)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_half_life_is_in_images_whatever_the_batch(batch):
    beta = ema_beta(EmaConfig(half_life=10_000, ramp=0), 10**9, batch)
    assert beta ** (10_000 / batch) == pytest.approx(0.5, rel=1e-12)


def test_the_average_is_the_closed_form_over_many_changing_steps(netg):
    torch.manual_seed(0)
    config, networks, weights = EmaConfig(half_life=300, ramp=0.05), [], []
    average = constant(netg, 3.0)
    for step in range(1, 41):
        networks.append(constant(netg, float(torch.randn(()))))
        weights.append(ema_beta(config, 100 * step, 100))
        update_ema(average, networks[-1], weights[-1])
    expected, left = 0.0, 1.0
    for network, beta in zip(reversed(networks), reversed(weights), strict=True):
        expected += left * (1 - beta) * values(network)[0].item()
        left *= beta
    expected += left * 3.0
    torch.testing.assert_close(values(average), torch.full_like(values(average), expected), rtol=1e-12, atol=1e-14)


def test_the_ramp_shortens_the_half_life_at_the_beginning():
    config = EmaConfig(half_life=10_000, ramp=0.05)
    assert ema_beta(config, 2_000, 50) == pytest.approx(0.5 ** (50 / 100))
    assert ema_beta(config, 200_000, 50) == pytest.approx(0.5 ** (50 / 10_000))
    assert ema_beta(config, 500_000, 50) == ema_beta(config, 200_000, 50)


def test_without_a_half_life_the_average_is_g(netg):
    config = EmaConfig(half_life=0)
    assert ema_beta(config, 10_000, 64) == 0.0
    average = constant(netg, 5)
    update_ema(average, netg, 0.0)
    assert all(torch.equal(value, netg.state_dict()[name]) for name, value in average.state_dict().items())


def test_running_statistics_are_averaged_and_counters_copied(netg):
    average = copy.deepcopy(netg)
    netg(torch.randn(4, 2, 1, 1).double())
    before = average.state_dict()["layers.1.running_var"].clone()
    update_ema(average, netg, 0.25)
    state = average.state_dict()
    expected = 0.25 * before + 0.75 * netg.state_dict()["layers.1.running_var"]
    torch.testing.assert_close(state["layers.1.running_var"], expected)
    assert state["layers.1.num_batches_tracked"] == netg.state_dict()["layers.1.num_batches_tracked"] == 1


def test_no_graph_hangs_on_the_average_and_g_is_untouched(netg):
    average, before = copy.deepcopy(netg).requires_grad_(False), copy.deepcopy(netg)
    update_ema(average, netg, 0.5)
    assert not any(p.requires_grad or p.grad_fn for p in average.parameters())
    assert torch.equal(values(netg), values(before))
