"""Where scalars and pictures go besides the run's own files; no tracker can stop or slow the training."""

import contextlib
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dcgan_dist.errors import UsageError
from dcgan_dist.parallel.accelerator import tracker_classes
from dcgan_dist.run.accelerate_trackers import open_accelerate_tracker
from dcgan_dist.run.tensorboard import open_tensorboard
from dcgan_dist.run.tracker_start import Start
from dcgan_dist.run.wandb import open_wandb
from dcgan_dist.text import Say

LONGEST_ERROR = 500  # characters, in the line of a tracker that failed


class Tracker(Protocol):
    """Something that shows a run; `images`, the real images seen, is its x axis. Used on the main rank only.

    It may also have `alert(title: str, text: str)`: a warning that a person should see, and `checkpoint(path: Path)`:
    a checkpoint's folder that is on disk, and may be removed after the call.
    """

    def scalars(self, images: int, values: dict[str, float]) -> None:
        """Numbers by name, such as "loss/g"."""
        ...

    def picture(self, images: int, name: str, array: NDArray[np.uint8]) -> None:
        """An (H, W, 3) picture."""

    def histogram(self, images: int, name: str, values: NDArray[np.number]) -> None:
        """The distribution of numbers of any shape; those that are not finite are left out."""

    def close(self, exit_code: int = 0) -> None:
        """The end of this attempt, with the process's exit code."""


class Trackers:
    """Several trackers as one. One that raises is switched off, with one line, and the training goes on."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._trackers: list[tuple[str, Tracker]] = []

    def start(self, name: str, make: Callable[[], Tracker | None]) -> None:
        """Adds what `make` returns, if it returns something."""
        try:
            tracker = make()
        except Exception as error:
            self._switched_off(name, error)
        else:
            self._trackers += [(name, tracker)] if tracker is not None else []

    def scalars(self, images: int, values: dict[str, float]) -> None:
        """See Tracker."""
        self._each(lambda tracker: tracker.scalars(images, dict(values)))  # a copy: a tracker may change it

    def picture(self, images: int, name: str, array: NDArray[np.uint8]) -> None:
        """See Tracker."""
        self._each(lambda tracker: tracker.picture(images, name, array.copy()))

    def histogram(self, images: int, name: str, values: NDArray[np.number]) -> None:
        """See Tracker."""
        self._each(lambda tracker: tracker.histogram(images, name, values.copy()))

    def alert(self, title: str, text: str) -> None:
        """See Tracker."""
        self._each(lambda tracker: getattr(tracker, "alert", lambda *_: None)(title, text))

    def checkpoint(self, path: Path) -> None:
        """See Tracker."""
        self._each(lambda tracker: getattr(tracker, "checkpoint", lambda *_: None)(path))

    def close(self, exit_code: int = 0) -> None:
        """See Tracker."""
        self._each(lambda tracker: tracker.close(exit_code))
        self._trackers.clear()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers):
            try:
                act(tracker)
            except Exception as error:
                self._trackers.remove((name, tracker))
                self._switched_off(name, error)
                with contextlib.suppress(Exception):
                    tracker.close(exit_code=1)

    def _switched_off(self, name: str, error: Exception) -> None:
        # also of an error that has no text, or cannot be printed
        what = " ".join("".join(traceback.format_exception_only(type(error), error)).split())[:LONGEST_ERROR]
        self._say(f"WARNING: {name} is switched off, the training goes on: {what}")


TRACKERS: dict[str, Callable[[Start], Tracker | None]] = {"tensorboard": open_tensorboard, "wandb": open_wandb}
"""By their names in --trackers, before those of Accelerate. None: not installed, or its own options switch it off."""
TITLES = {"tensorboard": "TensorBoard", "wandb": "W&B"}


def check_trackers(names: Sequence[str]) -> None:
    """Raises UsageError for a name that neither this project nor Accelerate knows."""
    if others := [name for name in names if name not in TRACKERS]:
        known = dict.fromkeys([*TRACKERS, *tracker_classes()])  # imports torch, so that options are parsed without it
        for name in others:
            if name not in known:
                raise UsageError(f"--trackers {name}: there is no such tracker; known are {', '.join(known)}")


def open_trackers(start: Start) -> Trackers:
    """All trackers that the options ask for, on the main rank."""
    trackers = Trackers(start.say)
    for name in start.config.trackers:
        make = TRACKERS.get(name, partial(open_accelerate_tracker, name))
        trackers.start(TITLES.get(name, name), lambda make=make: make(start))
    return trackers
