"""Downloads the shards that the order needs next into the cache, ahead of the reader."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from dcgan_dist.data.remote.cache import ANY, BeingMadeError, EntryRequest, ShardCache, entry_name
from dcgan_dist.data.remote.source import FileSource
from dcgan_dist.errors import UserError
from dcgan_dist.text import Say

THREADS = 4  # shards that are downloaded at the same time
PAUSE = 0.25  # seconds after which an idle thread looks for work
RESCAN = 3.0  # seconds between two looks at the folder while something is missing
RESCAN_COMPLETE = 30.0  # the same while nothing is; also the pause before a failed shard is retried
SHUTDOWN = 2.0  # seconds that a thread is waited for; one that hangs in a read must not delay the exit

FirstUses = Callable[[int], Sequence[tuple[int, int]]]
"""Given a position: the next shards, the soonest first, each with the position of its next use. The folder is not
looked at again while the answer stays the same."""


class Prefetcher:
    """Threads that follow the reader's position. The ranks of a node share the work: each shard is downloaded once.

    Nothing is pinned here: an entry is never removed for one that is needed later, and readers pin what they read.
    """

    def __init__(
        self,
        cache: ShardCache,
        sources: Sequence[FileSource | None],
        first_uses: FirstUses,
        *,
        say: Say,
        position: int = 0,
        check: Callable[[Path], object] = ANY.check,
    ) -> None:
        """Starts the threads.

        Args:
            cache: where the shards go.
            sources: of every shard; None for one that needs no cache.
            first_uses: called by the threads, one at a time.
            say: called by a thread, with one line, for the first shard that fails; shards may be read by ranges too.
            position: where the reader begins.
            check: as of EntryRequest.
        """
        self._cache, self._sources, self._first_uses, self._say = cache, sources, first_uses, say
        self._names = [None if source is None else entry_name(source) for source in sources]
        self._position = position
        self._looking = threading.Lock()
        self._plan: Sequence[tuple[int, int]] = []
        self._uses: dict[str | None, int] = {}
        self._missing: deque[int] = deque()
        self._due = 0.0  # when the folder is looked at next, unless the plan changes before
        self._full = False
        self._not_before: dict[int | None, float] = {}  # when a failed shard is retried
        self._failed: Exception | None = None
        self._closed = stop = threading.Event()
        self._request = EntryRequest(next_use=lambda name: self._uses.get(name), check=check, stop=stop, wait=False)
        self.threads = [threading.Thread(target=self._work, name="prefetch", daemon=True) for _ in range(THREADS)]
        for thread in self.threads:
            thread.start()

    def advance(self, position: int) -> None:
        """Reports the reader's position; costs nothing. Raises the error that ended a thread: a bug in the program."""
        if self._failed is not None:
            raise self._failed
        self._position = position

    def close(self) -> None:
        """Ends the threads and abandons what they are downloading."""
        self._closed.set()
        for thread in self.threads:
            thread.join(SHUTDOWN)

    def _work(self) -> None:
        try:
            while not self._closed.is_set():
                if not self._download_next():
                    self._closed.wait(PAUSE)
        except Exception as error:
            self._failed = error
            self._closed.set()

    def _download_next(self) -> bool:
        """Downloads a missing shard; False when there is nothing to do now."""
        number = None
        try:
            with self._looking:
                missing = self._find_missing()
                number = missing.popleft() if missing else None
            source = None if number is None else self._sources[number]
            if source is None:
                return False
            shard = self._cache.acquire(source, self._request)
        except BeingMadeError:
            return True
        except UserError as error:
            with self._looking:
                self._not_before[number] = time.monotonic() + RESCAN_COMPLETE
                say, self._say = self._say, lambda _: None
            say(f"data: shards are not prefetched: {error}")
            return number is not None
        if shard is None:  # the quota is used up, also for what is needed later
            missing.clear()
            self._full = True
            return False
        shard.close()
        if self._full:  # what this thread has made may be removed for what is needed sooner
            self._full, self._due = False, 0.0
        return True

    def _find_missing(self) -> deque[int]:
        """The missing shards, the soonest needed first, looked up once for all threads."""
        plan, now = self._first_uses(self._position), time.monotonic()
        if plan != self._plan:
            self._uses = {self._names[number]: use for number, use in plan}
            self._plan, self._due = plan, 0.0
        if now >= self._due:
            self._due = now + RESCAN  # also if this fails
            there = {None, *self._cache.names()}
            missing = [number for number, _ in plan if self._names[number] not in there]
            self._due = now + (RESCAN if missing else RESCAN_COMPLETE)
            self._missing = deque(number for number in missing if self._not_before.get(number, 0.0) <= now)
        return self._missing
