"""The grids of samples as small pictures in the page."""

import base64
import io
import time
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from dcgan_dist.data.system.workers import available_cores

T = TypeVar("T")
MOST = 500  # grids of a run
SETTINGS = ((85, 1_600), (70, 1_200), (55, 1_000), (45, 900), (35, 800), (25, 600), (20, 400), (20, 320), (15, 256))
"""WebP quality and longest side in pixels: the first is used with which all grids fit."""
EXAMPLES, MARGIN = 9, 1.1  # the grids from which the size of all is estimated, and what is allowed for the error
THREADS = 4


@dataclass(frozen=True, kw_only=True)
class Grids:
    """The grids of one run that the page shows."""

    pictures: dict[int, str]  # images seen -> data URI, in this order
    real: str | None  # data URI of real.png
    total: int  # grids in the folder
    unread: int  # of those that were tried
    setting: tuple[int, int]  # quality and longest side

    @property
    def left_out(self) -> int:
        """Intact or untried grids that the page does not show."""
        return self.total - self.unread - len(self.pictures)


def collect(samples: Path, real: Path, budget: int, until: float) -> Grids:
    """As many grids as fit into `budget` characters and can be made before `until`, a time.monotonic().

    Those that are left out are spread evenly. Raises OSError when the folder cannot be read.
    """
    found = sorted((int(path.stem), path) for path in samples.glob("*.png") if path.stem.isdecimal())
    order = spread([found[place] for place in np.linspace(0, len(found) - 1, min(len(found), MOST)).astype(int)])
    setting = _setting([path for _, path in order[:EXAMPLES]], len(order), budget)
    pictures: dict[int, str] = {}
    unread = 0
    real_uri = _encoded(real, setting) if real.is_file() else None
    left = budget - len(real_uri or "")
    with ThreadPoolExecutor(min(THREADS, available_cores())) as pool:
        made = pool.map(lambda path: _encoded(path, setting, until), [path for _, path in order])
        for (images, _), uri in zip(order, made, strict=True):
            unread += uri is None
            if uri and (left := left - len(uri)) >= 0:
                pictures[images] = uri
    return Grids(
        pictures=dict(sorted(pictures.items())), real=real_uri, total=len(found), unread=unread, setting=setting
    )


def spread(items: Sequence[T]) -> list[T]:
    """The last item first, then the others, so that the first n of the result are spread evenly, whatever n is."""
    bits = max(len(items) - 1, 1).bit_length()
    rest = sorted(range(len(items) - 1), key=lambda place: f"{place:0{bits}b}"[::-1])
    return [*items[-1:], *(items[place] for place in rest)]


def _setting(examples: Sequence[Path], count: int, budget: int) -> tuple[int, int]:
    def fits(setting: tuple[int, int]) -> bool:
        sizes = [len(_encoded(path, setting) or "") for path in examples]
        return MARGIN * (count + 1) * sum(sizes) <= budget * len(sizes)

    return SETTINGS[min(bisect_left(SETTINGS, True, key=fits), len(SETTINGS) - 1)]


def _encoded(path: Path, setting: tuple[int, int], until: float = float("inf")) -> str | None:
    """A picture as a data URI; "" when it is too late, None when it cannot be read."""
    if time.monotonic() > until:
        return ""
    quality, side = setting
    buffer = io.BytesIO()
    try:
        with Image.open(path) as picture:
            picture = picture.convert("RGB")
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
            picture.save(buffer, "WEBP", quality=quality, method=2)
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
