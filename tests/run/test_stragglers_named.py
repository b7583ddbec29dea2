"""Whom a report names as slow, by the times of its ranks alone; with real ranks: tests/parallel/test_stragglers.py."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dcgan_dist.run.stragglers import Stragglers


def told(*own: float) -> tuple[list[str], dict[str, float]]:
    """What rank 0 says in two reports, and the last one's values. `own`: seconds of each rank's own data section."""
    said: list[str] = []
    waits = SimpleNamespace(read=lambda: 0.0)

    def sum_(table: torch.Tensor) -> torch.Tensor:
        table[:, 0] = torch.tensor(own)
        return table

    world: Any = SimpleNamespace(
        size=len(own), rank=0, device="cpu", activity=SimpleNamespace(waits=waits), sum_=sum_,
        gather=lambda _: [f"node{rank}" for rank in range(len(own))],
    )  # fmt: skip
    console: Any = SimpleNamespace(say=said.append)
    stragglers = Stragglers(world, console, 1.5)
    return said, [stragglers.values({"time/data": own[0]}) for _ in range(2)][-1]


def test_of_two_ranks_both_are_reported_and_none_is_called_slow():
    said, values = told(0.01, 0.03)
    assert said == [
        "WARNING: uneven: the own work of ranks 0 and 1 takes 10.0 on node0 and 30.0 on node1 ms an iteration",
    ]
    assert values == {"rank/slowest": 1.0, "rank/slowest_factor": pytest.approx(3.0)}


@pytest.mark.parametrize("own", [(0.01, 0.03, 0.01), (0.01, 0.03, 0.01, 0.011)])
def test_of_three_and_more_the_slow_one_is_named(own):
    (line,), _ = told(*own)
    assert line.startswith(
        "WARNING: slow: rank 1 on node1 takes 3.0 times as long as the median rank for its own work, mostly in"
    )


@pytest.mark.parametrize("own", [(0.01, 0.014), (0.01, 0.014, 0.01), (0.01,)])
def test_ranks_that_are_much_alike_are_not_reported(own):
    assert told(*own)[0] == []
