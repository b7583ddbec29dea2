"""Turns of loaders, each in a process of its own, which a server forks that has done all imports.

    python -m benchmarks.turns MODULE      serves the LOADERS of a module: a task a line in, a result a line out

So starting Python and importing count for nobody, nothing is left over from the turn before, and a peer may have a
Python environment of its own.
"""

import json
import os
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

BATCH = 256
REPOSITORY = Path(__file__).parent.parent
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a loader is asked for."""

    corpus: str
    """Folder that benchmarks.corpora made."""
    kind: str
    """jpg or ppm."""
    size: int
    """Height and width, pixels."""
    workers: int
    images: int
    """How many are to be delivered."""


@dataclass(frozen=True)
class Turn:
    """One contender's part of one round."""

    images: int
    wall: float
    """Seconds."""
    cpu: float
    """User and system seconds of all threads and processes."""
    first: float | None = None
    """Seconds to the first batch, where that was measured."""


# called before the clocks are read; returns batches (BATCH, ..) without end
Loader = Callable[[Task], Iterator[Any]]


class UnavailableError(Exception):
    """The module cannot be imported there."""


class Server:
    """The LOADERS of a module, under a Python of their own."""

    def __init__(self, python: str | Path, module: str) -> None:
        if not Path(python).exists():
            raise UnavailableError("not installed; benchmarks/peers/install.sh installs it")
        self._process = subprocess.Popen(
            [str(python), "-m", "benchmarks.turns", module],
            cwd=REPOSITORY,
            env=os.environ | ONE_THREAD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        greeting = self._answer()
        if "error" in greeting:
            self.close()
            raise UnavailableError(greeting["error"])
        self.versions: dict[str, str] = greeting["versions"]

    def turn(self, loader: str, task: Task) -> Turn:
        """One turn. Raises RuntimeError when it fails."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([loader, asdict(task)]) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            raise RuntimeError(f"{loader}: {answer['error']}")
        return Turn(**answer)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": "the process ended; see above"}

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def deliver(loader: Loader, task: Task) -> Turn:
    """Takes the images from a loader and throws them away."""
    torch.set_num_threads(1)
    batches = loader(task)
    began, cpu, seen, first = time.perf_counter(), cpu_seconds(), 0, None
    while seen < task.images:
        batch = next(batches)
        assert sorted(batch.shape) == sorted((BATCH, task.size, task.size, 3)), batch.shape
        seen += BATCH
        first = first or time.perf_counter() - began
    wall = time.perf_counter() - began
    batches.close()  # type: ignore[attr-defined] - worker processes end here, so that their time is known
    return Turn(seen, wall, cpu_seconds() - cpu, first)


def cpu_seconds() -> float:
    """User and system seconds so far of this process, its threads, and its children, alive or ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime + sum(map(_of_child, _descendants(os.getpid())))


def _descendants(process: int) -> Iterator[int]:
    for threads in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, threads.read_text().split()):
                yield child
                yield from _descendants(child)


def _of_child(process: int) -> float:
    """With its own children that have ended; 0 once it is gone, for then its parent's numbers hold its own."""
    with suppress(OSError):
        numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, numbers[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def serve(module: str) -> None:
    """Answers every task on standard input; what loaders print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        imported = import_module(module)
    except ImportError as error:
        answers.write(json.dumps({"error": f"cannot be imported ({error})"}) + "\n")
        return
    versions = {package: version(package) for package in imported.PACKAGES}
    answers.write(json.dumps({"versions": versions}) + "\n")
    # not by iterating: a child must not find tasks of the server in its buffer
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            _act(imported.LOADERS, line, answers.fileno())
            return  # an ordinary end, for libraries that tidy up
        _, status = os.waitpid(child, 0)
        if status:
            answers.write(json.dumps({"error": "its process failed; see above"}) + "\n")


def _act(loaders: dict[str, Loader], line: str, answers: int) -> None:
    try:
        name, task = json.loads(line)
        result = asdict(deliver(loaders[name], Task(**task)))
    except Exception:
        traceback.print_exc()
        os._exit(1)
    os.write(answers, (json.dumps(result) + "\n").encode())


if __name__ == "__main__":
    serve(sys.argv[1])
