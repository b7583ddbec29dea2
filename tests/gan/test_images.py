from typing import get_args

import pytest
import torch

from dcgan_dist.config.groups import Output
from dcgan_dist.gan.images import RANGES, to_pixels, to_range

ALL = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)


def test_the_registry_is_the_option():
    assert set(RANGES) == set(get_args(Output))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("output", "lowest"), [("tanh", -1.0), ("sigmoid", 0.0)])
def test_every_pixel_value_comes_back(output, lowest, dtype):
    x = to_range(ALL, None, output, dtype)
    assert x.dtype == dtype
    assert (x.min().item(), x.max().item()) == (lowest, 1.0)
    step = (1 - lowest) / 255
    torch.testing.assert_close(x.flatten(), lowest + step * torch.arange(256, dtype=dtype))
    assert torch.equal(to_pixels(x, output), ALL)


@pytest.mark.parametrize(("output", "values"), [("tanh", [-9, -1, 0.999, 9]), ("sigmoid", [-9, 0, 0.9995, 9])])
def test_pixels_are_rounded_and_kept_in_range(output, values):
    x = torch.tensor(values, dtype=torch.float32).view(1, 1, 2, 2)
    assert to_pixels(x, output).flatten().tolist() == [0, 0, 255, 255]


def test_half_precision_images_become_pixels():
    x = to_range(ALL, None, "tanh", torch.float32).to(torch.bfloat16)
    assert (to_pixels(x, "tanh").int() - ALL.int()).abs().max() <= 1


def test_the_images_that_are_to_be_mirrored_are():
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    before = pixels.clone()
    plain = to_range(pixels, None, "tanh", torch.float32)
    mirrored = to_range(pixels, torch.tensor([False, True, False]), "tanh", torch.float32)
    assert torch.equal(mirrored[[0, 2]], plain[[0, 2]])
    for column in range(8):
        assert torch.equal(mirrored[1, :, :, column], plain[1, :, :, 7 - column])
    assert torch.equal(pixels, before)  # the reader's memory
