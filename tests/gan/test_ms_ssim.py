"""MS-SSIM against the paper's formulas, written out window by window in numpy."""

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from dcgan_dist.gan.ms_ssim import ms_ssim


def by_windows(x, y):
    """Of one channel: 2-D windows, and moments about the mean of each window."""
    exponents = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]
    result = 1.0
    for scale, exponent in enumerate(exponents):
        side = min(11, *x.shape)
        sigma = 1.5 * side / 11
        offsets = np.arange(side) - (side - 1) / 2
        weights = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * sigma**2))
        weights /= weights.sum()
        contrasts, products = [], []
        for row_x, row_y in zip(
            sliding_window_view(x, (side, side)), sliding_window_view(y, (side, side)), strict=True
        ):
            for a, b in zip(row_x, row_y, strict=True):
                mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
                var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
                covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
                contrast = (2 * covariance + 0.0009) / (var_a + var_b + 0.0009)
                contrasts.append(contrast)
                products.append(contrast * (2 * mean_a * mean_b + 0.0001) / (mean_a**2 + mean_b**2 + 0.0001))
        term = np.mean(products if scale == 4 else contrasts)
        result *= max(term, 0.0) ** exponent
        halves = [side // 2 for side in x.shape]
        x, y = (p[: 2 * halves[0], : 2 * halves[1]].reshape(halves[0], 2, halves[1], 2).mean((1, 3)) for p in (x, y))
    return result


def pictures(size, count, seed):
    """Smooth pictures, as real ones are, in [0, 1]."""
    noise = torch.rand(
        count, 1, size // 8, size // 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return torch.nn.functional.interpolate(noise, size=(size, size), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("size", [32, 48])
def test_it_is_the_papers_formula(size):
    x = pictures(size, 3, seed=1)
    y = 0.6 * x + 0.4 * pictures(size, 3, seed=2)
    expected = [by_windows(a[0].numpy(), b[0].numpy()) for a, b in zip(x, y, strict=True)]
    assert 0.2 < min(expected) < max(expected) < 0.98
    assert ms_ssim(x, y).numpy() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("size", [32, 48, 64, 96, 128, 192, 256])
def test_equal_pictures_have_1_and_other_ones_less_at_every_size(size):
    x, y = pictures(size, 2, seed=1).float().repeat(1, 3, 1, 1), pictures(size, 2, seed=2).float().repeat(1, 3, 1, 1)
    assert ms_ssim(x, x).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert ms_ssim(x, y).max() < 0.7
    assert torch.equal(ms_ssim(x, y), ms_ssim(y, x))


def test_negatives_count_as_0_and_not_as_nan():
    x = pictures(32, 2, seed=1)
    assert ms_ssim(x, 1 - x).tolist() == [0, 0]
