"""Weights & Biases: one run of the server for one run folder, however often it is stopped; the x axis is images seen.

What leaves the machine: the configuration and environment without anything secret, scalars, pictures, histograms and
the load of CPU and GPU. No code, no command line, no host name, no git state, no console output.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dcgan_dist.config import Config
from dcgan_dist.config.groups import WandbConfig
from dcgan_dist.data.system.storage import write_atomically
from dcgan_dist.errors import UserError
from dcgan_dist.run.wandb_key import credentials, is_stopped
from dcgan_dist.run.wandb_settings import ONCE, Mode, asked_mode, hidden, not_used, unreadable, variables

if TYPE_CHECKING:
    import wandb

# seconds that a missing server may cost; both fit into the grace time of a job that is stopped
INIT_TIMEOUT = 20.0
FINISH_TIMEOUT = 20.0
NOTE, PLACE = "wandb_folder.json", ("entity", "project")  # the run's place on the server, which the file records
STOPPED_ON_REQUEST = 75  # the exit code of a run that will be resumed


def resolve_mode(config: WandbConfig, env: Mapping[str, str]) -> tuple[Mode, str]:
    """W&B's mode, and the reason."""
    asked = asked_mode(env)
    if config.mode != "auto":
        instead = f", not {asked[1]}" if asked and asked[0] != config.mode else ""
        return config.mode, f"--wandb.mode {config.mode}{instead}"
    if asked:
        return asked
    if found := credentials(variables(env)):
        return "online", found.where
    return "disabled", "no API key; `wandb login` or --wandb.mode offline turns it on"


def _run_id(run_dir: Path, say: Callable[[str], None]) -> tuple[str, bool, dict[str, Any]]:
    """The folder's W&B run, whether it is new, and what `wandb_folder.json` records of it.

    Raises wandb.Error for a WANDB_RUN_ID that is no id. A copy of the folder (neither path nor inode are those in the
    file) gets its own run. A folder that was moved to another disk looks the same; the line explains what to do.
    """
    import wandb

    path, note = run_dir / "wandb_id", run_dir / NOTE
    here = {"path": str(run_dir.resolve()), "inode": run_dir.stat().st_ino}
    before: dict[str, Any] = {}
    with contextlib.suppress(OSError, TypeError, ValueError):
        before = dict(json.loads(note.read_bytes()))
    known = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    copied = bool(known and before) and not any(before.get(name) == value for name, value in here.items())
    made = known if known and not copied else os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    noted = (before if made == known else {}) | here
    if made != known:
        wandb.Settings(run_id=made)
        write_atomically(path, f"{made}\n".encode())
    if copied:
        say(
            f"W&B: this folder is a copy of {before.get('path')}, whose run is {known}; its own is {made}. If it was "
            f"moved from another disk: stop, write {known} into {path}, and start again"
        )
    if noted != before:
        write_atomically(note, json.dumps(noted).encode())
    return made, made != known, noted


def _path(place: Mapping[str, Any]) -> str:
    return "/".join(place[name] for name in PLACE if place[name])


def _settings(on_stop: Callable[[], None]) -> dict[str, Any]:
    return {
        "console": "off",
        "quiet": True,
        "show_info": False,
        "disable_git": True,
        "disable_code": True,
        "x_disable_meta": True,
        "x_save_requirements": False,
        "host": "",
        "program": "dcgan_dist.train",
        "login_timeout": INIT_TIMEOUT,
        "init_timeout": INIT_TIMEOUT,
        "finish_timeout": FINISH_TIMEOUT,
        "finish_timeout_raises": True,
        # W&B's own way to stop is an interrupt in this process alone, which leaves the other ranks waiting for ever
        "stop_fn": on_stop,
    }


def _end_service() -> None:
    """Ends the process that keeps and sends W&B's files; it would otherwise end with this one."""
    import wandb

    with contextlib.suppress(SystemExit):  # raised if that process was killed, which is no reason to end this one
        wandb.teardown()


