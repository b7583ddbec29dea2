import math
from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from dcgan_dist.config.groups import Channels, DNorm, ImageSize, ModelConfig, Output
from dcgan_dist.gan.layers import GroupedBatchNorm
from dcgan_dist.gan.networks import NORMS, OUTPUTS, NetD, NetG, geometry, layer_table

SIZES: tuple[int, ...] = get_args(ImageSize)
SMALL = ModelConfig(nz=5, ngf=2, ndf=2)
# the notes: in, out, kernel, stride, padding, height and width that come out
G_96 = [
    (100, 512, 4, 1, 0, 4),
    (512, 256, 4, 2, 1, 8),
    (256, 128, 4, 2, 1, 16),
    (128, 64, 4, 2, 1, 32),
    (64, 3, 5, 3, 1, 96),
]
D_96 = [
    (3, 64, 5, 3, 1, 32),
    (64, 128, 4, 2, 1, 16),
    (128, 256, 4, 2, 1, 8),
    (256, 512, 4, 2, 1, 4),
    (512, 1, 4, 1, 0, 1),
]


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def convolutions(network: nn.Module) -> list[nn.Conv2d | nn.ConvTranspose2d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]


def leaves(network: nn.Module) -> list[nn.Module]:
    return [layer for layer in network.modules() if not list(layer.children())]


def measured(network: nn.Module, x: torch.Tensor) -> list[tuple[int, ...]]:
    """In, out, kernel, stride, padding and output height of every convolution of a forward pass."""
    rows = []

    def note(layer, _, y):
        assert y.shape[2] == y.shape[3]
        sizes = [layer.kernel_size, layer.stride, layer.padding]
        assert all(height == width for height, width in sizes)
        rows.append((layer.in_channels, layer.out_channels, *(height for height, _ in sizes), y.shape[2]))

    hooks = [layer.register_forward_hook(note) for layer in convolutions(network)]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return rows


def test_64_pixels_have_as_many_parameters_as_the_published_dcgan():
    assert (parameters(NetG(ModelConfig())), parameters(NetD(ModelConfig()))) == (3_576_704, 2_765_568)


def test_96_pixels_follow_the_notes_layer_by_layer():
    config = ModelConfig(image_size=96)
    assert measured(NetG(config), torch.zeros(2, 100, 1, 1)) == G_96
    assert measured(NetD(config), torch.zeros(2, 3, 96, 96)) == D_96


@pytest.mark.parametrize(("size", "channels"), list(product(SIZES, get_args(Channels))))
def test_every_size_has_the_layers_of_the_notes(size, channels):
    config = replace(SMALL, image_size=size, channels=channels)
    netg, netd = NetG(config), NetD(config)
    up, before = measured(netg, torch.randn(2, 5, 1, 1)), 1
    for _, _, kernel, stride, padding, after in up:
        assert after == (before - 1) * stride - 2 * padding + kernel
        before = after
    last = (5, 3, 1) if size in (48, 96, 192) else (4, 2, 1)
    assert [row[2:5] for row in up] == [(4, 1, 0)] + [(4, 2, 1)] * (len(up) - 2) + [last]
    down = measured(netd, torch.randn(2, channels, size, size))
    assert [row[2:5] for row in down] == [row[2:5] for row in reversed(up)]
    assert [row[:2] for row in down[:-1]] == [(out, into) for into, out, *_ in reversed(up[1:])]

    images = netg(torch.randn(2, 5, 1, 1))
    logits = netd(images)
    assert images.shape == (2, channels, size, size)
    assert logits.shape == (2,)
    assert logits.isfinite().all()


@pytest.mark.parametrize("size", SIZES)
def test_normalised_everywhere_but_at_the_ends(size):
    g = [type(layer) for layer in leaves(NetG(replace(SMALL, image_size=size)))]
    d = leaves(NetD(replace(SMALL, image_size=size)))
    hidden = (len(g) - 2) // 3
    assert g == [nn.ConvTranspose2d, GroupedBatchNorm, nn.ReLU] * hidden + [nn.ConvTranspose2d, nn.Tanh]
    middle = [nn.Conv2d, GroupedBatchNorm, nn.LeakyReLU] * (hidden - 1)
    assert [type(layer) for layer in d] == [nn.Conv2d, nn.LeakyReLU, *middle, nn.Conv2d]
    assert {layer.negative_slope for layer in d if isinstance(layer, nn.LeakyReLU)} == {0.2}


def test_sigmoid_ends_between_0_and_1_and_tanh_between_minus_1_and_1():
    z = 100 * torch.randn(8, 5, 1, 1)
    tanh, sigmoid = (NetG(replace(SMALL, image_size=32, output=output))(z) for output in ("tanh", "sigmoid"))
    assert -1 <= tanh.min() < 0 < tanh.max() <= 1
    assert 0 <= sigmoid.min() < 0.5 < sigmoid.max() <= 1


def test_the_registries_are_the_options():
    assert set(NORMS) == set(get_args(DNorm))
    assert set(OUTPUTS) == set(get_args(Output))


@pytest.mark.parametrize("size", [0, 1, 16, 63, 65, 100, 224, 512])
def test_other_sizes_are_refused_with_the_list(size):
    with pytest.raises(ValueError, match=f"image size {size}: must be one of 32, 48, 64, 96, 128, 192, 256"):
        geometry(size)


@pytest.mark.parametrize(("d_norm", "biased"), [("batch", 0), ("layer", 0), ("none", 3)])
def test_a_convolution_has_a_bias_only_where_no_norm_shifts_behind_it(d_norm, biased):
    netd = NetD(replace(SMALL, d_norm=d_norm))
    assert sum(layer.bias is not None for layer in convolutions(netd)) == biased


