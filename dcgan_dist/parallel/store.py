"""The launcher's store, through which the watchdogs of all ranks communicate: it answers also while collectives hang.

Rank files in the run folder would need a disk that all nodes share, and a hanging disk is one of the things to report.
"""

import math
import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from threading import Thread
from typing import Literal, TypeVar

from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from dcgan_dist.parallel.world import World

T = TypeVar("T")
Alarm = Literal["hang", "lost"]
"""hang: no progress, everybody is to write stacks. lost: a rank went away."""
ANSWER_TIMEOUT = 3.0  # seconds for an answer of the store
ASK_EVERY = 0.1  # seconds
RECONNECT_EVERY = 30.0  # seconds; torch prints a warning each time that nobody is there


class Alarms:
    """Alarms of all ranks, and who has answered them. No call lasts long: a store that does not answer holds none.

    It is asked again: one question at a time, so that a store whose process is stopped for hours gathers no threads,
    and by a new connection where the old one broke.
    """

    def __init__(self, world: World) -> None:
        self._rank, self._size = world.rank, world.size
        self._store: Store | None = None
        self._open: Thread | None = None
        """A question without an answer yet."""
        self._next_try = 0.0 if world.size > 1 and "MASTER_ADDR" in os.environ else math.inf
        """When a connection is tried again, if there is none."""
        self._ask(self._known, None)

    def raise_alarm(self, kind: Alarm) -> bool:
        """For all ranks to see; whether this one is the first."""

        def post() -> bool:
            first = self._known().add("alarms", 1) == 1
            if first:
                self._known().set("alarm", kind)
            return first

        return self._ask(post, True)

    def alarm(self) -> Alarm | None:
        """What some rank has raised, if any has."""

        def look() -> Alarm | None:
            store = self._known()
            return ("hang" if store.get("alarm") == b"hang" else "lost") if store.check(["alarm"]) else None

        return self._ask(look, None)

    def answer(self) -> None:
        """This rank is alive: it has seen the alarm, and done what it asks for."""
        self._ask(lambda: self._known().set(f"answer/{self._rank}", ""), None)

    def silent(self, seconds: float) -> list[str]:
        """Waits so long for the answers of all ranks; those that are missing, by rank and host."""
        deadline = time.monotonic() + seconds
        missing = [rank for rank in range(self._size) if rank != self._rank]
        answered = False
        while missing:
            left = self._ask(lambda: [r for r in missing if not self._known().check([f"answer/{r}"])], None)  # noqa: B023
            missing, answered = missing if left is None else left, left is not None
            if not answered or time.monotonic() > deadline:
                break
            time.sleep(ASK_EVERY)
        return [f"rank {rank}{self._host(rank)}" for rank in missing] if answered else []

    def _host(self, rank: int) -> str:
        def look() -> str:
            name = f"host/{rank}"
            return f" on {self._known().get(name).decode()}" if self._known().check([name]) else ""

        return self._ask(look, "")

    def _known(self) -> Store:
        if self._store is None:
            if time.monotonic() < self._next_try:
                raise ConnectionError
            self._next_try = time.monotonic() + RECONNECT_EVERY
            self._store = connect("watchdog", ANSWER_TIMEOUT)
            self._store.set(f"host/{self._rank}", socket.gethostname())
        return self._store

    def _ask(self, call: Callable[[], T], otherwise: T) -> T:
        if self._open is not None:
            self._open.join(ANSWER_TIMEOUT)
            if self._open.is_alive():
                return otherwise
            self._open = None
        try:
            return ask(call, ANSWER_TIMEOUT, self._leave_open)
        except TimeoutError:  # it may answer later
            return otherwise
        except (RuntimeError, OSError):  # the connection is broken, or there was none
            self._store = None
            return otherwise

    def _leave_open(self, thread: Thread) -> None:
        self._open = thread


def ask(call: Callable[[], T], seconds: float, unanswered: Callable[[Thread], None] = lambda _: None) -> T:
    """What a store answers, in a thread of its own: a store whose process is stopped keeps whoever asks it for ever.

    `unanswered` is given the thread where that happens. Raises the RuntimeError or OSError of the call, or
    TimeoutError.
    """
    answers: list[T] = []
    errors: list[Exception] = []

    def act() -> None:
        try:
            answers.append(call())
        except (RuntimeError, OSError) as error:
            errors.append(error)

    thread = Thread(target=act, name="asks the store", daemon=True)
    thread.start()
    thread.join(seconds)
    if answers:
        return answers[0]
    if errors:
        raise errors[0]
    unanswered(thread)
    raise TimeoutError(f"no answer within {seconds:g} s")


def host() -> TCPStore:
    """A store for ranks on this machine, for as long as this is held; at a port that is nobody else's."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def connect(purpose: str, seconds: float) -> Store:
    """The launcher's store, by a connection and with names of its own. Raises RuntimeError when it does not answer."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds))
    # a launcher that starts the ranks again keeps its store, and with it the alarm of their earlier attempt
    return PrefixStore(f"dcgan_dist/{purpose}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
