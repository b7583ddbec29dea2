"""What this process is doing: it explains a hang, and separates waiting for other ranks from its own work."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")
SAMPLED = 16  # on a GPU, one iteration of 16 is measured, because events cost time


class Waits:
    """Adds up the time between `begin` and `end`, that is in collectives.

    By the host's clock, if the host waits (gloo); on a GPU by events, in every SAMPLED-th iteration.
    """

    def __init__(self, *, on_gpu: bool) -> None:
        self._on_gpu, self._every = on_gpu, SAMPLED if on_gpu else 1
        self._begun: Any = None  # a moment: seconds, or an event
        self._pairs: list[tuple[Any, Any]] = []
        self._iteration, self._sampled = 0, 0

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def begin(self) -> None:
        """Starts a wait, or restarts one that has not ended."""
        if self._iteration % self._every == 0:
            self._begun = self._now()

    def end(self) -> None:
        """Ends a wait, if one was started."""
        if self._begun is not None:
            self._pairs.append((self._begun, self._now()))
            self._begun = None

    def tick(self) -> None:
        """The end of an iteration."""
        self._sampled += self._iteration % self._every == 0
        self._iteration += 1

    def read(self) -> float:
        """Seconds per iteration since the last reading. Waits for a GPU."""
        seconds = sum(a.elapsed_time(b) / 1e3 if self._on_gpu else b - a for a, b in self._pairs)
        mean = seconds / max(self._sampled, 1)
        self._pairs.clear()
        self._iteration, self._sampled = 0, 0
        return mean


class Activity:
    """Written by the main thread, without a lock; read by any thread. An error leaves it unchanged."""

    def __init__(self, *, on_gpu: bool = False) -> None:
        self.waits = Waits(on_gpu=on_gpu)  # of the collectives inside sections
        self.place: Callable[[], str] = lambda: "at the start"  # the place in the run, for messages
        self.progress = 0  # changes with every progress
        self.patient = 1  # not 0 during work that only --timeout limits, such as the first iteration
        self._started = False
        self._section: tuple[str, float] | None = None
        self._collective: tuple[str, float] | None = None

    def enter(self, section: str) -> None:
        """A section of the iteration begins."""
        self._section = (section, time.monotonic())

    def leave(self) -> None:
        """The section has ended."""
        self._section = None

    def tick(self) -> None:
        """The end of an iteration."""
        if not self._started:
            self._started, self.patient = True, self.patient - 1
        self.progress += 1
        self.waits.tick()

    def begin_collective(self, name: str) -> None:
        """From here on, this rank waits for the others."""
        if self._section is not None:
            self.waits.begin()
        self._collective = (name, time.monotonic())

    def end_collective(self) -> None:
        """The end of the wait, if there was one."""
        self._collective = None
        self.waits.end()

    def collective(self, name: str, call: Callable[..., T], *args: object, **named: object) -> T:
        """Calls a collective operation."""
        self.begin_collective(name)
        result = call(*args, **named)
        self.end_collective()
        return result

    @contextmanager
    def patiently(self, name: str) -> Iterator[None]:
        """For work that only --timeout limits, such as a checkpoint; its end is progress."""
        outer, self._collective = self._collective, (name, time.monotonic())
        self.patient += 1
        try:
            yield
            self._collective = outer
        finally:
            self.patient -= 1
            self.progress += 1

    def __str__(self) -> str:
        """The place in the run, the section and collective, and their durations."""
        now, words = time.monotonic(), [self.place()]
        for kind, what in (("section", self._section), ("waiting in", self._collective)):
            if what is not None:
                words.append(f"{kind} {what[0]} for {now - what[1]:.1f} s")
        return ", ".join(words)
