"""Brings the shards that the order needs next into the cache, ahead of the reader."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dcgan_dist.data.remote.cache import BeingMadeError, CachedShard, ShardCache, Wish, entry_name
from dcgan_dist.data.remote.fill import Source
from dcgan_dist.errors import UserError

PAUSE = 0.25  # seconds between two looks at what is missing
LATER = 30.0  # seconds after which a shard that could not be brought is tried again
ENDING = 2.0  # seconds that a thread is waited for; one that hangs in a read must not hold up the end of the program

FirstUses = Callable[[int], Sequence[tuple[int, int]]]
"""From a position on: shards, and the positions of their next use, the soonest first, as far as is looked ahead."""


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
        position: int = 0,
        threads: int = 2,
        check: Callable[[Path], object] | None = None,
    ) -> None:
        """Starts the threads.

        Args:
            cache: where to.
            sources: of every shard; None for one that needs no cache.
            first_uses: called by the threads.
            position: where the reader begins.
            threads: shards that are brought at the same time.
            check: as of Wish.
        """
        self._cache, self._sources, self._first_uses = cache, sources, first_uses
        self._names = [None if source is None else entry_name(source) for source in sources]
        self._position = position
        self._uses: dict[str, int] = {}
        self._errors: dict[int, tuple[UserError, float]] = {}  # and when
        self._failed: BaseException | None = None
        self._closed = threading.Event()
        self._wish = Wish(next_use=lambda name: self._uses.get(name), check=check, stop=self._closed)
        self.threads = [threading.Thread(target=self._work, name="prefetch", daemon=True) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

    def advance(self, position: int) -> None:
        """The reader is here now. Costs nothing."""
        self._position = position

    def shard(self, number: int, *, wait: bool) -> CachedShard | None:
        """The entry of a shard, pinned until it is closed.

        Without `wait`, None when it is not there yet: read it by ranges meanwhile. With `wait`, it is brought now,
        and None means that there is no room for it. Raises what kept it from being brought.
        """
        if self._failed is not None:
            raise self._failed
        source, name = self._sources[number], self._names[number]
        if source is None:
            return None
        if wait and number not in self._errors:
            now = replace(self._wish, next_use=lambda other: -1 if other == name else self._uses.get(other))
            return self._cache.acquire(source, now)
        shard = self._cache.get(source)
        if shard is None and number in self._errors:
            raise self._errors[number][0]
        return shard

    def failed(self, number: int) -> bool:
        """The last try to bring this shard failed."""
        return number in self._errors

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

    def _bring_next(self) -> bool:
        """Brings the first shard that is missing; False when there is nothing to do now."""
        plan = [(number, self._names[number], use) for number, use in self._first_uses(self._position)]
        self._uses = {name: use for _, name, use in plan if name is not None}
        for number, name, _ in plan:
            source = self._sources[number]
            if source is None or name is None or self._cache.there(name) or self._failed_lately(number):
                continue
            try:
                shard = self._cache.bring(source, self._wish)
            except BeingMadeError:
                continue
            except UserError as error:
                self._errors[number] = error, time.monotonic()
                return True
            self._errors.pop(number, None)
            if shard is None:  # no room; for what is needed later there is none either
                return False
            shard.close()
            return True
        return False

    def _failed_lately(self, number: int) -> bool:
        return number in self._errors and time.monotonic() - self._errors[number][1] < LATER
