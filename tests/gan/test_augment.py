from typing import get_args

import pytest
import torch

from dcgan_dist.config.groups import Augmentation
from dcgan_dist.gan.augment import AUGMENTATIONS, UNIFORMS, augment, color, cutout, translation

NAMES = tuple(AUGMENTATIONS)


def pictures(count, size=16, channels=3):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def uniforms(count, seed=1):
    return torch.rand(count, UNIFORMS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_numbers(count, **places):
    u = torch.full((count, UNIFORMS), 0.5, dtype=torch.float64)
    for place, value in places.items():
        u[:, int(place[1:])] = value
    return u


def test_the_registry_is_the_option():
    assert set(AUGMENTATIONS) == set(get_args(Augmentation))


def test_numbers_in_the_middle_change_no_colour_and_move_nothing():
    x = pictures(3)
    torch.testing.assert_close(augment(x, ("color", "translation"), with_numbers(3)), x)


def test_no_numbers_and_no_names_change_nothing():
    x = pictures(2)
    assert augment(x, NAMES, None) is x
    assert augment(x, (), uniforms(2)) is x


def test_brightness_saturation_and_contrast_are_the_published_ranges():
    x = pictures(2)
    torch.testing.assert_close(color(x, with_numbers(2, u0=0.9)), x + 0.4)
    grey = x.mean(1, keepdim=True).expand_as(x)
    torch.testing.assert_close(color(x, with_numbers(2, u1=0.0)), grey)
    torch.testing.assert_close(color(x, with_numbers(2, u1=1.0)), 2 * x - grey)
    level = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(color(x, with_numbers(2, u2=0.0)), (x + level) / 2)
    torch.testing.assert_close(color(x, with_numbers(2, u2=1.0)), 1.5 * x - 0.5 * level)


@pytest.mark.parametrize("size", [16, 24])
def test_translation_moves_by_up_to_an_eighth_and_fills_with_0(size):
    x, u = pictures(100, size, channels=1), uniforms(100)
    moved, shifts = translation(x, u), set()
    reach = size // 8
    for image, numbers, result in zip(x[:, 0], u.tolist(), moved[:, 0], strict=True):
        down, right = (int(number * (2 * reach + 1)) - reach for number in numbers[3:5])
        shifts |= {down, right}
        expected = torch.zeros(size, size, dtype=torch.float64)
        for row in range(size):
            for column in range(size):
                if 0 <= row + down < size and 0 <= column + right < size:
                    expected[row, column] = image[row + down, column + right]
        assert torch.equal(result, expected)
    assert shifts == set(range(-reach, reach + 1))


def test_cutout_is_a_square_of_half_the_size_that_may_hang_over_the_edge():
    count, size = 500, 16
    holes = cutout(torch.ones(count, 1, size, size, dtype=torch.float64), uniforms(count))[:, 0] == 0
    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(holes.sum((1, 2)), heights * widths)  # a full rectangle
    assert {*heights.tolist()} == {*widths.tolist()} == {4, 5, 6, 7, 8}
    inside = with_numbers(1)
    assert (cutout(torch.ones(1, 1, size, size), inside) == 0).sum() == (size // 2) ** 2


def test_cutout_falls_on_every_row_and_column_alike():
    u = uniforms(20_000)
    kept = cutout(torch.ones(20_000, 1, 16, 16, dtype=torch.float64), u)[:, 0]
    by_row, by_column = 1 - kept.mean((0, 2)), 1 - kept.mean((0, 1))
    torch.testing.assert_close(by_row, by_row.flip(0), rtol=0, atol=0.02)
    torch.testing.assert_close(by_column, by_row, rtol=0, atol=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_pixels(name):
    x = pictures(2, size=8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, (name,), uniforms(2)), x)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_augmented_alike_in_any_batch(name):
    x, u = pictures(6), uniforms(6)
    whole = augment(x, (name,), u)
    parts = torch.cat([augment(x[i : i + 1], (name,), u[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(whole, parts)
    assert not torch.equal(whole, augment(x, (name,), u.flip(0)))


@pytest.mark.parametrize("name", NAMES)
def test_a_number_that_float32_rounds_up_to_1_is_the_end_of_the_range(name):
    x = pictures(1).float()
    nearly = torch.full((1, UNIFORMS), 1 - 2.0**-20)
    at_most = torch.full((1, UNIFORMS), 1 - 2.0**-40, dtype=torch.float64).float()
    assert at_most.max() == 1
    torch.testing.assert_close(augment(x, (name,), at_most), augment(x, (name,), nearly))


def test_the_order_is_the_registrys_not_the_options():
    x, u = pictures(4), uniforms(4)
    by_hand = cutout(translation(color(x, u), u), u)
    assert torch.equal(augment(x, ("cutout", "color", "translation"), u), by_hand)
    assert torch.equal(augment(x, ("translation", "cutout"), u), cutout(translation(x, u), u))


def test_grey_images_and_memory_order_are_kept():
    x = pictures(2, channels=1).float()
    y = augment(x, NAMES, uniforms(2).float())
    assert (y.shape, y.dtype) == (x.shape, torch.float32)
