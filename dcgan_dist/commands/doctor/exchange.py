"""Launched ranks tell each other what they found by the launcher's store: it answers also where collectives do not."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TypeVar

from dcgan_dist.commands.doctor.table import Line
from dcgan_dist.errors import UserError
from dcgan_dist.parallel.peers import ask, connect
from dcgan_dist.parallel.world import World

T = TypeVar("T")
ASK_EVERY = 0.1  # seconds
ANSWER = 30.0  # seconds that the store may take
LINGER = 10.0  # seconds for the others to go on, after the main rank


class Exchange:
    """All ranks call the same methods in the same order. They raise UserError when the store is gone."""

    def __init__(self, world: World) -> None:
        self._rank, self._size = world.rank, world.size
        self._store = _ask(lambda: connect("doctor", ANSWER))

    def gather(self, what: str, lines: Sequence[Line], seconds: float) -> list[list[Line]]:
        """The lines of all ranks, by their numbers; of one that has not answered within `seconds`, a line says so."""
        names = [f"{what}/{rank}" for rank in range(self._size)]
        _ask(lambda: self._store.set(names[self._rank], json.dumps([asdict(line) for line in lines])))
        self._wait(names, seconds)
        return [
            [Line(**line) for line in json.loads(_ask(lambda name=name: self._store.get(name)))]
            if self._there([name])
            else [_silent(rank, seconds)]
            for rank, name in enumerate(names)
        ]

    def end(self) -> None:
        """After this a rank may leave. The main rank is the first to come here, when it has printed everything.

        A launcher that sees a rank leave with an exit code ends the others; and the store may end with the main rank.
        """
        others = [f"left/{rank}" for rank in range(1, self._size)]
        with suppress(UserError):  # it is gone: the main rank is over, too
            if self._rank == 0:
                _ask(lambda: self._store.set("over", ""))
                self._wait(others, LINGER)
            else:
                self._wait(["over"], LINGER)
                _ask(lambda: self._store.set(others[self._rank - 1], ""))

    def _there(self, names: list[str]) -> bool:
        return _ask(lambda: self._store.check(names))

    def _wait(self, names: list[str], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._there(names) and time.monotonic() < deadline:
            time.sleep(ASK_EVERY)


def _ask(call: Callable[[], T]) -> T:
    try:
        return ask(call, ANSWER)
    except (RuntimeError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        problem = f"the launcher's store is gone: its process, or that of rank 0, has ended or hangs ({why})"
        raise UserError(problem) from error


def _silent(rank: int, seconds: float) -> Line:
    advice = "see what it has printed, and whether its machine is there"
    found = f"rank {rank} has not said within {seconds:.0f} s what it found"
    return Line(mark="FAIL", check="ranks", found=found, advice=advice, node=f"rank {rank}", seconds=seconds, hung=True)