def test_weights_begin_as_in_the_paper():
    torch.manual_seed(0)
    config = ModelConfig(d_norm="none")
    for network in (NetG(ModelConfig()), NetD(ModelConfig())):
        for layer in convolutions(network):
            count = layer.weight.numel()
            assert layer.weight.mean().abs() < 5 * 0.02 / math.sqrt(count)
            assert abs(layer.weight.std().item() / 0.02 - 1) < 5 / math.sqrt(2 * count)
        norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
        scales = torch.cat([layer.weight for layer in norms])
        assert (scales.mean() - 1).abs() < 5 * 0.02 / math.sqrt(len(scales))
        assert abs(scales.std().item() / 0.02 - 1) < 5 / math.sqrt(2 * len(scales))
        assert not torch.cat([layer.bias for layer in norms]).any()
    biases = [layer.bias for layer in convolutions(NetD(config)) if layer.bias is not None]
    assert biases
    assert not torch.cat(biases).any()


def plain_twin(network: nn.Module) -> nn.Sequential:
    """The same layers with PyTorch's own BatchNorm2d."""
    layers = [
        nn.BatchNorm2d(layer.num_features) if isinstance(layer, GroupedBatchNorm) else layer
        for layer in leaves(network)
    ]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_weights_fit_plain_pytorch_layers(mode):
    torch.manual_seed(0)
    config = replace(SMALL, image_size=48)
    for network, x in ((NetG(config), torch.randn(4, 5, 1, 1)), (NetD(config), torch.randn(4, 3, 48, 48))):
        network.double().train()(x.double())  # running statistics that are not the initial ones
        twin = plain_twin(network).double()
        twin.load_state_dict({name.removeprefix("layers."): value for name, value in network.state_dict().items()})
        network.train(mode == "train")
        twin.train(mode == "train")
        torch.testing.assert_close(network(x.double()).flatten(), twin(x.double()).flatten(), rtol=0, atol=1e-12)
        ours, theirs = network.state_dict(), twin.state_dict()
        assert {name.removeprefix("layers.") for name in ours} == set(theirs)
        for name, value in theirs.items():
            torch.testing.assert_close(ours[f"layers.{name}"], value)


def test_one_grouped_pass_of_d_is_two_passes():
    torch.manual_seed(0)
    config = replace(SMALL, image_size=32)
    one, two = NetD(config).double(), NetD(config).double()
    two.load_state_dict(one.state_dict())
    real, fake = torch.randn(6, 3, 32, 32).double(), 2 + torch.randn(6, 3, 32, 32).double()
    grouped = one(torch.cat([real, fake]), 2)
    apart = torch.cat([two(real), two(fake)])
    torch.testing.assert_close(grouped, apart, rtol=0, atol=1e-12)
    weights = torch.randn(12).double()
    (grouped @ weights).backward()
    (apart @ weights).backward()
    for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)
    for name, value in two.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], value, rtol=0, atol=1e-12)
    assert (one(torch.cat([real, fake])) - apart).abs().max() > 1e-3  # common statistics would be another algorithm


@pytest.mark.parametrize(("d_norm", "alone"), [("batch", False), ("layer", True), ("none", True)])
def test_an_image_is_judged_alone_without_batch_statistics(d_norm, alone):
    torch.manual_seed(0)
    netd = NetD(replace(SMALL, image_size=32, d_norm=d_norm)).double()
    x = torch.randn(4, 3, 32, 32).double()
    other = torch.cat([x[:1], 3 * torch.randn(3, 3, 32, 32).double()])
    assert torch.allclose(netd(x)[0], netd(other)[0], rtol=1e-12) == alone


def test_spectral_norm_brings_the_largest_singular_value_to_1():
    torch.manual_seed(0)
    netd = NetD(replace(SMALL, image_size=32, spectral_norm=True, d_norm="none"))
    assert all(is_parametrized(layer) for layer in convolutions(netd))
    x = torch.randn(2, 3, 32, 32)
    for _ in range(200):
        netd(x)
    for layer in convolutions(netd):
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2)
        torch.testing.assert_close(largest, torch.tensor(1.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("size", [64, 96])
def test_memory_order_changes_nothing(size):
    torch.manual_seed(0)
    config = replace(SMALL, image_size=size)
    for make, x in ((NetG, torch.randn(4, 5, 1, 1)), (NetD, torch.randn(4, 3, size, size))):
        nchw = make(config).double()
        nhwc = make(config).double().to(memory_format=torch.channels_last)
        nhwc.load_state_dict(nchw.state_dict())
        y, same = nchw(x.double()), nhwc(x.double().contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(same, y, rtol=0, atol=1e-12)
        y.square().sum().backward()
        same.square().sum().backward()
        for one, other in zip(nchw.parameters(), nhwc.parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-9, atol=1e-12)


def test_the_layer_table_names_every_layer_and_changes_nothing():
    netd = NetD(replace(SMALL, image_size=32, spectral_norm=True))
    before = {name: value.clone() for name, value in netd.state_dict().items()}
    rows = layer_table(netd, torch.zeros(2, 3, 32, 32))
    assert [shape for _, shape, _ in rows] == [
        "2 x 16 x 16", "2 x 16 x 16", "4 x 8 x 8", "4 x 8 x 8", "4 x 8 x 8", "8 x 4 x 4", "8 x 4 x 4", "8 x 4 x 4",
        "1 x 1 x 1",
    ]  # fmt: skip
    assert sum(count for *_, count in rows) == parameters(netd)
    assert netd.training
    assert all(torch.equal(before[name], value) for name, value in netd.state_dict().items())
