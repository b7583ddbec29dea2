"""Where scalars and pictures go besides the run's own files; none of these may ever stop or slow the training."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dcgan_dist.config import Config
from dcgan_dist.run.tensorboard import open_tensorboard
from dcgan_dist.run.wandb import open_wandb

Say = Callable[[str], None]


class Tracker(Protocol):
    """Something that shows a run; `images`, the real images seen, is its x axis. Used on the main rank only."""

    name: str

    def scalars(self, images: int, values: dict[str, float]) -> None:
        """Numbers by name, such as "loss/g"."""
        ...

    def picture(self, images: int, name: str, array: NDArray[np.uint8]) -> None:
        """An (H, W, 3) picture."""
        ...

    def histogram(self, images: int, name: str, values: NDArray[np.floating]) -> None:
        """The distribution of numbers of any shape; those that are not finite are left out."""
        ...

    def alert(self, title: str, text: str) -> None:
        """A warning that a person should hear of."""
        ...

    def close(self, exit_code: int = 0) -> None:
        """The end of this life of the run, with the process's exit code."""
        ...


class Trackers:
    """Several trackers as one. One that raises is switched off, with one line, and the training goes on."""

    name = "trackers"

    def __init__(self, say: Say) -> None:
        """`say` prints a line."""
        self._say = say
        self._trackers: list[Tracker] = []

    def start(self, name: str, make: Callable[[], Tracker | None]) -> None:
        """Adds what `make` returns, if it returns something."""
        try:
            tracker = make()
        except Exception as error:
            self._switched_off(name, error)
        else:
            self._trackers += [tracker] if tracker is not None else []

    def scalars(self, images: int, values: dict[str, float]) -> None:
        """See Tracker."""
        self._each(lambda tracker: tracker.scalars(images, values))

    def picture(self, images: int, name: str, array: NDArray[np.uint8]) -> None:
        """See Tracker."""
        self._each(lambda tracker: tracker.picture(images, name, array))

    def histogram(self, images: int, name: str, values: NDArray[np.floating]) -> None:
        """See Tracker."""
        self._each(lambda tracker: tracker.histogram(images, name, values))

    def alert(self, title: str, text: str) -> None:
        """See Tracker."""
        self._each(lambda tracker: tracker.alert(title, text))

    def close(self, exit_code: int = 0) -> None:
        """See Tracker."""
        self._each(lambda tracker: tracker.close(exit_code))
        self._trackers.clear()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                act(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                self._switched_off(tracker.name, error)
                with contextlib.suppress(Exception):
                    tracker.close(exit_code=1)

    def _switched_off(self, name: str, error: Exception) -> None:
        what = " ".join(str(error).split()) or "no message"
        self._say(f"{name} is switched off, the training goes on: {type(error).__name__}: {what}")


def open_trackers(
    config: Config, images: int, say: Say, on_stop: Callable[[], None], environment: Mapping[str, Any]
) -> Trackers:
    """All trackers that the options ask for, on the main rank.

    `images`: real images seen where this life of the run begins; `say` prints a line; `on_stop` is called, in another
    thread, when somebody stops the run from outside; `environment`, versions and devices, is shown beside the options.
    """
    makers: dict[str, Callable[[], Tracker | None]] = {
        "TensorBoard": lambda: open_tensorboard(config, images, say),
        "W&B": lambda: open_wandb(config, say, on_stop, environment),
    }
    trackers = Trackers(say)
    for name, make in makers.items():
        trackers.start(name, make)
    return trackers
