"""The time of the sections of an iteration."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dcgan_dist.parallel.activity import Activity


class Clock:
    """Adds up the seconds spent in named sections; on a GPU by events, without synchronisation between readings."""

    def __init__(self, device: torch.device, activity: Activity | None = None) -> None:
        """`activity` is informed of sections and iterations."""
        self._activity = activity or Activity()
        self._cuda = device.type == "cuda"
        self._host: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._iterations = 0
        self._since = time.perf_counter()

    @contextmanager
    def section(self, name: str, *, on_device: bool = False) -> Iterator[None]:
        """`on_device`: the work is queued here, and the GPU does it later."""
        self._activity.enter(name)
        if self._cuda and on_device:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
        else:
            begun = time.perf_counter()
            yield
            self._host[name] += time.perf_counter() - begun
        self._activity.leave()

    def tick(self) -> None:
        """The end of an iteration."""
        self._iterations += 1
        self._activity.tick()

    def read(self) -> dict[str, float]:
        """Seconds per iteration since the last reading: time/SECTION, time/other and time/data_percent."""
        if self._events:
            self._events[-1][2].synchronize()
        for name, start, end in self._events:
            self._host[name] += start.elapsed_time(end) / 1e3
        now = time.perf_counter()
        total, iterations = now - self._since, max(self._iterations, 1)
        seconds = {name: spent / iterations for name, spent in self._host.items()}
        values = {f"time/{name}": spent for name, spent in seconds.items()}
        values["time/other"] = max(total / iterations - sum(seconds.values()), 0.0)
        values["time/data_percent"] = 100 * self._host.get("data", 0.0) / total if total else 0.0
        self._host.clear()
        self._events.clear()
        self._iterations, self._since = 0, now
        return values
