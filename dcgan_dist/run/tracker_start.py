"""What the trackers of a run know of the attempt that begins."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dcgan_dist.config import Config


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a tracker is opened with."""

    config: Config
    images: int  # real images seen where this attempt of the run begins
    say: Callable[[str], None]  # prints a line
    on_stop: Callable[[], None]  # called, in any thread, when someone stops the run from outside
    environment: Mapping[str, Any]  # versions and devices, shown with the options
