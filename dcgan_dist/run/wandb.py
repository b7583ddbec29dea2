"""Weights & Biases: one run of the server for one run folder, however often it is stopped; the x axis is images seen.

What leaves the machine: the configuration and environment without anything secret, scalars, pictures, histograms and
the load of CPU and GPU. No command line, no console output; code, git's remote, host name, checkpoints: only if
--wandb.share and --wandb.artifacts ask for them.
"""

import importlib.metadata
import json
import os
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from packaging.version import Version

from dcgan_dist.errors import UserError
from dcgan_dist.location import redacted
from dcgan_dist.run import wandb_folder
from dcgan_dist.run.dashboard import BEST
from dcgan_dist.run.tracker_start import Start, counts_of
from dcgan_dist.run.wandb_artifacts import open_artifacts, shared
from dcgan_dist.run.wandb_history import REPORT, SAMPLES, Received, arrived, ask, best, caption, from_summary, in_folder
from dcgan_dist.run.wandb_key import is_stopped, resolve_mode
from dcgan_dist.run.wandb_service import end_service as _end_service
from dcgan_dist.run.wandb_service import finish
from dcgan_dist.run.wandb_settings import ONCE, hidden, not_used, unreadable
from dcgan_dist.text import counted

if TYPE_CHECKING:
    import wandb


# seconds that a missing server may cost; both fit into the grace time of a job that is stopped
INIT_TIMEOUT = 20.0
FINISH_TIMEOUT = 20.0
OLDEST = "0.30"  # version of wandb
LEAST = 5.0  # seconds for a question that comes when these have passed
STOPPED_ON_REQUEST = 75  # the exit code of a run that will be resumed


def _settings(on_stop: Callable[[], None], share: Collection[str] = ()) -> dict[str, Any]:
    return {
        **shared(share),
        "quiet": True,
        "show_info": False,
        "login_timeout": INIT_TIMEOUT,
        "init_timeout": INIT_TIMEOUT,
        "finish_timeout": FINISH_TIMEOUT,
        "finish_timeout_raises": True,
        # W&B's own way to stop is an interrupt in this process alone, which leaves the other ranks waiting for ever
        "stop_fn": on_stop,
    }


