"""What a run's folder says about the run."""

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from dcgan_dist.errors import UsageError
from dcgan_dist.location import Location, redacted
from dcgan_dist.run.attempts import Attempt, read_attempts
from dcgan_dist.run.checkpoint_manifest import NAME, is_checkpoint
from dcgan_dist.run.console import human_time
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.report.history import History, read_history
from dcgan_dist.text import listed

T = TypeVar("T")
ALIVE = 60.0  # seconds since the owner's last heartbeat, after which an attempt without an end was probably killed
NAMES_LISTED = 4
Kind = Literal["restart", "rollback", "fault", "end"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to the run."""

    kind: Kind
    images: int  # where it is shown
    text: str
    time: str | None = None  # UTC, ISO 8601


@dataclass(kw_only=True)
class Run:
    """One run, as far as its folder can be read."""

    folder: RunFolder
    name: str
    options: dict[str, str]  # dotted name -> value as text, without secrets; in the order of the schema
    history: History
    attempts: list[Attempt]
    environment: dict[str, Any]
    problems: list[str] = field(default_factory=list)  # what could not be read
    state: str = ""  # one word: complete, stopped, failed, running, killed
    detail: str = ""  # and the reason

    def __post_init__(self) -> None:
        self.state, self.detail = state_of(self.folder, self.attempts, "before this page was written")

    @property
    def images(self) -> int:
        """Real images seen, as far as is known."""
        ends = [attempt.end_images or attempt.images for attempt in self.attempts[-1:]]
        return max([*ends, *self.history.images[-1:].tolist()], default=0)

    def checkpoints(self) -> list[int]:
        """Images of the checkpoints in the folder."""
        paths = self.folder.checkpoints.glob("*")
        return sorted(int(path.name) for path in paths if NAME.fullmatch(path.name) and is_checkpoint(path))

    def events(self) -> list[Event]:
        """Restarts, rollbacks, faults and the end, in the order of the attempts and of images."""
        history = self.history
        found = [event for number in range(len(self.attempts)) for event in _of_attempt(self.attempts, number)]
        found += [
            Event(
                kind="rollback",
                images=rollback.images,
                time=rollback.time,
                text=f"rolled back from {rollback.since:,} to {rollback.images:,} images: {redacted(rollback.reason)}",
            )
            for rollback in history.rollbacks
        ]
        for images, names in history.not_finite.items():
            text = f"{listed(names, NAMES_LISTED)} not finite in the report at {images:,} images"
            found.append(Event(kind="fault", images=images, text=text))
        substituted = history.last("data/substituted")
        if substituted:
            text = f"{substituted:,.0f} damaged images were replaced by others"
            found.append(Event(kind="fault", images=int(history.images[-1]), text=text))
        return found


def shown(value: Any) -> str:
    """An option's value as text without secrets; the same for a value and for its text in config.yaml."""
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "none"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    text = redacted(str(value if isinstance(value, Location) else Location(str(value))))
    try:
        return text if text.isdecimal() else f"{float(text):.15g}"  # 1.0e-05 is 1e-05
    except ValueError:
        return text


def is_run(root: Path) -> bool:
    """Whether a folder has anything of a run."""
    folder = RunFolder(root)
    own = folder.config, folder.metrics, folder.environment, folder.attempts, folder.checkpoints
    return any(path.exists() for path in own)


def read_run(root: Path, options: Mapping[str, Any], problems: list[str], until: float = math.inf) -> Run:
    """A run by its folder. Raises UsageError where there is none.

    Args:
        root: the folder.
        options: dotted names with values, or their texts, as of config.yaml.
        problems: lines on what could not be read, to which more are added.
        until: time.monotonic() at which to give up by TimeoutError.
    """
    folder = RunFolder(root)
    if not is_run(root):
        what = "is no folder" if not root.is_dir() else "holds no run (no config.yaml, no metrics.jsonl)"
        raise UsageError(f"{root}: {what}; name a run's folder, such as runs/dcgan")

    def tried(path: Path, read: Callable[[Path], T], default: T) -> T:
        try:
            return read(path) if path.exists() else default
        except TimeoutError:
            raise
        except (OSError, ValueError, TypeError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "not what training writes"
            problems.append(f"{path.name} cannot be read ({reason})")
            return default

    history = tried(folder.metrics, lambda path: read_history(path, until), History())
    if history.unread:
        problems.append(f"{history.unread:,} lines of metrics.jsonl are no reports, and are left out")
    return Run(
        folder=folder,
        name=root.resolve().name,
        options={name: shown(value) for name, value in options.items()},
        history=history,
        attempts=tried(folder.attempts, read_attempts, []),
        environment=tried(folder.environment, lambda path: dict(json.loads(path.read_bytes())), {}),
        problems=problems,
    )


def state_of(folder: RunFolder, attempts: list[Attempt], since: str = "ago") -> tuple[str, str]:
    """The state of a run now: complete, stopped, failed, running, killed or unknown; and details.

    `since`: what follows the time since its last heartbeat.
    """
    if folder.done.is_file():
        return "complete", ""
    with suppress(OSError):  # a new attempt removes the file
        reason = [*folder.preempted.read_text(errors="replace").splitlines(), "", ""][1]
        return "stopped", f"{redacted(reason)}; the same command resumes it"
    if attempts and attempts[-1].end:
        return "failed", attempts[-1].reason or ""
    try:
        owner = dict(json.loads((folder.root / "owner.json").read_bytes()))
        age = max(time.time() - (folder.root / "owner.json").stat().st_mtime, 0.0)
    except (OSError, ValueError, TypeError):
        return "unknown", "how it ended is not recorded"
    if age < ALIVE and not owner.get("ended"):
        return "running", f"last heartbeat {human_time(age)} {since}"
    return "killed", f"no end was recorded, and the last heartbeat was {human_time(age)} {since}"


def _of_attempt(attempts: list[Attempt], number: int) -> list[Event]:
    """Its begin, unless it is the first, and its end."""
    attempt, found = attempts[number], []
    if number:
        before = attempts[number - 1]
        text = f"attempt {attempt.number} began at {attempt.images:,} images"
        if before.end is None:
            text += f"; attempt {before.number} was killed"
        if attempt.reached is not None and attempt.reached > attempt.images:
            text += f", and {attempt.reached - attempt.images:,} images are trained again"
        found.append(Event(kind="restart", images=attempt.images, text=text, time=attempt.begin))
    if attempt.end is not None:
        text = f"attempt {attempt.number} ended at {attempt.end_images or 0:,} images: {attempt.reason}"
        found.append(Event(kind="end", images=attempt.end_images or 0, text=text, time=attempt.end))
    return found
