"""What the W&B server has of a run, and what the run's folder has: metrics.jsonl and samples/ are the truth.

The server lacks what W&B had not sent when a process was killed, what an outage lost, and attempts that were kept
offline. What it has is known by the number of images and by name, so nothing is sent twice.
"""

import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from dcgan_dist.run.jsonl import NOT_FINITE

if TYPE_CHECKING:
    import wandb
    from wandb.apis.public import Run

T = TypeVar("T")
Item = tuple[int, str]  # images seen, and the name of a picture or a histogram, or REPORT
REPORT = ""  # the scalars of a report
SAMPLES = "samples"  # the pictures of the folder of that name
REAL = "real"  # the picture of real images, at 0 images
POLL = 0.5  # seconds between two questions for what the server has received and does not show yet


@dataclass(kw_only=True)
class Received:
    """What the server has of a run."""

    lines: int | None = 0  # rows of its history; None: unknown
    prefix: int = -1  # everything up to so many images is there
    items: Counter[Item] = field(default_factory=Counter)
    no_file: dict[Item, str] = field(default_factory=dict)  # picture -> its path on the server, where it is missing
    passed: Counter[Item] = field(default_factory=Counter)  # what this attempt compared

    def lacks(self, images: int, name: str) -> bool:
        """Whether the next item of this name at so many images is to be sent; a rollback repeats them."""
        if name == REAL and self.passed[images, name]:
            return False  # there is one
        self.passed[images, name] += 1
        return images > self.prefix and self.passed[images, name] > self.items[images, name]

    @property
    def last(self) -> int:
        """Images of the newest item."""
        return max((images for images, _ in self.items), default=self.prefix)


def caption(images: int, name: str = SAMPLES) -> str:
    """That of a picture."""
    return "real images" if name == REAL else f"{images:,} images"


def best(run_dir: Path, directions: Mapping[str, Literal["min", "max"]]) -> dict[str, float]:
    """The best value of each scalar in the run's reports, as best/NAME, and its images seen, as best_images/NAME."""
    found: dict[str, float] = {}
    for images, kind, values in in_folder(run_dir, sys.maxsize):
        for name, direction in directions.items() if kind == REPORT else ():
            value, before = values.get(name), found.get(f"best/{name}")
            if not isinstance(value, int | float) or not math.isfinite(value):
                continue
            if before is None or (value < before if direction == "min" else value > before):
                found |= {f"best/{name}": value, f"best_images/{name}": images}
    return found


def in_folder(run_dir: Path, images: int) -> Iterator[tuple[int, str, Any]]:
    """The run's reports as dicts, and its pictures as paths, of at most `images` images, in order."""
    found: list[tuple[int, str, Any]] = []
    with suppress(FileNotFoundError):
        for line in (run_dir / "metrics.jsonl").read_bytes().splitlines():
            with suppress(ValueError, KeyError, TypeError):  # an incomplete line, or a foreign one
                values = json.loads(line)
                finite = {name: NOT_FINITE.get(str(value), value) for name, value in values.items()}
                found.append((int(values["images"]), REPORT, finite))
    paths = (path for path in (run_dir / SAMPLES).glob("*.png") if path.stem.isdecimal())
    found += ((int(path.stem), SAMPLES, path) for path in paths)
    if (real := run_dir / f"{REAL}.png").exists():
        found.append((0, REAL, real))
    return (item for item in sorted(found, key=lambda item: item[:2]) if item[0] <= images)


def ask(run: "wandb.Run", timeout: float) -> Received:
    """What the server has of a run that was just opened. `timeout`: seconds.

    Raises TimeoutError, wandb.Error, and whatever W&B's client makes of an answer that it does not understand.
    """
    return within(timeout, lambda given_up: _scan(run, given_up))


def _on_server(path: str) -> "Run":
    import wandb

    return wandb.Api(overrides={"entity": path.split("/")[0]}).run(path)  # else it asks for the key's own entity


def _scan(run: "wandb.Run", given_up: threading.Event) -> Received:
    found = _on_server(run.path)
    while found.lastHistoryStep < run.starting_step - 1 and not given_up.wait(POLL):
        pass
    received, paths = Received(lines=found.historyLineCount), dict[str, Item]()
    for row in found.scan_history(use_cache=False):
        if given_up.is_set():
            break
        if row.get("images") is not None:
            images = int(row["images"])
            received.items.update((images, name) for name in _names(row))
            for name in (SAMPLES, REAL):
                with suppress(KeyError, TypeError):
                    paths[row[name]["path"]] = (images, name)
    if paths:
        files = found.files(names=list(paths), per_page=len(paths))
        missing = paths.keys() - {file.name for file in files if file.size}
        received.no_file = {paths[path]: path for path in missing}
    return received


def _names(row: Mapping[str, Any]) -> set[str]:
    """The items in a row of the history: those of pictures and histograms, which are dicts, and REPORT for numbers."""
    found = set[str]()
    for name, value in row.items():
        if name != "images" and not name.startswith("_") and value is not None:
            base, flattened, _ = name.partition(".")
            found.add(base if flattened or isinstance(value, dict) else REPORT)
    return found


def from_summary(run: "wandb.Run") -> Received:
    """What a server has that does not show its history: rows arrive in order, so it is all up to the last one."""
    images = int(run.summary.get("images", -1))
    received = Received(lines=None, prefix=images - 1, items=Counter({(images, REPORT): 1}))
    with suppress(AttributeError):
        received.items[images, SAMPLES] += run.summary.get(SAMPLES).get("caption") == caption(images)
    return received


def arrived(path: str, lines: int, timeout: float) -> bool:
    """Whether the server has so many rows of the run `path`, now or within `timeout` seconds. Raises as `ask`."""
    end = time.monotonic() + timeout

    def look(given_up: threading.Event) -> bool:
        while _on_server(path).historyLineCount < lines:
            if given_up.wait(POLL) or time.monotonic() + POLL > end:
                return False
        return True

    return within(timeout, look)


def within(seconds: float, act: Callable[[threading.Event], T]) -> T:
    """The result of `act`, in a thread; its event is set when it took too long. Raises TimeoutError and its error."""
    results: list[T] = []
    errors: list[Exception] = []
    given_up = threading.Event()

    def work() -> None:
        try:
            results.append(act(given_up))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="asks W&B", daemon=True)
    thread.start()
    thread.join(seconds)
    if results:
        return results[0]
    if errors:
        raise errors[0]
    given_up.set()
    raise TimeoutError(f"no answer within {seconds:.0f} s")
