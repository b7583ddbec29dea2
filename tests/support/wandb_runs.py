"""Attempts of a run that W&B tracks, and what the server has of it."""

from collections.abc import Callable, Mapping
from typing import Any

from support.fake_wandb import FakeWandb, Run

from dcgan_dist.config import Config
from dcgan_dist.run.tracker_start import Start
from dcgan_dist.run.wandb import WandbTracker, open_wandb


def beginning(
    config: Config,
    said: list[str],
    on_stop: Callable[[], None] = lambda: None,
    environment: Mapping[str, Any] | None = None,
    images: int = 0,
) -> Start:
    """What a tracker of an attempt is opened with."""
    return Start(config=config, images=images, say=said.append, on_stop=on_stop, environment=environment or {})


def start(*given: Any, **named: Any) -> WandbTracker:
    """The tracker of an attempt that begins as `beginning`."""
    tracker = open_wandb(beginning(*given, **named))
    assert tracker is not None
    return tracker


def the_run(server: FakeWandb) -> Run:
    (run,) = server.runs.values()
    return run


def points(rows: list[dict[str, Any]], name: str) -> list[tuple[int, Any]]:
    return [(row["images"], row[name]) for row in rows if name in row]
