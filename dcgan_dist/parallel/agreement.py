"""Decisions that all ranks must take at the same iteration."""

import time
from collections.abc import Callable

from dcgan_dist.parallel.world import World

PATIENCE = 1.0  # seconds between two questions


class Agreement:
    """Whether any rank wants to stop, asked about once a second instead of in every iteration.

    The ranks also agree on the number of iterations until the next question, so that nobody waits alone.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._until_next = 0
        self._every = 1
        self._asked = time.monotonic()

    def ask(self, wanted: Callable[[], bool]) -> bool:
        """To be called once in every iteration by every rank; True on all of them or on none. `wanted` may be slow."""
        if self._until_next > 0:
            self._until_next -= 1
            return False
        now = time.monotonic()
        pace = max((now - self._asked) / self._every, 1e-6)  # seconds an iteration
        # at most doubled, for the first iterations of a life say little about the pace of the others
        every = min(max(round(PATIENCE / pace), 1), 2 * self._every)
        answer, self._every = self._world.maximum(int(wanted()), every)
        self._until_next, self._asked = self._every - 1, now
        return bool(answer)
