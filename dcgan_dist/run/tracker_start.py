"""What the trackers of a run know of the attempt that begins."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dcgan_dist.config import Config, flatten

PIXEL_BINS = np.arange(0, 257, 4)  # of histograms of pixels: four of the 256 values in each
BINS = 64  # of other histograms


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a tracker is opened with."""

    config: Config
    images: int  # real images seen where this attempt of the run begins
    say: Callable[[str], None]  # prints a line
    on_stop: Callable[[], None]  # called, in any thread, when someone stops the run from outside
    environment: Mapping[str, Any]  # versions and devices, shown with the options

    @property
    def options(self) -> dict[str, float | str]:
        """All options by their dotted names, as numbers (switches: True, False) or as text without secrets."""
        return {name: _plain(value) for name, value in flatten(self.config).items()}


def _plain(value: Any) -> float | str:
    if isinstance(value, int | float):
        return value
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
