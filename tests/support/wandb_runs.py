"""W&B in tests: its environment and the stand-in for its server, attempts of a run, and what the server has of it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.fake_wandb import FakeWandb, Run

from dcgan_dist.config import Config
from dcgan_dist.run import wandb as run_wandb
from dcgan_dist.run.tracker_start import Start
from dcgan_dist.run.wandb import WandbTracker, open_wandb


def isolate(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """W&B finds no account and no settings of the person who runs the tests."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_PROJECT", "WANDB_ENTITY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    """The server, to which the environment leads; the client stops before it."""
    with FakeWandb() as server:
        for name, value in server.env().items():
            monkeypatch.setenv(name, value)
        yield server
        run_wandb._end_service()


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
