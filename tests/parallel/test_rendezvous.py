"""Ranks that wait for others: a request to stop is heard, and ends nothing that could still stop in order."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support.ranks import ends_of_ranks
from support.recording import options
from support.waiting import LIMIT, until

from dcgan_dist.parallel import rendezvous
from dcgan_dist.run import signals
from dcgan_dist.train import main

pytestmark = pytest.mark.dist

ASKED = "asked to stop while it waited for the other ranks; nothing had begun\n"


def wait_for_the_other(given: list[str], when: str, asked: Path) -> int:
    """The command on rank 0, which is asked to stop before or while it waits; rank 1 is away, or comes late."""
    late, guard = when == "late", rendezvous._guard
    rendezvous.STOP_GRACE = LIMIT if late else 0.5
    if os.environ["RANK"] == "1":
        if not late:
            return 0
        until(asked.exists)
        return main(given)

    def ask(*waits: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        asked.touch()
        if waits:
            guard(*waits)

    signals.listen()
    if when == "before":
        ask()
    else:
        rendezvous._guard = ask
    return main(given)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_rank_that_is_asked_to_stop_does_not_wait_for_one_that_never_comes(when, shards, tmp_path):
    first, _ = ends_of_ranks(2, wait_for_the_other, options(shards, tmp_path / "run"), when, tmp_path / "asked")
    assert (first.code, first.error) == (1, f"rank 0: {ASKED}")
    assert not (tmp_path / "run").exists()


def test_it_stops_in_order_with_one_that_comes_late(shards, tmp_path):
    for end in ends_of_ranks(2, wait_for_the_other, options(shards, tmp_path / "run"), "late", tmp_path / "asked"):
        assert (end.code, end.error) == (0, "")
    assert (tmp_path / "run" / "PREEMPTED").read_text() == "0\nSIGTERM\n"
