"""What happens between the opening of a lock's file and its locking."""

import fcntl
from collections.abc import Callable

import pytest


def before_next_flock(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], name: str = "flock") -> None:
    """Calls `act` once, when a lock file has been opened and is not locked yet; `name`: the function of fcntl."""
    original = getattr(fcntl, name)

    def first(*arguments: int) -> None:
        monkeypatch.setattr(fcntl, name, original)
        act()
        original(*arguments)

    monkeypatch.setattr(fcntl, name, first)
