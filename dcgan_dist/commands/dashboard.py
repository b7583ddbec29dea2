"""`dcgan-dist dashboard`: a W&B workspace for the runs of a project, or a report of some of them."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dcgan_dist import cli
from dcgan_dist.config.run_groups import WandbConfig
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.run import wandb_folder, wandb_views
from dcgan_dist.run.wandb_key import ask_server
from dcgan_dist.run.wandb_settings import obey

TIMEOUT = 20.0  # seconds, for each answer of the server


@dataclass(frozen=True, kw_only=True)
class DashboardOptions(cli.CommandOptions):
    """Create or update a W&B workspace for the runs of a project, or write a W&B report of some of them."""

    project: str | None = None
    """W&B project, which exists. Default: as in training, WANDB_PROJECT or dcgan_dist."""
    entity: str | None = None
    """W&B user or team. Default: WANDB_ENTITY, or that of the API key."""
    name: str = "dcgan_dist"
    """Name of the workspace's view. The same name again updates it; its filters, order and colours of runs stay."""
    report: tuple[str, ...] = ()
    """Write a new report of these runs instead: their ids on W&B, or their folders."""


def main(argv: list[str]) -> int:
    """Runs the command. Raises UsageError and UserError."""
    options = cli.parse(DashboardOptions, argv, "dcgan-dist dashboard")
    if find_spec("wandb_workspaces") is None:
        raise UsageError("dcgan-dist dashboard needs wandb-workspaces: pip install 'dcgan_dist[dashboard]'")
    runs = [_in_folder(run) if Path(run).is_dir() else {"id": run} for run in options.report]
    asked = obey(WandbConfig(), os.environ, ())
    place = {name: _place(name, getattr(options, name), runs) or getattr(asked, name) for name in ("entity", "project")}
    answer = ask_server(TIMEOUT)
    if not answer.accepted:
        raise UserError(f"W&B: {answer.what}; `wandb login` stores a key, and WANDB_BASE_URL names another server")
    os.environ["WANDB_SILENT"] = "true"  # what matters is printed here
    try:
        if runs:
            print(f"report: {wandb_views.save_report(**place, run_ids=[run['id'] for run in runs])}")
        else:
            print(f"workspace: {wandb_views.save_workspace(**place, name=options.name)}")
    except UserError:
        raise
    except Exception as error:  # the client's errors have no class in common
        cause, now = error.__cause__ or error, ask_server(TIMEOUT / 4)
        what = " ".join(str(cause).split())[:500] or type(cause).__name__
        if not now.accepted:  # else the client only says that it waited
            what = now.what
        raise UserError(f"W&B did not take it: {what}") from error
    return 0


def _in_folder(run: str) -> dict[str, Any]:
    """A run folder's id, entity and project on W&B."""
    try:
        run_id = (Path(run) / wandb_folder.ID).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UsageError(f"--report {run}: no run on W&B belongs to this folder ({error.strerror})") from error
    return wandb_folder.noted_in(Path(run)) | {"id": run_id}


def _place(name: str, given: str | None, runs: list[dict[str, Any]]) -> str | None:
    """The entity or project that was given, else that of the folders. Raises UsageError if they are in several."""
    found = {run[name] for run in runs if run.get(name)}
    if given is None and len(found) > 1:
        raise UsageError(f"--report: the runs are in {' and '.join(sorted(found))}; a report is of one {name}")
    return given or next(iter(found), None)
