"""Waiting for an event, for as long as a busy machine may need."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
LIMIT = 600
"""Seconds after which a test takes something for hanging. What is healthy must not come near it on a busy machine."""


def until(happened: Callable[[], T]) -> T:
    """Waits until something is true; returns what it was. Raises AssertionError after LIMIT seconds."""
    deadline = time.monotonic() + LIMIT
    while not (what := happened()):
        assert time.monotonic() < deadline, f"waited in vain for {LIMIT} s"
        time.sleep(0.005)
    return what
