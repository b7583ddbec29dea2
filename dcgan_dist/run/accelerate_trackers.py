"""Other trackers, through Accelerate's tracker API: one adapter for every class that Accelerate knows.

The tool works in a thread of its own. There it cannot take over signals, and the training waits neither for its server
nor for a question that it asks.
"""

import contextlib
import io
import json
import math
import operator
import os
import queue
import shlex
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcgan_dist.data.system.storage import make_folder, write_atomically
from dcgan_dist.parallel.accelerator import tracker_classes
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.tracker_start import Start

START_SECONDS = END_SECONDS = 20.0  # that a tool may delay the training; both fit into the grace time of a job
WAITING = 100  # calls that a slow tool may be behind
# what Comet would record besides
COMET_EXTRAS = ("CODE", "CLI_ARGUMENTS", "GIT_METADATA", "GIT_PATCH", "ENV_HOST", "ENV_DETAILS", "OUTPUT_LOGGER")


@dataclass(frozen=True, kw_only=True)
class Tool:
    """What Accelerate's class for a tool is given.

    Texts may hold {project}, {name} (of the run's folder), {id} (of the tool's run), {files} (its folder in the run's)
    and environment variables.
    """

    label: str = "{project}"  # the class's first argument
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of every attempt
    resume: Mapping[str, Any] | None = None  # and of later ones; None: the tool cannot resume a run
    id: str = ""  # the attribute that holds the id of the tool's run; without one, the tool takes ours
    variables: Mapping[str, str] = field(default_factory=dict)  # environment variables, unless the user sets them
    show: str = ""  # the command that shows the run
    options_once: bool = False  # refuses options that change, such as --images
    one_picture: bool = False  # takes a picture where other classes take a list of them


