"""W&B's workspaces and reports: made of `dashboard.SECTIONS` with the package wandb-workspaces."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.run.dashboard import (
    SECTIONS,
    TIME,
    Bars,
    Coordinates,
    Differences,
    Importance,
    Lines,
    Media,
    Panel,
    Section,
)

COLUMNS, ROWS = 3, 2  # panels of a section that are seen at once
WIDTH, HEIGHT, FULL_WIDTH = 8, 6, 24  # of a panel in a report, in W&B's units
LONGEST_TITLE = 128  # characters, of a report


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
            problem = "W&B has no such run there; `dcgan-dist wandb sync RUN` sends what was kept offline"
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
