"""The charts of the page, as data: which scalars, how to read them, and their points."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcgan_dist.run.report.facts import Run
from dcgan_dist.run.report.history import History, averaged, thinned

POINTS = 2_000  # of one line, at most
ALL_POINTS = 200_000  # of all lines of the page
SPLIT_POINTS = 200  # of the time split: means
RATE = "speed/images_per_second"
NOT_DRAWN = {"epoch", "time/run_hours", "time/data_percent", "data/substituted", "health/rollbacks"}
"""Scalars that the page shows elsewhere, or that only grow."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart of some scalars; those that no report has are left out."""

    title: str
    names: dict[str, str]  # scalar -> what its line is called
    unit: str
    note: str  # how to read it
    log: bool = False
    level: float | None = None  # a horizontal line
    limit: str | None = None  # the option that holds the height of another
    changing: bool = False  # left out while all its lines are flat


PROBABILITY = "probability of being real"
PANELS = (
    Panel(
        title="D(x) and D(G(z))",
        names={
            "d/real": "D(x)",
            "d/fake": "D(G(z))",
            "d/real_after": "D(x) after D's update",
            "d/fake_after": "D(G(z)) after D's update",
        },
        unit=PROBABILITY,
        note="What D takes real and generated images for. At 0.5 D cannot tell them apart; near 1 and 0 it has won, "
        "and G learns little.",
        level=0.5,
    ),
    Panel(
        title="Losses",
        names={"loss/d": "D", "loss/g": "G", "loss/r1": "R1 penalty", "loss/gp": "gradient penalty"},
        unit="loss",
        note="The two losses work against each other, so neither shows the quality of the images. Steady is healthy; "
        "a loss of D near 0 with a growing one of G is not.",
    ),
    Panel(
        title="Gradients",
        names={"grad_norm/d": "D", "grad_norm/g": "G"},
        unit="norm of the gradient",
        note="Means of the norms before clipping. A steady ratio is healthy; growth by powers of ten comes before "
        "divergence.",
        log=True,
    ),
    Panel(
        title="Variety: MS-SSIM of G's images",
        names={"health/ms_ssim": "MS-SSIM"},
        unit="MS-SSIM",
        note="How alike pairs of G's images are; 1: all equal, which is mode collapse.",
        limit="collapse.ms_ssim",
    ),
    Panel(
        title="Variety: deviation of pixels",
        names={"health/pixel_std": "deviation"},
        unit="fraction of the range",
        note="Standard deviation of a pixel over G's images; 0: all equal, which is mode collapse.",
        limit="collapse.pixel_std",
    ),
    Panel(
        title="Learning rates",
        names={"lr/d": "D", "lr/g": "G"},
        unit="learning rate",
        note="As the schedule and rollbacks set them.",
        changing=True,
    ),
)
SPEED = Panel(
    title="Speed",
    names={RATE: "images/s"},
    unit="real images/s",
    note="Over all ranks, from one report to the next, with sample grids and saves.",
)
SPLIT = Panel(
    title="Where the time goes",
    names={"time/d": "D", "time/g": "G", "time/data": "waiting for images", "time/other": "rest"},
    unit="ms per iteration",
    note="The rest is reports, sample grids, saves and communication outside of the two networks.",
)


