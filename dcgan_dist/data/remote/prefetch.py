"""Brings the shards that the order needs next into the cache, ahead of the reader."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from dcgan_dist.data.remote.cache import BeingMadeError, EntryRequest, ShardCache, entry_name
from dcgan_dist.data.remote.fill import Source
from dcgan_dist.errors import UserError

THREADS = 4  # shards that are brought at the same time
PAUSE = 0.25  # seconds after which a thread without work asks for some
AGAIN = 3.0  # seconds after which the folder is looked at anew where something was missing
LATER = 30.0  # the same where nothing was; and until a shard that could not be brought is tried again
ENDING = 2.0  # seconds that a thread is waited for; one that hangs in a read must not hold up the end of the program

FirstUses = Callable[[int], Sequence[tuple[int, int]]]
"""From a position on: shards, and the positions of their next use, the soonest first, as far as is looked ahead.
Who gives the same answer as long as the reader has not come far spares a look at the folder."""


class Prefetcher:
    """Threads that follow the reader's position. The ranks of a node share the work: each shard is brought once.

    Nothing is pinned here: what is needed soon is removed for nothing that is needed later, and who reads an entry pins
    it.
    """

    def __init__(
        self,
        cache: ShardCache,
        sources: Sequence[Source | None],
        first_uses: FirstUses,
        *,
        say: Callable[[str], None],
        position: int = 0,
        check: Callable[[Path], object] | None = None,
    ) -> None:
        """Starts the threads.

        Args:
            cache: where to.
            sources: of every shard; None for one that needs no cache.
            first_uses: called by the threads, one at a time.
            say: told, by a thread, in one line, what kept a shard from being brought: the first time only, for shards
                may be read by ranges too.
            position: where the reader begins.
            check: as of EntryRequest.
        """
        self._cache, self._sources, self._first_uses, self._say = cache, sources, first_uses, say
        self._names = [None if source is None else entry_name(source) for source in sources]
        self._position = position
        self._looking = threading.Lock()
        self._plan: Sequence[tuple[int, int]] = []
        self._uses: dict[str, int] = {}
        self._missing: deque[int] = deque()
        self._due = 0.0  # when the folder is looked at next, unless the plan changes before
        self._full = False
        self._not_before: dict[int, float] = {}  # shards that could not be brought
        self._told = False
        self._failed: Exception | None = None
        self._closed = threading.Event()
        self._request = EntryRequest(next_use=lambda name: self._uses.get(name), check=check, stop=self._closed)
        self.threads = [threading.Thread(target=self._work, name="prefetch", daemon=True) for _ in range(THREADS)]
        for thread in self.threads:
            thread.start()

    def advance(self, position: int) -> None:
        """The reader is here now. Costs nothing. Raises what ended the threads, which is a mistake in the program."""
        if self._failed is not None:
            raise self._failed
        self._position = position

    def close(self) -> None:
        """Ends the threads, and gives up what they are bringing."""
        self._closed.set()
        for thread in self.threads:
            thread.join(ENDING)

    def _work(self) -> None:
        try:
            while not self._closed.is_set():
                if not self._bring_next():
                    self._closed.wait(PAUSE)
        except Exception as error:
            self._failed = error
            self._closed.set()

    def _bring_next(self) -> bool:
        """Brings a shard that is missing; False when there is nothing to do now."""
        number = None
        try:
            with self._looking:
                missing = self._looked_up()
                number = missing.popleft() if missing else None
            source = None if number is None else self._sources[number]
            if source is None:
                return False
            shard = self._cache.try_acquire(source, self._request)
        except BeingMadeError:
            return True
        except UserError as error:
            self._put_off(number, error)
            return number is not None
        if shard is None:  # no room; for what is needed later there is none either
            missing.clear()
            self._full = True
            return False
        shard.close()
        if self._full:  # what this thread was bringing may go for what is needed sooner
            self._full, self._due = False, 0.0
        return True

    def _looked_up(self) -> deque[int]:
        """The shards that are missing, the soonest needed first, looked up once for all threads."""
        plan = self._first_uses(self._position)
        if plan != self._plan:
            named = ((self._names[number], use) for number, use in plan)
            self._uses = {name: use for name, use in named if name is not None}
            self._plan, self._due = plan, 0.0
        if time.monotonic() >= self._due:
            self._look()
        return self._missing

    def _look(self) -> None:
        now = time.monotonic()
        self._due = now + AGAIN  # also if this fails
        there = self._cache.names()
        names = ((number, self._names[number]) for number, _ in self._plan)
        missing = [number for number, name in names if name is not None and name not in there]
        if not missing:
            self._due = now + LATER
        self._missing = deque(number for number in missing if self._not_before.get(number, 0.0) <= now)

    def _put_off(self, number: int | None, error: UserError) -> None:
        with self._looking:
            if number is not None:
                self._not_before[number] = time.monotonic() + LATER
            first, self._told = not self._told, True
        if first:
            self._say(f"data: shards are not brought ahead: {error}")
