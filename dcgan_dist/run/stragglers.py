"""Slow ranks.

All ranks of a synchronous step take the same time; they differ in how much of it they wait. A rank's own time is that
of the sections `data`, `g` and `d` without its collectives. Reports, pictures and checkpoints do not count.
"""

import socket
from collections.abc import Mapping
from statistics import median_low

import torch

from dcgan_dist.parallel.world import World
from dcgan_dist.run.console import Console

AGAIN = 20  # reports until the same rank is named again
SECTIONS = ("data", "compute")
MEDIAN_OF = 3  # ranks that a median needs


class Stragglers:
    """Compares the ranks from one report to the next."""

    def __init__(self, world: World, console: Console, slow_factor: float) -> None:
        """A rank is named whose own time exceeds `slow_factor` times the median in two consecutive reports."""
        self._world, self._console, self._slow_factor = world, console, slow_factor
        self._suspect = -1  # slow in the last report
        self._reports = 0
        self._named: dict[int, int] = {}  # rank -> number of the report

    def values(self, times: Mapping[str, float]) -> dict[str, float]:
        """The slowest rank, and its own time divided by the (low) median. All ranks call it together.

        `times`: the clock's, in seconds per iteration. Empty with one rank.
        """
        world = self._world
        waited = world.activity.waits.read()
        if world.size == 1:
            return {}
        table = torch.zeros(world.size, len(SECTIONS), dtype=torch.float64, device=world.device)
        computed = times.get("time/g", 0.0) + times.get("time/d", 0.0) - waited
        table[world.rank] = table.new_tensor([times.get("time/data", 0.0), max(computed, 0.0)])
        rows: list[list[float]] = world.sum_(table).tolist()
        own = [sum(row) for row in rows]
        slowest = max(range(world.size), key=own.__getitem__)
        factor = own[slowest] / max(median_low(own), 1e-9)
        self._judge(slowest, factor, rows)
        return {"rank/slowest": float(slowest), "rank/slowest_factor": factor}

    def _judge(self, slowest: int, factor: float, rows: list[list[float]]) -> None:
        self._reports += 1
        before, self._suspect = self._suspect, slowest if factor > self._slow_factor else -1
        due = self._reports >= self._named.get(slowest, -AGAIN) + AGAIN
        if self._suspect < 0 or before != slowest or not due:
            return
        self._named[slowest] = self._reports
        hosts = self._world.gather(socket.gethostname())
        if len(rows) < MEDIAN_OF:
            both = " and ".join(f"{1e3 * sum(row):.1f} on {host}" for row, host in zip(rows, hosts, strict=True))
            self._console.say(f"WARNING: uneven: the own work of ranks 0 and 1 takes {both} ms an iteration")
            return
        host = hosts[slowest]
        usual = [median_low(column) for column in zip(*rows, strict=True)]
        more = [mine - other for mine, other in zip(rows[slowest], usual, strict=True)]
        section = max(range(len(SECTIONS)), key=more.__getitem__)
        self._console.say(
            f"WARNING: slow: rank {slowest} on {host} takes {factor:.1f} times as long as the median rank for its own "
            f"work, mostly in {SECTIONS[section]}: {rows[slowest][section] * 1e3:.1f} ms an iteration "
            f"instead of {usual[section] * 1e3:.1f}"
        )
