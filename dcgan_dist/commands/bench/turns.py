"""What measurements share: turns that alternate, the CPU time of a process and its children, a table."""

import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


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


Turns = dict[str, Turn]  # a contender may have several results


@dataclass(frozen=True)
class Row:
    """Medians over the rounds."""

    name: str
    images_per_second: float
    cpu_us_per_image: float
    """Microseconds."""
    first_batch_seconds: float | None


def interleave(contenders: dict[str, Callable[[], Turns]], rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Gives each contender one turn a round, in an order that rotates: a change of the machine's load hits all."""
    names = list(contenders)
    turns: dict[str, list[Turn]] = {}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            say(f"round {number + 1} of {rounds}: {name}")
            for result, turn in contenders[name]().items():
                turns.setdefault(result, []).append(turn)
    return [_row(name, each) for name, each in turns.items()]


def _row(name: str, turns: Sequence[Turn]) -> Row:
    firsts = [turn.first for turn in turns if turn.first is not None]
    return Row(
        name,
        statistics.median(turn.images / turn.wall for turn in turns),
        1e6 * statistics.median(turn.cpu / turn.images for turn in turns),
        statistics.median(firsts) if firsts else None,
    )


def until(seconds: float, batches: Iterator[int]) -> Turn:
    """Takes batches, each the number of its images, for about so many seconds; at least one."""
    began, cpu, images = time.perf_counter(), cpu_seconds(), 0
    while not images or time.perf_counter() - began < seconds:
        images += next(batches)
    return Turn(images, time.perf_counter() - began, cpu_seconds() - cpu)


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
    """With its own children that have ended; 0 where the system does not tell (it tells when the child ends)."""
    with suppress(OSError):
        numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, numbers[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def show(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    cells = []
    for row in rows:
        first = "" if row.first_batch_seconds is None else f"{row.first_batch_seconds:.3f}"
        cells.append([row.name, f"{row.images_per_second:,.0f}", f"{row.cpu_us_per_image:,.1f}", first])
    return table(["", "images/s", "CPU us/image", "first batch, s"], cells)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left and numbers to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(lines)
