"""The progress of a command: a bar on a terminal, else a line every few seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from tqdm import tqdm

from dcgan_dist.errors import to_stderr

PLAIN_EVERY = 5.0  # seconds between two lines without a terminal
Unit = Literal["img", "B"]
DONE = {"img": "{n_fmt} of {total_fmt} images", "B": "{n_fmt} of {total_fmt}B"}

Progress = Callable[[int, int], None]  # called with the numbers done and in all; first with what was done before


@contextmanager
def progress(title: str, unit: Unit) -> Iterator[Progress]:
    """A function to call with the progress; nothing is shown before the first call."""
    if not sys.stderr.isatty():
        yield _lines(title, unit)
        return
    bar: tqdm | None = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        bar = bar or tqdm(desc=title, total=total, initial=done, unit=unit, unit_scale=unit == "B")
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()


def _lines(title: str, unit: Unit) -> Progress:
    began = last = time.monotonic()
    before: int | None = None
    settings = {"unit": unit, "unit_scale": unit == "B", "prefix": title}
    form = f"{{desc}}: {DONE[unit]}, {{rate_fmt}}, {{remaining}} to go"

    def show(done: int, total: int) -> None:
        nonlocal began, last, before
        now = time.monotonic()
        if before is None:
            began, last, before = now, now, done
        elif now - last >= PLAIN_EVERY:
            last = now
            to_stderr(tqdm.format_meter(done, total, now - began, initial=before, bar_format=form, **settings))

    return show