class AccelerateTracker:
    """A tool behind its class in Accelerate. A call raises what this or an earlier one has caused in the tool.

    The note in the tool's folder holds the id of its run, and up to which number of images it has reports and pictures:
    an attempt that resumes does not send these twice.
    """

    def __init__(self, name: str, kind: type, start: Start) -> None:
        """`kind`: Accelerate's class. Raises ModuleNotFoundError where the tool is not installed."""
        self._name, self._tool, self._say = name, TOOLS.get(name, Tool()), start.say
        files = (RunFolder(start.config.run_dir).trackers / name).absolute()
        make_folder(files)
        self._note = files / "run.json"
        found = json.loads(self._note.read_bytes()) if self._note.exists() else None
        if found and self._tool.resume is None:
            start.say(f"{name}: runs of this tool cannot be resumed, so this attempt is a new one there")
            found = None
        self._new, self._noted = found is None, found or {"id": uuid.uuid4().hex, "sent": {}}
        self._before = dict(self._noted["sent"])
        self._texts = {"project": start.config.wandb.project, "name": start.config.run_dir.absolute().name}
        self._texts |= {"id": self._noted["id"], "files": str(files)}
        for variable, value in self._tool.variables.items():
            os.environ.setdefault(variable, self._filled(value))
        arguments = {**self._tool.arguments, **({} if self._new else self._tool.resume or {})}
        folder = [str(files)] if kind.requires_logging_directory else []
        filled = {key: self._filled(value) for key, value in arguments.items()}
        self._make = partial(kind, self._filled(self._tool.label), *folder, **filled)
        self._tracker: Any = None
        self._pictures, self._options = hasattr(kind, "log_images"), start.options
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(WAITING)
        self._error: Exception | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()
        if not self._started.wait(START_SECONDS):
            start.say(f"{name}: has not started within {START_SECONDS:.0f} s; the training does not wait for it")
        self._raise()

    def scalars(self, images: int, values: dict[str, float]) -> None:
        """A report, without numbers that are not finite."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._send(images, "reports", lambda: self._tracker.log(finite, step=images))

    def picture(self, images: int, name: str, array: NDArray[np.uint8]) -> None:
        """An (H, W, 3) picture, if Accelerate's class takes pictures."""
        if self._pictures:
            values = {name: array if self._tool.one_picture else [array]}
            self._send(images, name, lambda: self._tracker.log_images(values, step=images))

    def histogram(self, images: int, name: str, values: NDArray[np.number]) -> None:
        """Nothing: Accelerate's API has no histograms."""

    def close(self, exit_code: int = 0) -> None:  # noqa: ARG002
        """Waits a bounded time until the tool has everything."""
        self._call(self._finish)
        self._call(None)
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            raise TimeoutError(f"has not finished within {END_SECONDS:.0f} s")
        self._raise()

    # ---- in this thread

    def _filled(self, value: Any) -> Any:
        return value.format_map({**os.environ, **self._texts}) if isinstance(value, str) else value

    def _send(self, images: int, what: str, act: Callable[[], None]) -> None:
        """Has `act` done, unless an earlier attempt has sent this."""

        def acting() -> None:
            act()
            self._noted["sent"][what] = images
            self._write_note()

        if images > self._before.get(what, -1):
            self._call(acting)

    def _call(self, act: Callable[[], None] | None) -> None:
        """Has `act` done in the tool's thread; None ends the thread."""
        self._raise()
        try:
            self._calls.put_nowait(act)
        except queue.Full:
            raise TimeoutError(f"is {WAITING} calls behind") from None

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    # ---- in the tool's thread

    def _work(self) -> None:
        try:
            self._begin()
            self._started.set()
            while act := self._calls.get():
                act()
        except BaseException as error:  # a tool may also ask to exit
            self._error = error if isinstance(error, Exception) else RuntimeError(repr(error))
            self._started.set()
            with contextlib.suppress(BaseException):
                self._tracker.finish()

    def _begin(self) -> None:
        hook = sys.excepthook  # ours shows no secrets
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the output is the trainer's alone, perhaps JSON
                self._tracker = self._make()
                self._tracker.start()
                if self._new or not self._tool.options_once:
                    self._tracker.store_init_configuration(self._options)
        finally:
            sys.excepthook = hook
        if self._tool.id:
            self._noted["id"] = operator.attrgetter(self._tool.id)(self._tracker.tracker)
        self._write_note()
        texts = {name: shlex.quote(text) for name, text in {**os.environ, **self._texts}.items()}
        self._say(f"{self._name}: {(self._tool.show or 'project {project}').format_map(texts)}")

    def _finish(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._tracker.finish()

    def _write_note(self) -> None:
        write_atomically(self._note, json.dumps(self._noted).encode())


TOOLS: dict[str, Tool] = {
    "aim": Tool(
        label="{name}",
        arguments={"experiment": "{project}", "capture_terminal_logs": False},
        resume={"run_hash": "{id}", "force_resume": True},
        id="hash",
        show="aim up --repo {files}",
        one_picture=True,
    ),
    "clearml": Tool(
        arguments={
            "task_name": "{name}",
            "reuse_last_task_id": False,
            "auto_connect_arg_parser": False,
            "auto_connect_frameworks": False,
            "auto_connect_streams": False,
        },
        resume={"reuse_last_task_id": "{id}", "continue_last_task": 0},  # 0: steps are not shifted
        id="id",
        one_picture=True,
    ),
    "comet_ml": Tool(
        arguments={"experiment_key": "{id}", "mode": "get_or_create"},
        resume={},
        variables={"COMET_START_EXPERIMENT_NAME": "{name}", "COMET_OFFLINE_DIRECTORY": "{files}"}
        | {"COMET_DISPLAY_SUMMARY_LEVEL": "0", "COMET_DISABLE_AUTO_LOGGING": "1"}
        | {f"COMET_AUTO_LOG_{what}": "false" for what in COMET_EXTRAS},
    ),
    "dvclive": Tool(
        arguments={"dir": "{files}", "dvcyaml": None, "save_dvc_exp": False},  # no commits in the user's repository
        resume={"resume": True},
    ),
    "mlflow": Tool(
        arguments={"run_name": "{name}"},
        resume={"run_id": "{id}"},
        id="info.run_id",
        options_once=True,
        variables={"MLFLOW_TRACKING_URI": "sqlite:///{files}/mlflow.db", "MLFLOW_DISABLE_TELEMETRY": "true"},
        show="mlflow ui --backend-store-uri {MLFLOW_TRACKING_URI}",
    ),
    "swanlab": Tool(
        arguments={"name": "{name}", "id": "{id}", "resume": "allow", "log_dir": "{files}"},
        resume={},
        variables={"SWANLAB_MODE": "offline", "SWANLAB_TERMINAL_PROXY_TYPE": "none"}
        | {f"SWANLAB_PROBE_{what}": "false" for what in ("RUNTIME", "GIT", "REQUIREMENTS")},
    ),
    "trackio": Tool(
        arguments={"name": "{name}-{id:.8}", "resume": "allow"},
        resume={},
        variables={"TRACKIO_DIR": "{files}"},
        show="TRACKIO_DIR={TRACKIO_DIR} trackio show --project {project}",
    ),
}
"""By Accelerate's names. One that is missing here works, too: each attempt is a run of its own."""


def open_accelerate_tracker(name: str, start: Start) -> AccelerateTracker | None:
    """The tracker of Accelerate's class with this name; None, with one line: it is not installed."""
    try:
        return AccelerateTracker(name, tracker_classes()[name], start)
    except ModuleNotFoundError as error:
        start.say(f"{name}: not installed (pip install {(error.name or name).partition('.')[0]})")
        return None
