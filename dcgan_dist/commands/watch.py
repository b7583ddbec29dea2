"""`dcgan-dist watch RUN`: follows a run from its folder, on any machine that sees it."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import tyro

from dcgan_dist import cli
from dcgan_dist.config import Range
from dcgan_dist.errors import UsageError, UserError, os_error_as_user_error

BARS, NOT_FINITE = "▁▂▃▄▅▆▇█", "×"
CURVES = {
    "loss D": "loss/d",
    "loss G": "loss/g",
    "D(x)": "d/real",
    "D(G(z))": "d/fake",
    "images/s": "speed/images_per_second",
}
LOG_LINES = 5
LONGEST_CURVE = 80  # characters
PICTURE = 64  # columns of the sample grid, at most


@dataclass(frozen=True, kw_only=True)
class WatchOptions(cli.CommandOptions):
    """Follow a run from its folder: progress, curves, the last lines and, on a terminal with colours, the pictures."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    once: bool = False
    """Show the current state once and exit; always so where the output is not a terminal."""
    every: Annotated[float, Range(least=0.1, most=3_600)] = 2.0
    """Seconds between two looks at the folder."""
    no_pictures: bool = False
    """Leave the pictures out."""


def main(argv: list[str]) -> int:
    """Runs the command. Raises UsageError and UserError."""
    options = cli.parse(WatchOptions, argv, "dcgan-dist watch")
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    run = _Run(options.run)
    console = Console(highlight=False, markup=False, emoji=False)
    colours = console.color_system == "truecolor" and not options.no_pictures

    def screen() -> Group:
        width = console.width
        lines = [Text(line, no_wrap=True, overflow="crop") for line in run.lines(width)]
        pictures = [Text.from_ansi(run.picture(min(width, PICTURE)))] if colours else []
        return Group(*lines, *pictures)

    run.read()
    if options.once or not console.is_terminal:
        print(*run.lines(console.width), sep="\n")
        return 0
    with Live(screen(), console=console, auto_refresh=False, vertical_overflow="crop") as live:
        ended = run.ended()
        while not ended:
            time.sleep(options.every)
            ended = run.ended()  # before the last look at the rest
            run.read()
            live.update(screen(), refresh=True)
    return 0


class _Run:
    """What a run's folder shows."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError for a folder that is not a run's."""
        from dcgan_dist.run.folder import RunFolder

        self.folder = RunFolder(folder)
        if not self.folder.config.is_file():
            raise UsageError(f"{folder}: not a run folder: {self.folder.config.name} is missing")
        self.reports: list[dict[str, Any]] = []
        self._read = 0  # bytes

    def read(self) -> None:
        """Reads the reports that are new. Raises UserError."""
        path = self.folder.metrics
        if not path.exists():
            return
        with os_error_as_user_error(path, "cannot be read"), path.open("rb") as file:
            if file.seek(0, 2) < self._read:  # a resumed run has dropped the last ones
                self.reports, self._read = [], 0
            file.seek(self._read)
            for line in file:
                if line.endswith(b"\n"):
                    self._read += len(line)
                    self.reports.append(_parsed(path, line))

    def ended(self) -> bool:
        """Whether no attempt is running."""
        return self._state()[0] in ("complete", "stopped", "failed", "killed")

    def _state(self) -> tuple[str, str]:
        from dcgan_dist.run.attempts import read_attempts
        from dcgan_dist.run.report.facts import state_of

        attempts = self.folder.attempts
        return state_of(self.folder, read_attempts(attempts) if attempts.is_file() else [])

    def lines(self, width: int) -> Iterator[str]:
        """State, progress, curves and the last lines of the log."""
        from dcgan_dist.run.console import GAP, progress_parts

        total = int(cli.read_yaml(self.folder.config, "RUN")["images"])
        values = _merged(self.reports)
        yield ": ".join(filter(None, (str(self.folder.root), *self._state())))
        if self.reports:
            rate = values.get("speed/images_per_second")
            seen = int(values["images"])  # the last batch may go beyond --images
            yield GAP.join(progress_parts(seen, max(total, seen), rate, values).values())
        for label, name in CURVES.items():
            series = [float(report[name]) for report in self.reports if name in report]
            if series:
                yield f"{label:<9} {sparkline(series, min(LONGEST_CURVE, width - 24))}  {series[-1]:.4g}"
        yield from self._log()
        if grid := self._grid():
            yield f"{grid}"

    def _log(self) -> list[str]:
        if not self.folder.log.exists():
            return []
        with self.folder.log.open("rb") as file:
            file.seek(max(file.seek(0, 2) - 10_000, 0))
            return file.read().decode(errors="replace").splitlines()[-LOG_LINES:]

    def _grid(self) -> Path | None:
        return max(self.folder.samples.glob("*.png"), default=None)

    def picture(self, columns: int) -> str:
        """The upper left quarter of the newest sample grid, two pixels a character; "" without one."""
        import numpy as np
        from PIL import Image

        path = self._grid()
        if path is None:
            return ""
        with Image.open(path) as image:
            side = max(min(image.size) // 2, 1)
            pixels = np.asarray(image.convert("RGB").crop((0, 0, side, side)).resize((columns, columns)), dtype=int)
        rows = zip(pixels[::2], pixels[1::2], strict=False)
        return "\n".join("".join(map(_half_blocks, upper, lower)) + "\x1b[0m" for upper, lower in rows)


def _parsed(path: Path, line: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: has a line that is no JSON object ({error}); restore the file") from error


def _half_blocks(upper: Sequence[int], lower: Sequence[int]) -> str:
    """A character whose upper and lower half have these colours (red, green, blue)."""
    return "\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format(*upper, *lower)


def _merged(reports: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The newest report's scalars; a record of a rollback has few of its own."""
    found: dict[str, float] = {}
    for report in reports[-2:]:
        for name, value in report.items():
            with suppress(ValueError):  # a text of a rollback
                found[name] = float(value)
    return found


def sparkline(series: Sequence[float], width: int) -> str:
    """The means of at most `width` parts of a series as bars between its least and its greatest mean."""
    width = max(min(width, len(series)), 1)
    bounds = [len(series) * part // width for part in range(width + 1)]
    means = [math.fsum(series[a:b]) / (b - a) for a, b in pairwise(bounds)]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] if math.isfinite(mean) else NOT_FINITE for mean in means)
