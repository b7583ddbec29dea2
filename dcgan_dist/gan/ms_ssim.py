"""Multi-scale structural similarity (Wang, Simoncelli, Bovik, "Multi-scale structural similarity for image quality
assessment", Asilomar 2003), as a measure of how much alike G's pictures are (Odena et al. 2017, section 4.2).
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales, finest first; section 3.2
WINDOW, SIGMA = 11, 1.5  # pixels
C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1]


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Similarity of each pair of pictures, (n,), 1: equal. `x`, `y`: (n, C, H, W) in [0, 1], at least 16 pixels wide.

    The window is valid positions only; where a scale is smaller than the window, the window is as large as the scale.
    A negative contrast term, of pictures that are each other's negatives, counts as 0.
    """
    result = torch.ones(len(x), dtype=x.dtype, device=x.device)
    for k, weight in enumerate(WEIGHTS):
        if k:
            x, y = avg_pool2d(x, 2), avg_pool2d(y, 2)
        luminance, contrast = _terms(x, y)
        term = contrast if k < len(WEIGHTS) - 1 else luminance * contrast
        result = result * term.mean(dim=(1, 2, 3)).clamp_min(0) ** weight
    return result


def _terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure, at each position and channel."""
    mean_x, mean_y, xx, yy, xy = _blur(torch.cat([x, y, x * x, y * y, x * y])).split(len(x))
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return luminance, (2 * cov + C2) / (var_x + var_y + C2)


def _blur(x: Tensor) -> Tensor:
    """Gaussian means, rows and columns after each other."""
    n, channels, *sides = x.shape
    x = x.reshape(n * channels, 1, *sides)
    for axis, side in enumerate(sides):
        width = min(WINDOW, side)
        places = torch.arange(width, dtype=x.dtype, device=x.device) - (width - 1) / 2
        bell = torch.exp(-(places**2) / (2 * (SIGMA * width / WINDOW) ** 2))
        x = conv2d(x, (bell / bell.sum()).reshape(1, 1, *((width, 1) if axis == 0 else (1, width))))
    return x.reshape(n, channels, *x.shape[2:])
