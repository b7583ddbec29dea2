"""Real worlds of several processes for tests, without paying for the start of Python and torch in each.

One server process imports torch and the package once and is forked for every rank, so that a world of four costs a
fraction of a second. The ranks find each other as under torchrun: by its environment variables, and a store that this
process holds.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from support.waiting import LIMIT
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

PRELOADED = ["accelerate", "torch._dynamo", "pytest", "support.preloaded"]  # the first is what any optimiser imports
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GLOO_SOCKET_IFNAME": "lo"}
"""Several ranks share few cores here: none of them may spin while it waits."""


class End(NamedTuple):
    """How a rank ended."""

    code: int
    """Exit code; negative: the signal that killed it."""
    error: str
    """What it wrote on standard error."""


def environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun sets for a rank, all on one machine; nothing for a single process, as when no launcher is used."""
    if world_size == 1:
        return QUIET
    return QUIET | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def run_ranks(
    world_size: int,
    act: Callable[..., Any],
    *args: Any,
    variables: Mapping[str, str] | None = None,
) -> list[Any]:
    """Runs `act(*args)`, a function of a module, in `world_size` processes; returns what it returned on each rank.

    Raises AssertionError with the traceback of the first rank that failed, or after LIMIT seconds. No
    process outlives this call. Arguments and results: plain objects and numpy arrays. `variables`: further ones of the
    environment.
    """
    context = _context()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes, results = [], {}
    deadline = time.monotonic() + LIMIT
    try:
        for rank in range(world_size):
            ours, theirs = context.Pipe(duplex=False)
            settings = environment(rank, world_size, store.port) | dict(variables or {})
            if "LOCAL_WORLD_SIZE" in settings:  # that of several nodes may be among the variables
                settings["LOCAL_RANK"] = str(rank % int(settings["LOCAL_WORLD_SIZE"]))
            process = context.Process(target=_rank, args=(theirs, settings, act, args))
            process.start()
            theirs.close()
            processes.append((process, ours))
        waiting = {ours: rank for rank, (_, ours) in enumerate(processes)}
        while waiting:
            ready = wait(list(waiting), max(deadline - time.monotonic(), 0))
            assert ready, f"ranks {sorted(waiting.values())} of {world_size} have not ended after {LIMIT} s"
            for connection in ready:
                assert isinstance(connection, Connection)
                rank = waiting.pop(connection)
                results[rank] = _result(connection, rank, world_size)
    finally:
        for process, ours in processes:
            process.kill()
            process.join()
            ours.close()
    return [results[rank] for rank in range(world_size)]


def ends_of_ranks(world_size: int, act: Callable[..., int], *args: Any, stuck: int | None = None) -> list[End]:
    """Runs `act(*args)` in `world_size` processes; how each of them ended.

    Raises AssertionError when one has not ended after LIMIT seconds, but for rank `stuck`, which is killed when the
    others have ended. No process outlives this call.
    """
    context = _context()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    deadline = time.monotonic() + LIMIT
    processes = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(world_size):
                error = Path(folder) / str(rank)
                settings = environment(rank, world_size, store.port)
                process = context.Process(target=_heard, args=(error, settings, act, args))
                process.start()
                processes.append(process)
            waiting = {process.sentinel: rank for rank, process in enumerate(processes) if rank != stuck}
            while waiting:
                ready = wait(list(waiting), max(deadline - time.monotonic(), 0))
                assert ready, f"ranks {sorted(waiting.values())} of {world_size} have not ended after {LIMIT} s"
                for sentinel in ready:
                    del waiting[sentinel]  # pyright: ignore[reportArgumentType]
        finally:
            for process in processes:
                process.kill()
                process.join()
        errors = [(Path(folder) / str(rank)).read_text() for rank in range(world_size)]
    return [End(process.exitcode, error) for process, error in zip(processes, errors, strict=True)]


def _heard(error: Path, settings: dict[str, str], act: Callable[..., int], args: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.alarm(LIMIT + 60)
    os.environ.update(settings)
    with error.open("w") as file:
        os.dup2(file.fileno(), 2)
    sys.exit(act(*args))


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with mock.patch.dict(os.environ, QUIET | {"PYTHONPATH": os.pathsep.join(sys.path)}):
        forkserver.ensure_running()
    _preloaded(context)
    return context


@cache
def _preloaded(context: Any) -> None:
    """Waits for a first process: the server forks none before it has imported everything, which may take a minute."""
    first = context.Process(target=os.getpid)
    first.start()
    first.join()


def _result(connection: Connection, rank: int, world_size: int) -> Any:
    try:
        error, result = connection.recv()
    except EOFError:
        raise AssertionError(f"rank {rank} of {world_size} died without a word") from None
    assert error is None, f"rank {rank} of {world_size} failed:\n{error}"
    return result


def _rank(connection: Connection, settings: dict[str, str], act: Callable[..., Any], args: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.alarm(LIMIT + 60)  # ends this process even when no process is left to kill it
    os.environ.update(settings)
    warnings.simplefilter("error")
    try:
        connection.send((None, act(*args)))
    except BaseException:
        connection.send((traceback.format_exc(), None))
