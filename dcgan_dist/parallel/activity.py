"""What this process is doing now: it explains a hang, and separates waiting for other ranks from own work."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")
SAMPLED = 16  # on a GPU, one iteration of so many is measured: two events for each collective have a price


class Waits:
    """Adds up the time between `begin` and `end`: a rank in a collective, which ends when all ranks are there.

    By the host's clock, where the host itself waits (gloo); on a GPU by events in its queue, in every SAMPLED-th
    iteration.
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
        """Now; once more before `end`: later than assumed."""
        if self._iteration % self._every == 0:
            self._begun = self._now()

    def end(self) -> None:
        """What lies between is added up; nothing if it did not begin."""
        if self._begun is not None:
            self._pairs.append((self._begun, self._now()))
            self._begun = None

    def tick(self) -> None:
        """The end of an iteration."""
        self._sampled += self._iteration % self._every == 0
        self._iteration += 1

    def read(self) -> float:
        """Seconds per iteration since the last reading; starts again from 0. On a GPU: when it has done its work."""
        seconds = sum(a.elapsed_time(b) / 1e3 if self._on_gpu else b - a for a, b in self._pairs)
        mean = seconds / max(self._sampled, 1)
        self._pairs.clear()
        self._iteration, self._sampled = 0, 0
        return mean


class Activity:
    """Written by the main thread, without a lock; read by any thread at any time. An error leaves it as it was."""

    def __init__(self, *, on_gpu: bool = False) -> None:
        self.waits = Waits(on_gpu=on_gpu)
        """Of the collectives inside sections."""
        self.place: Callable[[], str] = lambda: "at the start"
        """Where in the run this is, in words."""
        self.progress = 0
        """Another number than before: it goes on."""
        self.patient = 1
        """Not 0: something that may take as long as ranks wait for one another, such as the first iteration."""
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

    def gradients_known(self) -> None:
        """From here to the end of the backward pass, those of the other ranks are waited for."""
        self._collective = ("gradients", time.monotonic())
        if self._section is not None:
            self.waits.begin()

    def gradients_averaged(self) -> None:
        """The end of a backward pass, whether it was waited for or not."""
        self._collective = None
        self.waits.end()

    def collective(self, name: str, call: Callable[..., T], *args: object, **named: object) -> T:
        """Calls something that ends only when other ranks do the same."""
        measured = self._section is not None
        if measured:
            self.waits.begin()
        self._collective = (name, time.monotonic())
        result = call(*args, **named)
        self._collective = None
        if measured:
            self.waits.end()
        return result

    @contextmanager
    def patiently(self, name: str) -> Iterator[None]:
        """Something that may take as long as ranks wait for one another (a checkpoint); its end is progress."""
        outer, self._collective = self._collective, (name, time.monotonic())
        self.patient += 1
        try:
            yield
            self._collective = outer
        finally:
            self.patient -= 1
            self.progress += 1

    def __str__(self) -> str:
        """In words: where in the run, in what, for how long."""
        now, words = time.monotonic(), [self.place()]
        for kind, what in (("section", self._section), ("waiting in", self._collective)):
            if what is not None:
                words.append(f"{kind} {what[0]} for {now - what[1]:.1f} s")
        return ", ".join(words)