class WandbTracker:
    """The run on the W&B server, or in files under RUN/wandb that `wandb sync` sends later. On the main rank only.

    Without an answer of the server at the start, `online` becomes `offline`, with one line. A later outage costs
    nothing until `close`, which waits a bounded time and prints how to send the rest.
    """

    def __init__(
        self,
        config: Config,
        mode: Literal["online", "offline"],
        *,
        say: Callable[[str], None],
        on_stop: Callable[[], None],
        environment: Mapping[str, Any],
    ) -> None:
        """Opens the run. The arguments are those of `trackers.Start`."""
        self._say = say
        self._run_dir = config.run_dir.absolute()
        self._settings = _settings(on_stop)
        lines = not_used(config.wandb, os.environ)
        run_id, new, noted = _run_id(self._run_dir, say)
        self._hidden = () if new else ONCE
        if (asked := os.environ.get("WANDB_RUN_ID") or run_id) != run_id:
            lines.append(f"WANDB_RUN_ID={asked}: not used, this folder's run is {run_id}")
            self._hidden += ("WANDB_RUN_ID", "WANDB_SWEEP_ID")  # a sweep would not take another id
        arguments: dict[str, Any] = {
            **{name: getattr(config.wandb, name) for name in ("project", "entity", "group")},
            "dir": os.environ.get("WANDB_DIR") or str(self._run_dir),
            "id": run_id,
            "config": json.loads(json.dumps(asdict(config) | {"environment": environment}, default=str)),
        }
        names = {"name": os.environ.get("WANDB_NAME") or self._run_dir.name, "tags": config.wandb.tags}
        if new:  # later attempts leave alone what was renamed or tagged by hand
            arguments |= names
        for line in lines:
            say(f"W&B: {line}")
        self._run = self._online(arguments) if mode == "online" else self._offline(arguments)
        if self._note_place(noted, new):
            for name, value in (names | {"notes": os.environ.get("WANDB_NOTES", "")}).items():
                setattr(self._run, name, value)
        self._run.define_metric("images")
        self._run.define_metric("*", step_metric="images")
        # a resumed run repeats the images between its checkpoint and its end, and W&B would show both; a picture
        # at the last of them may have been lost, and twice the same does no harm
        self._sent = int(self._run.summary.get("images", -1)) if self._run.resumed else -1

    def _note_place(self, noted: dict[str, Any], new: bool) -> bool:
        """Records the run's entity and project; whether an old run begins there, which is printed."""
        here = {name: getattr(self._run, name) for name in PLACE}  # online with the entity of the key
        before = {name: noted.get(name) for name in PLACE}
        moved = any(before[name] and here[name] and before[name] != here[name] for name in PLACE)
        begins = not new and not self._run.resumed and (moved or not self._run.offline)
        if begins:
            was = f"in {_path(before)}" if moved else "kept offline, or in another project"
            self._say(
                f"W&B: until now this folder's run {self._run.id} was {was}; in {_path(here)} it begins now, without "
                "the earlier reports. If that is not meant: stop, and give --wandb.project and --wandb.entity as before"
            )
        place = {name: here[name] or noted.get(name) for name in PLACE}
        with contextlib.suppress(UserError):  # the next attempt notes it
            write_atomically(self._run_dir / NOTE, json.dumps(noted | place).encode())
        return begins

    def _online(self, arguments: dict[str, Any]) -> "wandb.Run":
        import wandb

        try:
            run = self._init("online", resume="allow", **arguments)
        except wandb.Error as error:
            self._say(f"W&B: no answer, this attempt is kept offline: {str(error).partition(chr(10))[0]}")
            _end_service()  # until then the failed attempt holds the run's id
            return self._offline(arguments)
        self._say(f"W&B: {run.url}")
        return run

    def _offline(self, arguments: dict[str, Any]) -> "wandb.Run":
        run = self._init("offline", **arguments)
        self._say(f"W&B: to send this attempt later: wandb sync {Path(run.dir).parent}")
        return run

    def _init(self, mode: Literal["online", "offline"], **arguments: Any) -> "wandb.Run":
        import wandb

        # W&B writes to standard error: here everything but warnings is switched off, in init what its service says
        with hidden(*self._hidden):
            wandb.setup(wandb.Settings(**self._settings))
            return wandb.init(mode=mode, settings=wandb.Settings(**self._settings, silent=True), **arguments)

    def scalars(self, images: int, values: dict[str, float]) -> None:
        """A row of the history, unless an earlier attempt has sent it."""
        if images > self._sent:
            self._run.log({"images": images, **values})

    def picture(self, images: int, name: str, array: NDArray[np.uint8]) -> None:
        """An (H, W, 3) picture."""
        import wandb

        if images >= self._sent:
            self._run.log({"images": images, name: wandb.Image(array)})

    def histogram(self, images: int, name: str, values: NDArray[np.floating]) -> None:
        """The distribution of the finite `values`, of any shape."""
        import wandb

        finite = values[np.isfinite(values)]
        if images >= self._sent and finite.size:
            self._run.log({"images": images, name: wandb.Histogram(np_histogram=np.histogram(finite, bins=64))})

    def alert(self, title: str, text: str) -> None:
        """An alert, which W&B sends by mail or Slack. `title`: less than 64 characters."""
        self._run.alert(title, text, level="WARN")

    def close(self, exit_code: int = 0) -> None:
        """Sends what is left, for a bounded time."""
        if exit_code == STOPPED_ON_REQUEST:
            exit_code = self._stopped()
        rest = f"wandb sync --include-online {Path(self._run.dir).parent}"
        try:
            self._run.finish(exit_code=exit_code)
        except TimeoutError:
            self._say(f"W&B: not everything was sent in {FINISH_TIMEOUT:.0f} s; the rest: {rest}")
        finally:
            _end_service()  # the files are complete only now

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


def open_wandb(
    config: Config, say: Callable[[str], None], on_stop: Callable[[], None], environment: Mapping[str, Any]
) -> WandbTracker | None:
    """W&B as the options and environment variables ask for it, with one line; None: it is off."""
    mode, reason = resolve_mode(config.wandb, os.environ)
    for line in unreadable(os.environ):
        say(f"W&B: {line}")
    say(f"W&B: {mode} ({reason})")
    return None if mode == "disabled" else WandbTracker(config, mode, say=say, on_stop=on_stop, environment=environment)