def charts(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """All charts by the section of the page: curves, metrics, speed, more."""
    names = sorted({name for run in runs for name in run.history.scalars} - NOT_DRAWN)
    points = max(min(POINTS, ALL_POINTS // max(len(names) * len(runs), 1)), 100)

    def drawn(panel: Panel) -> list[dict[str, Any]]:
        lines = [line for run in range(len(runs)) for line in _lines(runs, run, panel, points)]
        changes = any(len({*line["y"]}) > 1 for line in lines)
        return [_chart(runs, panel, lines)] if lines and (changes or not panel.changing) else []

    known = {name for panel in (*PANELS, SPEED, SPLIT) for name in panel.names}
    metrics = [name for name in names if name.startswith("metrics/")]
    found = {
        "curves": [chart for panel in PANELS for chart in drawn(panel)],
        "metrics": [chart for name in metrics for chart in drawn(_metric(runs, name))],
        "speed": [*drawn(SPEED), *(_split(runs, number) for number in range(len(runs)) if _timed(runs[number]))],
    }
    rest = [name for name in names if name not in known and name not in metrics]
    groups = dict.fromkeys(name.partition("/")[0] for name in rest)
    for group in groups:
        own = {name: name.partition("/")[2] or name for name in rest if name.partition("/")[0] == group}
        found.setdefault("more", []).extend(drawn(Panel(title=f"{group}/", names=own, unit="", note="")))
    return found


def _metric(runs: Sequence[Run], name: str) -> Panel:
    """With the protocol that the reports name, if they do."""
    protocols = dict.fromkeys(run.history.texts.get(f"{name}_protocol", "") for run in runs)
    title = name.removeprefix("metrics/")
    return Panel(title=title, names={name: title}, unit=title, note="; ".join(filter(None, protocols)))


def _lines(runs: Sequence[Run], run: int, panel: Panel, points: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    history = runs[run].history
    for place, (name, label) in enumerate(panel.names.items()):
        values = history.scalars.get(name)
        if values is None or not np.isfinite(values).any():
            continue
        reported = _without_gaps(values)
        chosen = reported[thinned(values[reported], points)]
        title = f"{runs[run].name}: {label}" if len(runs) > 1 else label
        y = [_short(value) for value in values[chosen].tolist()]
        lines.append({"run": run, "place": place, "name": title, "x": history.images[chosen].tolist(), "y": y})
    return lines


def _without_gaps(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """The places of a scalar that only some reports have; with its gaps where nearly all have it."""
    finite = np.isfinite(values)
    return np.flatnonzero(finite) if finite.sum() < len(values) / 2 else np.arange(len(values))


def _short(value: float) -> float | None:
    """Five digits, which a screen can show."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _chart(runs: Sequence[Run], panel: Panel, lines: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    levels = [] if panel.level is None or not _are_probabilities(runs) else [[panel.level, ""]]
    limits = {run.options.get(panel.limit or "") for run in runs} - {None}
    for limit in filter(None, limits):
        with suppress(ValueError):  # of a damaged config.yaml
            levels.append([float(limit), f"--{panel.limit}"])
    spans = [_span(line) for line in lines]
    about = {"title": panel.title, "unit": panel.unit, "note": panel.note, "log": panel.log, "levels": levels}
    return about | {"lines": lines, "alt": f"{panel.title}: {'; '.join(spans)}"} | more


def _are_probabilities(runs: Sequence[Run]) -> bool:
    """The critic of a Wasserstein GAN is no classifier."""
    return all(run.options.get("loss.name") != "wasserstein" for run in runs)


def _span(line: dict[str, Any]) -> str:
    """A line in words, for those who do not see it."""
    known = [value for value in line["y"] if value is not None]
    return f"{line['name']} between {min(known):.4g} and {max(known):.4g}, at the end {known[-1]:.4g}"


def _timed(run: Run) -> bool:
    return any(name in run.history.scalars for name in SPLIT.names)


def _split(runs: Sequence[Run], run: int) -> dict[str, Any]:
    """The time split of one run: areas on top of each other, so all have the same x."""
    history = runs[run].history
    x = averaged(history.images.astype(np.float64), SPLIT_POINTS).round().astype(int).tolist()
    lines = []
    for place, (name, label) in enumerate(SPLIT.names.items()):
        if name in history.scalars:
            mean = 1e3 * averaged(history.scalars[name], SPLIT_POINTS)
            y = [_short(value) or 0.0 for value in mean.tolist()]
            lines.append({"run": run, "place": place, "name": label, "x": x, "y": y})
    title = f"{SPLIT.title}: {runs[run].name}" if len(runs) > 1 else SPLIT.title
    return _chart(runs, SPLIT, lines, stack=True) | {"title": title}


def median(history: History, name: str) -> float | None:
    """Of the finite values of a scalar."""
    values = history.scalars.get(name, np.empty(0))
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None
