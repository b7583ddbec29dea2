"""Launched ranks tell each other what they found by the launcher's store: it answers also where collectives do not."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict

from dcgan_dist.commands.doctor.table import Line
from dcgan_dist.errors import UserError
from dcgan_dist.parallel.peers import connect
from dcgan_dist.parallel.world import World

ASK_EVERY = 0.1  # seconds
LINGER = 10.0  # seconds for the others to read, for the store may end with the main rank


class Exchange:
    """All ranks call the same methods in the same order. They raise UserError when the store is gone."""

    def __init__(self, world: World) -> None:
        self._rank, self._size = world.rank, world.size
        try:
            self._store = connect("doctor")
        except (RuntimeError, OSError) as error:
            raise _gone(error) from error

    def gather(self, what: str, lines: Sequence[Line], seconds: float) -> list[list[Line]]:
        """The lines of all ranks, by their numbers; of one that has not answered within `seconds`, a line says so."""
        names = [f"{what}/{rank}" for rank in range(self._size)]
        try:
            self._store.set(names[self._rank], json.dumps([asdict(line) for line in lines]))
            self._wait(names, seconds)
            return [
                [Line(**line) for line in json.loads(self._store.get(name))]
                if self._store.check([name])
                else [_silent(rank, seconds)]
                for rank, name in enumerate(names)
            ]
        except RuntimeError as error:
            raise _gone(error) from error

    def end(self) -> None:
        """Nothing is asked for any more. The main rank stays until the others know all."""
        try:
            self._store.set(f"over/{self._rank}", "")
            if self._rank == 0:
                self._wait([f"over/{rank}" for rank in range(self._size)], LINGER)
        except RuntimeError as error:
            raise _gone(error) from error

    def _wait(self, names: list[str], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._store.check(names) and time.monotonic() < deadline:
            time.sleep(ASK_EVERY)


def _silent(rank: int, seconds: float) -> Line:
    advice = "see what it has printed, and whether its machine is there"
    found = f"rank {rank} has not said within {seconds:g} s what it found"
    return Line(mark="FAIL", check="ranks", found=found, advice=advice, node=f"rank {rank}", seconds=seconds, hung=True)


def _gone(error: Exception) -> UserError:
    what = " ".join(str(error).split())[:200]
    return UserError(f"the launcher's store no longer answers: its process, or that of rank 0, has ended ({what})")
