"""The W&B workspace and reports as data: SECTIONS, and what is made of them by the package wandb-workspaces.

Curves are over the images seen. Only what W&B measures itself, in the section System, is over the time.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dcgan_dist.errors import UsageError, UserError

TIME = "RelativeTime(Process)"  # W&B's name of the time since the start
COLUMNS, ROWS = 3, 2  # panels of a section that are seen at once
WIDTH, HEIGHT, FULL_WIDTH = 8, 6, 24  # of a panel in a report, in W&B's units
LONGEST_TITLE = 128  # characters, of a report


@dataclass(frozen=True)
class Lines:
    """Curves of scalars in one plot."""

    title: str
    scalars: tuple[str, ...]
    log: bool = False  # the y axis is logarithmic
    stacked: bool = False  # as areas, one upon the other
    level: float | None = None  # a horizontal line at this height
    limits: tuple[float | None, float | None] = (None, None)  # of the y axis
    x: str = "images"


@dataclass(frozen=True)
class Media:
    """Pictures, with a slider over the reports."""

    title: str
    scalars: tuple[str, ...]  # names of pictures


@dataclass(frozen=True)
class Bars:
    """The last value of a scalar in each run."""

    title: str
    scalars: tuple[str]


@dataclass(frozen=True)
class Importance:
    """How much each option explains the last value of a scalar, over many runs."""

    scalars: tuple[str]


@dataclass(frozen=True)
class Coordinates:
    """A line for each run, through its options and the last values of scalars."""

    title: str
    options: tuple[str, ...]
    scalars: tuple[str, ...]


@dataclass(frozen=True)
class Differences:
    """A table of the options and last values in which runs differ."""

    scalars: tuple[str, ...] = ()


Panel = Lines | Media | Bars | Importance | Coordinates | Differences


@dataclass(frozen=True, kw_only=True)
class Section:
    """Panels under one heading."""

    name: str
    text: str  # how to read them
    panels: tuple[Panel, ...]
    is_open: bool = True
    compares: bool = False  # needs several runs


SECTIONS = (
    Section(
        name="Overview",
        text="The samples are of the same latents each time. D(x) should stay above 0.5 and D(G(z)) below, both near "
        "it: at 1 and 0, G has little to learn from. The losses of a GAN are no measure of its quality.",
        panels=(
            Media("Samples", ("samples",)),
            Lines("Losses", ("loss/d", "loss/g")),
            Lines("D(x) and D(G(z))", ("d/real", "d/fake"), level=0.5, limits=(0, 1)),
            Lines("D(x) and D(G(z)) after the update", ("d/real_after", "d/fake_after"), level=0.5, limits=(0, 1)),
            Lines("Quality: likeness of the samples (MS-SSIM)", ("health/ms_ssim",), limits=(0, 1)),
            Lines("Quality: variety of the samples (pixel deviation)", ("health/pixel_std",), limits=(0, None)),
        ),
    ),
    Section(
        name="Speed",
        text="Where an iteration spends its time. A wait for data of more than a few percent, or a rank that is slower "
        "than the median, costs that much of every rank's time.",
        panels=(
            Lines("Images per second", ("speed/images_per_second",), limits=(0, None)),
            Lines("Seconds per iteration", ("time/d", "time/g", "time/data", "time/other"), stacked=True),
            Lines("Wait for data, % of the time", ("time/data_percent",), limits=(0, None)),
            Lines("Time of the slowest rank / median", ("rank/slowest_factor",), level=1),
            Lines("Slowest rank", ("rank/slowest",)),
            Lines("Seconds of a checkpoint: of the loop, of the writing", ("time/save_seconds", "save/write_seconds")),
            Lines("Bytes read per image", ("data/bytes_per_image",)),
            Lines("Images from the cache, % of remote ones", ("data/cache_percent",), limits=(0, 100)),
            Lines("Hours of the run", ("time/run_hours",)),
        ),
    ),
    Section(
        name="Health",
        text="Signs of trouble, before the samples show it. Gradient norms that grow or vanish, a ratio far from its "
        "usual value, a loss scale that falls, or samples that become alike (MS-SSIM near 1) come first.",
        panels=(
            Lines("Gradient norms", ("grad_norm/d", "grad_norm/g"), log=True),
            Lines("Gradient norm of D / G", ("health/gradient_ratio",), log=True),
            Lines("Collapse watch: D(x) - D(G(z))", ("health/saturation",), limits=(None, 1)),
            Lines("Collapse watch: likeness and variety", ("health/ms_ssim", "health/pixel_std"), limits=(0, 1)),
            Lines("Logits of D", ("logit/real", "logit/fake"), level=0),
            Lines("Penalties on D's gradient", ("loss/r1", "loss/gp")),
            Lines("Loss scale (fp16)", ("scale/d", "scale/g"), log=True),
            Lines("Learning rates", ("lr/d", "lr/g")),
            Lines("Rollbacks", ("health/rollbacks",)),
            Lines("Substituted images", ("data/substituted",)),
        ),
    ),
    Section(
        name="Compare",
        text="The runs side by side: the options in which they differ, and what came of it.",
        panels=(
            Differences(),
            Importance(("health/saturation",)),
            Importance(("health/ms_ssim",)),
            Coordinates(
                "Options and outcome",
                ("optimizer.d_lr", "optimizer.g_lr", "optimizer.d_every", "loss.r1_gamma", "batch_size"),
                ("health/saturation", "health/ms_ssim"),
            ),
            Bars("Images per second", ("speed/images_per_second",)),
            Bars("Likeness of the samples (MS-SSIM)", ("health/ms_ssim",)),
        ),
        is_open=False,
        compares=True,
    ),
    Section(
        name="System",
        text="What W&B measures on the machine of the first rank, over the time.",
        panels=(
            Lines("GPU utilisation, %", tuple(f"system/gpu.{n}.gpu" for n in range(8)), x=TIME),
            Lines("GPU memory, %", tuple(f"system/gpu.{n}.memoryAllocated" for n in range(8)), x=TIME),
            Lines("GPU power, W", tuple(f"system/gpu.{n}.powerWatts" for n in range(8)), x=TIME),
            Lines("CPU, % of a core", ("system/cpu",), x=TIME),
            Lines("Memory of the process, MB", ("system/proc.memory.rssMB",), x=TIME),
            Lines("Memory of the machine, %", ("system/memory_percent",), x=TIME),
        ),
        is_open=False,
    ),
)
"""In the order of the workspace, and of a report."""
LEFT_OUT = {"epoch": "it is the number of images in another unit"}
"""Scalars that are on no panel, and why."""


def workspace(entity: str, project: str, name: str) -> Any:
    """The sections as a wandb_workspaces.workspaces.Workspace that is not saved yet."""
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(
            name=section.name,
            panels=[_panel(panel) for panel in section.panels],
            is_open=section.is_open,
            layout_settings=ws.SectionLayoutSettings(columns=COLUMNS, rows=ROWS),
            panel_settings=ws.SectionPanelSettings(x_axis=_x_axis(section)),
        )
        for section in SECTIONS
    ]
    settings = ws.WorkspaceSettings(x_axis="images")
    return ws.Workspace(entity=entity, project=project, name=name, sections=sections, settings=settings)


def report(entity: str, project: str, runs: Sequence[tuple[str, str]]) -> Any:
    """The sections as a wandb_workspaces.reports.v2.Report that is not saved yet. `runs`: (id, name) of each."""
    import wandb_workspaces.expr as expr
    import wandb_workspaces.reports.v2.interface as wr

    names = ", ".join(name for _, name in runs)
    filters = expr.And(expr.Metric("ID").isin([run_id for run_id, _ in runs]))
    shown = wr.Runset(entity=entity, project=project, name=names, filters=filters)
    blocks: list[Any] = [wr.TableOfContents()]
    for section in SECTIONS:
        if len(runs) > 1 or not section.compares:
            grid = wr.PanelGrid(runsets=[shown], panels=_laid_out(section.panels))
            blocks += [wr.H2(section.name), wr.P(section.text), grid]
    title = f"dcgan_dist: {names}"[:LONGEST_TITLE]
    return wr.Report(entity=entity, project=project, title=title, blocks=blocks, width="fluid")


def save_workspace(entity: str | None, project: str, name: str) -> str:
    """Creates the project's view of this name, or updates it if an earlier call has created it; its address.

    An update keeps the view's runs: filters, order, colours, which are hidden. Raises UsageError and UserError.
    """
    entity = _entity_with_project(entity, project)
    import wandb_workspaces.workspaces as ws

    key = hashlib.sha256("\n".join((entity, project, name)).encode()).hexdigest()[:11]
    try:
        new = workspace(entity, project, name)
    except ValueError as error:  # pydantic's
        raise UsageError(f"--name {name}: is no name of a view ({str(error).splitlines()[-2].strip()})") from error
    new._internal_name = f"nw-{key}-v"
    try:
        saved = ws.Workspace.from_url(f"/{entity}/{project}?nw={key}")
    except ValueError as error:
        if "not found in project" not in str(error):
            raise
        saved = new
    saved.sections, saved.settings = new.sections, new.settings
    return saved.save().url


def save_report(entity: str | None, project: str, run_ids: Sequence[str]) -> str:
    """Writes a new report of these runs; its address. Raises UserError."""
    import wandb

    entity = _entity_with_project(entity, project)
    api, runs = wandb.Api(), list[tuple[str, str]]()
    for run_id in run_ids:
        try:
            runs.append((run_id, str(api.run(f"{entity}/{project}/{run_id}").name)))
        except (ValueError, wandb.Error) as error:
            if "Could not find" not in str(error):  # the server did not answer
                raise
            problem = "W&B has no such run there; `wandb sync` sends what was kept offline"
            raise UserError(f"{entity}/{project}/{run_id}: {problem}") from error
    return report(entity, project, runs).save().url


def _entity_with_project(entity: str | None, project: str) -> str:
    """The entity, by default that of the key. Raises UserError if it has no such project, or none that is shown."""
    import wandb

    api = wandb.Api()
    entity = entity or api.default_entity
    if not entity:
        raise UserError("W&B names no entity for this key; name one with --entity")
    try:
        _ = api.project(project, entity).id
    except ValueError as error:
        if error.__cause__ is not None:  # the server did not answer
            raise
        problem = "W&B has no such project, or this key has no rights to see it; the first run creates it"
        raise UserError(f"{entity}/{project}: {problem}, with --wandb.project and --wandb.entity") from error
    return entity


def _x_axis(section: Section) -> str:
    """The one of its curves."""
    return next((panel.x for panel in section.panels if isinstance(panel, Lines)), "images")


def _laid_out(panels: Sequence[Panel]) -> list[Any]:
    """The panels of a report, in rows; pictures and tables fill a row."""
    import wandb_workspaces.reports.v2.interface as wr

    made, x, y = [], 0, 0
    for panel in panels:
        full = isinstance(panel, Media | Differences | Coordinates)
        width, height = (FULL_WIDTH, 2 * HEIGHT) if full else (WIDTH, HEIGHT)
        if x + width > FULL_WIDTH:
            x, y = 0, y + HEIGHT
        drawn = _panel(panel)
        drawn.layout = wr.Layout(x=x, y=y, w=width, h=height)
        made.append(drawn)
        x, y = (0, y + height) if full else (x + width, y)
    return made


def _panel(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2.interface as wr

    return PANELS[type(panel)](wr, panel)


def _lines(wr: Any, panel: Lines) -> Any:
    drawn: dict[str, Any] = {"y": list(panel.scalars)}
    if panel.level is not None:
        # W&B draws a level only as an expression of a scalar, and beside expressions perhaps nothing else
        names = [f"${{{name}}}" for name in panel.scalars]
        drawn = {"y": [], "custom_expressions": [*names, f"{panel.level} + 0 * {names[0]}"]}
    return wr.LinePlot(
        title=panel.title,
        x=panel.x,
        title_x=None if panel.x == TIME else panel.x,
        log_y=panel.log or None,
        range_y=panel.limits,
        plot_type="stacked-area" if panel.stacked else "line",
        **drawn,
    )


def _coordinates(wr: Any, panel: Coordinates) -> Any:
    columns = [wr.Config(option) for option in panel.options] + [wr.SummaryMetric(name) for name in panel.scalars]
    drawn = [wr.ParallelCoordinatesPlotColumn(metric=column) for column in columns]
    return wr.ParallelCoordinatesPlot(title=panel.title, columns=drawn)


PANELS: dict[type, Callable[[Any, Any], Any]] = {
    Lines: _lines,
    Media: lambda wr, panel: wr.MediaBrowser(title=panel.title, media_keys=list(panel.scalars), num_columns=1),
    Bars: lambda wr, panel: wr.BarPlot(title=panel.title, metrics=list(panel.scalars)),
    Importance: lambda wr, panel: wr.ParameterImportancePlot(with_respect_to=panel.scalars[0]),
    Coordinates: _coordinates,
    Differences: lambda wr, _: wr.RunComparer(diff_only="split"),
}
"""How each kind of panel is made; `wr`: the module wandb_workspaces.reports.v2.interface."""
