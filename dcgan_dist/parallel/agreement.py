"""Decisions that all ranks must take at the same iteration."""

import time
from collections.abc import Callable
from typing import NamedTuple

from dcgan_dist.parallel.world import World

ASK_EVERY = 1.0  # seconds between two questions


class Requests(NamedTuple):
    """What a rank was asked for, or what all of them agreed on."""

    stop: bool = False
    save: bool = False


class Agreement:
    """The requests of any rank, asked about once a second instead of in every iteration.

    The ranks also agree on the number of iterations until the next question, so that nobody waits alone.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._until_next = 0
        self._every = 1
        self._asked = time.monotonic()

    def ask(self, requests: Callable[[], Requests]) -> Requests:
        """To be called once in every iteration by every rank; the same answer everywhere. `requests` may be slow."""
        if self._until_next > 0:
            self._until_next -= 1
            return Requests()
        now = time.monotonic()
        pace = max((now - self._asked) / self._every, 1e-6)  # seconds an iteration
        # at most doubled, for the first iterations of an attempt say little about the pace of the others
        every = min(max(round(ASK_EVERY / pace), 1), 2 * self._every)
        *agreed, self._every = self._world.maximum(*map(int, requests()), every)
        self._until_next, self._asked = self._every - 1, now
        return Requests(*map(bool, agreed))
