"""The launcher's store, through which the watchdogs of all ranks communicate, also while collectives hang."""

import math
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from datetime import timedelta
from functools import partial
from threading import Thread
from typing import Literal, TypeVar

from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from dcgan_dist.parallel.world import World

T = TypeVar("T")
Alarm = Literal["hang", "lost"]  # hang: no progress, all ranks write stacks. lost: a rank is gone
ANSWER_TIMEOUT = 3.0  # seconds for an answer of the store
ASK_EVERY = 0.1  # seconds
RECONNECT_EVERY = 30.0  # seconds; torch prints a warning at each failure


class Alarms:
    """Alarms of all ranks, and which ranks have answered them. No call lasts long, also if the store does not answer.

    There is one request at a time, so that a suspended store gathers no threads. An error leads to a new connection.
    """

    def __init__(self, world: World) -> None:
        self._rank, self._size = world.rank, world.size
        self._store: Store | None = None
        self._request: Future | None = None  # the last one, which may have no answer yet
        # time of the next attempt to connect
        self._next_try = 0.0 if world.size > 1 and "MASTER_ADDR" in os.environ else math.inf
        self._ask(self._known, None)

    def raise_alarm(self, kind: Alarm) -> bool:
        """Raises an alarm for all ranks; returns whether it is the first."""

        def post() -> bool:
            first = self._known().add("alarms", 1) == 1
            if first:
                self._known().set("alarm", kind)
            return first

        return self._ask(post, True)

    def alarm(self) -> Alarm | None:
        """The alarm that a rank has raised, if any."""

        def look() -> Alarm | None:
            store = self._known()
            return ("hang" if store.get("alarm") == b"hang" else "lost") if store.check(["alarm"]) else None

        return self._ask(look, None)

    def answer(self) -> None:
        """Reports that this rank has seen the alarm."""
        self._ask(lambda: self._known().set(f"answer/{self._rank}", ""), None)

    def silent(self, seconds: float) -> list[str]:
        """Waits for the answers of all ranks; returns those that are missing, with rank and host."""
        deadline = time.monotonic() + seconds
        others = [rank for rank in range(self._size) if rank != self._rank]

        def look() -> list[int]:
            return [rank for rank in others if not self._known().check([f"answer/{rank}"])]

        while (missing := self._ask(look, [])) and time.monotonic() < deadline:
            time.sleep(ASK_EVERY)
        return [f"rank {rank}{self._ask(partial(self._host, rank), '')}" for rank in missing]

    def _host(self, rank: int) -> str:
        name = f"host/{rank}"
        return f" on {self._known().get(name).decode()}" if self._known().check([name]) else ""

    def _known(self) -> Store:
        if self._store is None:
            if time.monotonic() < self._next_try:
                raise ConnectionError
            self._next_try = time.monotonic() + RECONNECT_EVERY
            self._store = connect("watchdog", ANSWER_TIMEOUT)
            self._store.set(f"host/{self._rank}", socket.gethostname())
        return self._store

    def _ask(self, call: Callable[[], T], otherwise: T) -> T:
        if self._request is not None and wait([self._request], ANSWER_TIMEOUT).not_done:
            return otherwise
        self._request = ask(call)
        try:
            return self._request.result(ANSWER_TIMEOUT)
        except TimeoutError:  # it may answer later
            return otherwise
        except (RuntimeError, OSError):  # the connection is broken, or there was none
            self._store = None
            return otherwise


def ask(call: Callable[[], T]) -> Future[T]:
    """A request to a store, in a thread, because a store whose process is suspended never answers."""
    request: Future[T] = Future()

    def act() -> None:
        try:
            request.set_result(call())
        except Exception as error:
            request.set_exception(error)

    Thread(target=act, name="asks the store", daemon=True).start()
    return request


def host() -> TCPStore:
    """A store for ranks on this machine, at a free port, as long as the object exists."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def connect(purpose: str, seconds: float) -> Store:
    """A connection to the launcher's store, with names of its own. Raises RuntimeError when it does not answer."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds))
    # a launcher that restarts the ranks keeps its store, with the alarm of the earlier attempt
    return PrefixStore(f"dcgan_dist/{purpose}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