class WandbTracker:
    """The run on the W&B server, or in files under RUN/wandb. On the main rank only.

    Without an answer of the server at the start, `online` becomes `offline`, with one line. A later outage costs
    nothing until `close`, which waits a bounded time and prints how to send the rest. The next attempt that is online
    begins with what the server lacks.
    """

    def __init__(self, start: Start, mode: Literal["online", "offline"], *, timeout: float | None = None) -> None:
        """`timeout`: for `dcgan-dist wandb sync`, the seconds it may take. Raises UserError without a server."""
        config = start.config
        self._say, self._timeout, self._required = start.say, timeout or FINISH_TIMEOUT, timeout is not None
        self._run_dir = config.run_dir.absolute()
        self._rest = f"dcgan-dist wandb sync {shlex.quote(str(self._run_dir))}"
        self._settings = _settings(start.on_stop, config.wandb.share)
        self._settings |= {"finish_timeout": self._timeout, "x_disable_stats": self._required}
        self._logged, self.complete = 0, False
        self._held = wandb_folder.hold(self._run_dir) if mode == "online" else None
        if mode == "online" and self._held is None:
            mode, problem = "offline", "another process is sending this run"
            if self._required:
                raise UserError(f"{self._run_dir}: {problem}; wait for its end")
            self._say(f"WARNING: W&B: {problem}, so this attempt is kept offline")
        lines = not_used(config.wandb, os.environ)
        run_id, new, noted = wandb_folder.run_id(self._run_dir, start.say)
        self._hidden = () if new else ONCE
        if (asked := os.environ.get("WANDB_RUN_ID") or run_id) != run_id:
            lines.append(f"WANDB_RUN_ID={asked}: not used, this folder's run is {run_id}")
            self._hidden += ("WANDB_RUN_ID", "WANDB_SWEEP_ID")  # a sweep would not take another id
        environment = wandb_folder.environment(self._run_dir) | dict(start.environment)
        arguments: dict[str, Any] = {
            **{name: getattr(config.wandb, name) for name in ("project", "entity", "group", "job_type")},
            "dir": os.environ.get("WANDB_DIR") or str(self._run_dir),
            "id": run_id,
            "resume": "allow",  # offline, too: steps go on after those that the server has when the files are sent
            "config": json.loads(json.dumps(asdict(config) | {"environment": environment}, default=str)),
        }
        names = {"name": config.wandb.name or self._run_dir.name, "notes": config.wandb.notes or ""}
        names |= {"tags": config.wandb.tags}
        if new:  # later attempts leave alone what was renamed or tagged by hand
            arguments |= names
        for line in lines:
            self._say(f"W&B: {line}")
        began = time.monotonic()
        self._run = self._online(arguments) if mode == "online" else self._offline(arguments)
        if wandb_folder.note_place(self._run_dir, self._run, noted, new, self._say):
            for name, value in names.items():
                setattr(self._run, name, value)
        elif not new and config.wandb.name not in (None, self._run.name):
            self._say(f"W&B: --wandb.name {config.wandb.name}: not used, the run is {self._run.name}; rename it in W&B")
        self._run.define_metric("images")
        self._run.define_metric("*", step_metric="images")
        self._received = self._ask(timeout or INIT_TIMEOUT - (time.monotonic() - began), start.images)
        if not self._run.offline:
            self._send_missing(start)
        self._artifacts = open_artifacts(start, self._run, self._rest, again=self._required)

    def _online(self, arguments: dict[str, Any]) -> "wandb.Run":
        import wandb

        try:
            run = self._init("online", **arguments)
        except wandb.Error as error:
            reason = str(error).partition("\n")[0]
            _end_service()  # until then the failed attempt holds the run's id
            if self._required:
                raise UserError(f"W&B: {reason}") from error
            hint = f"; without {self._run_dir / wandb_folder.ID} a new run begins" if "deleted" in reason else ""
            self._say(f"WARNING: W&B: this attempt is kept offline: {reason}{hint}")
            return self._offline(arguments)
        self._say(f"W&B: {run.url}")
        return run

    def _offline(self, arguments: dict[str, Any]) -> "wandb.Run":
        run = self._init("offline", **arguments)
        self._say(f"W&B: to send this attempt later: {self._rest}")
        return run

    def _init(self, mode: Literal["online", "offline"], **arguments: Any) -> "wandb.Run":
        import wandb

        # W&B writes to standard error: here everything but warnings is switched off, in init what its service says
        with hidden(*self._hidden):
            wandb.setup(wandb.Settings(**self._settings))
            return wandb.init(mode=mode, settings=wandb.Settings(**self._settings, silent=True), **arguments)

    def _ask(self, seconds: float, images: int) -> Received:
        """What the server has, found in about so many seconds. `images`: where this attempt begins."""
        if self._run.offline:  # the first attempt has shown what is at 0 images
            return Received(lines=None, prefix=0 if images else -1)
        if not self._run.resumed:
            return Received()
        try:
            return ask(self._run, max(seconds, LEAST))
        except Exception as error:
            what = str(error).partition("\n")[0]
            self._say(
                f"WARNING: W&B: the server did not list its reports ({what}); only those after its newest one are sent"
            )
            return from_summary(self._run)

    def _send_missing(self, start: Start) -> None:
        """Sends what the server lacks of the reports and pictures up to where this attempt begins."""
        import wandb

        images, changed, last = start.images, ", ".join(start.config.resume.allow_changes), self._received.last
        if changed and last > images:
            self._say(
                f"WARNING: W&B: from {images:,} to {last:,} images the server keeps the reports of an earlier attempt, "
                f"with its values of {changed}; metrics.jsonl has those of this one"
            )
        wandb_folder.mark_sent(self._run, but=Path(self._run.dir).parent)
        sent, newest = Counter[str](), {}
        for seen, name, what in in_folder(self._run_dir, images):
            newest = {"images": seen, **what} if name == REPORT else newest
            if self._received.lacks(seen, name):
                try:
                    row = what if name == REPORT else {name: wandb.Image(str(what), caption=caption(seen, name))}
                except (OSError, SyntaxError) as error:
                    self._say(f"WARNING: W&B: {what} is not sent, because it cannot be read ({error})")
                    continue
                self._log(seen, row)
                sent[name] += 1
            elif (seen, name) in self._received.no_file:
                copy = Path(self._run.dir, self._received.no_file[seen, name])
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(what, copy)
                self._run.save(str(copy), base_path=self._run.dir, policy="now")
                sent[name] += 1
        if sent:
            what = f"{counted(sent[REPORT], 'report')} and {counted(sent[SAMPLES], 'picture')}"
            self._say(f"W&B: sending {what} that the server does not have, from {self._run_dir}")
            if newest and newest["images"] >= self._received.last:
                self._run.summary.update(newest)  # else it is that of the row that was sent last

    def _log(self, images: int, row: Mapping[str, Any]) -> None:
        try:
            self._run.log({"images": images, **row})
        except Exception as error:
            raise UserError(f"{error}; the rest can be sent later: {self._rest}") from error
        self._logged += 1

    def scalars(self, images: int, values: dict[str, float]) -> None:
        """A row of the history, unless an earlier attempt has sent it."""
        if self._received.lacks(images, REPORT):
            self._log(images, values)

    def picture(self, images: int, name: str, array: NDArray[np.uint8]) -> None:
        """An (H, W, 3) picture."""
        import wandb

        if self._received.lacks(images, name):
            self._log(images, {name: wandb.Image(array, caption=caption(images, name))})

    def histogram(self, images: int, name: str, values: NDArray[np.number]) -> None:
        """The distribution of the finite `values`, of any shape."""
        import wandb

        counts, edges = counts_of(values)
        if counts.any() and self._received.lacks(images, name):
            self._log(images, {name: wandb.Histogram(np_histogram=(counts.tolist(), edges.tolist()))})

    def alert(self, title: str, text: str) -> None:
        """An alert, which W&B sends by mail or Slack. `title`: less than 64 characters."""
        self._run.alert(title, redacted(text), level="WARN")

    def checkpoint(self, path: Path) -> None:
        """A checkpoint that is on disk, for --wandb.artifacts."""
        if self._artifacts:
            self._artifacts.checkpoint(path)

    def close(self, exit_code: int = 0) -> None:
        """Sends what is left, for a bounded time."""
        sent = self._artifacts is None or self._artifacts.finish(self._timeout / 2, done=exit_code == 0)
        if exit_code == STOPPED_ON_REQUEST:
            exit_code = self._stopped()
        end, offline = time.monotonic() + self._timeout, self._run.offline
        try:
            self._run.summary.update(best(self._run_dir, BEST))
            finish(self._run, exit_code, self._timeout)
            self.complete = sent and (offline or self._arrived(end - time.monotonic()))
        except TimeoutError:
            pass
        finally:
            _end_service()  # the files are complete only now
            if self._artifacts:
                self._artifacts.clear()
            if self._held is not None:
                os.close(self._held)
        if not offline:
            wandb_folder.mark_sent(self._run)
        if not self.complete:
            self._say(f"WARNING: W&B: not everything has arrived on the server; the rest: {self._rest}")

    def _arrived(self, seconds: float) -> bool:
        before = self._received.lines
        try:
            return before is None or arrived(self._run.path, before + self._logged, max(seconds, LEAST))
        except Exception:
            return False

    def _stopped(self) -> int:
        """The exit code for W&B after a stop on request. W&B starts a preempted trial of a sweep again, but this must
        not happen to one that W&B itself has stopped, perhaps by its agent's signal.
        """
        run = self._run
        trial = os.environ.get("WANDB_SWEEP_ID") and not run.offline
        if trial and is_stopped(run.entity, run.project, run.id, FINISH_TIMEOUT / 4):
            return 0
        run.mark_preempting()
        return STOPPED_ON_REQUEST


def open_wandb(start: Start) -> WandbTracker | None:
    """W&B as the options and environment variables ask for it, with one line; None: it is off."""
    mode, reason = resolve_mode(start.config.wandb, os.environ)
    for line in unreadable(os.environ):
        start.say(f"W&B: {line}")
    start.say(f"W&B: {mode} ({reason})")
    if mode == "disabled":
        return None
    if Version(found := importlib.metadata.version("wandb")) < Version(OLDEST):
        later = f"dcgan-dist wandb sync {shlex.quote(str(start.config.run_dir))}"
        start.say(f"WARNING: W&B is off: wandb {found} is too old; pip install 'wandb>={OLDEST}', and later {later}")
        return None
    return WandbTracker(start, mode)
