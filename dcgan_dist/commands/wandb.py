"""`dcgan-dist wandb sync RUN`: sends what the W&B server lacks of a run."""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dcgan_dist import cli
from dcgan_dist.config import Range
from dcgan_dist.errors import UsageError, UserError, to_stderr


@dataclass(frozen=True, kw_only=True)
class WandbOptions(cli.CommandOptions):
    """Send to W&B what its server does not have: reports from metrics.jsonl, pictures from samples/, and the newest and
    the best checkpoint and the generator if the run has --wandb.artifacts.

    For runs that were kept offline, or that a kill or an outage cut off. What the server has is not sent again.
    """

    action: tyro.conf.Positional[Literal["sync"]]
    """sync: send what is missing."""
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders. Their training must have ended."""
    project: str | None = None
    """W&B project. Default: the one of the run."""
    entity: str | None = None
    """W&B user or team. Default: the one of the run."""
    minutes: Annotated[float, Range(least=0.1, most=1440)] = 60
    """Minutes that a run may take."""


def main(argv: list[str]) -> int:
    """Runs the command. Raises UsageError and UserError."""
    options = cli.parse(WandbOptions, argv, "dcgan-dist wandb")
    if not options.runs:
        raise UsageError("RUN is missing: a run's folder, such as runs/dcgan")
    codes = [0]
    for run in options.runs:
        try:
            codes.append(_sync(run, options))
        except UserError as error:  # the other runs are sent all the same
            if len(options.runs) == 1:
                raise
            codes.append(error.exit_code)
            to_stderr(f"error: {error}")
    return max(codes)


def _sync(run: Path, options: WandbOptions) -> int:
    """Sends one run; returns 0 when the server has everything."""
    # only now: importing torch takes seconds
    from dcgan_dist.run.folder import RunFolder
    from dcgan_dist.run.lease import Lease
    from dcgan_dist.run.tracker_start import Start
    from dcgan_dist.run.wandb import STOPPED_ON_REQUEST, WandbTracker
    from dcgan_dist.run.wandb_folder import PLACE, noted_in
    from dcgan_dist.run.wandb_key import credentials
    from dcgan_dist.run.wandb_settings import variables

    folder = RunFolder(run)
    if not folder.config.is_file():
        raise UsageError(f"{run}: not a run folder: {folder.config.name} is missing")
    if not credentials(variables(os.environ)):
        raise UsageError("W&B: there is no API key; `wandb login` stores one, or set WANDB_API_KEY")
    given, noted = ["--config", str(folder.config)], noted_in(run)
    for name in PLACE:
        value = getattr(options, name) or noted.get(name)
        given += [f"--wandb.{name}", value] if value else []
    config = replace(cli.load(given, quiet=True), run_dir=run)
    Lease(run).refuse_other()
    start = Start(config=config, images=sys.maxsize, say=print, on_stop=lambda: None, environment={})
    tracker = WandbTracker(start, "online", timeout=options.minutes * 30)  # half to look, half to send
    ended = {folder.done: 0, folder.preempted: STOPPED_ON_REQUEST}
    tracker.close(next((code for marker, code in ended.items() if marker.exists()), 1))
    return 0 if tracker.complete else 1
