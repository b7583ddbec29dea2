"""A clock that the test moves: limits of many minutes are over at an event, on a machine of any speed."""

import time
from collections.abc import Callable

LEAP = 36_000.0
"""Seconds; longer than any limit."""


def never() -> bool:
    return False


class Clock:
    """Put in the place of the module `time` of a module under test: `monotonic` stands still.

    Once `over()` is true it leaps at every reading, but not before the next one: what is looked at between two readings
    is looked at once more after the event.
    """

    def __init__(self, over: Callable[[], bool] = never) -> None:
        self.over, self.now = over, time.monotonic()
        self.readings = 0
        self._leaps = False
        self.sleep = time.sleep

    def monotonic(self) -> float:
        self.now += LEAP if self._leaps else 0
        self._leaps = self._leaps or self.over()
        self.readings += 1
        return self.now
