"""Decisions that all ranks must take in the same iteration."""

import time
from collections.abc import Callable
from typing import NamedTuple

from dcgan_dist.parallel.world import World

ASK_EVERY = 1.0  # seconds


class Requests(NamedTuple):
    """The requests on a rank, or on any of them."""

    stop: bool = False
    save: bool = False


class Agreement:
    """Combines the requests of all ranks, about once a second instead of in every iteration.

    The ranks also agree on the number of iterations until the next exchange.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._until_next = 0
        self._every = 1
        self._asked = time.monotonic()

    def ask(self, requests: Callable[[], Requests]) -> Requests:
        """Every rank calls it once per iteration, and all get the same answer. `requests` may be slow."""
        if self._until_next > 0:
            self._until_next -= 1
            return Requests()
        now = time.monotonic()
        pace = max((now - self._asked) / self._every, 1e-6)  # seconds per iteration
        # at most doubled, because the first iterations are slow
        every = min(max(round(ASK_EVERY / pace), 1), 2 * self._every)
        *agreed, self._every = self._world.maximum(*map(int, requests()), every)
        self._until_next, self._asked = self._every - 1, now
        return Requests(*map(bool, agreed))
