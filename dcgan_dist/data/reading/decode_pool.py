"""Workers that fill batches: threads of this process, or processes that share memory with it.

Decoding releases the GIL most of the time, so a few threads are as fast as a few processes and need no start-up. With
many cores the GIL becomes the limit. Then each process decodes its rows straight into shared memory, which has no name
and is freed with the last process. Only numbers of slots and rows cross the pipes, never pixels.
"""

import mmap
import os
import subprocess
import sys
import time
from concurrent.futures import wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Literal

import torch

import dcgan_dist
from dcgan_dist.data.reading.counters import Counters
from dcgan_dist.data.reading.fetch import Fetcher
from dcgan_dist.data.reading.prefetch_buffer import JOIN_TIMEOUT, Batch, batch_in, empty_batch
from dcgan_dist.data.reading.shared_batch import bytes_of_batch
from dcgan_dist.data.system.workers import DaemonThreads, signals_blocked
from dcgan_dist.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DecodePlan:
    """How batches are filled."""

    kind: Literal["threads", "processes"] = "threads"
    count: int = 1  # how many of them
    prefetch: int = 4  # number of batches to prefetch
    pinned: bool = False  # whether batches are in pinned memory


class ThreadDecodePool:
    """Threads of this process; one alone does its work in the calling thread."""

    def __init__(self, fetcher: Fetcher, slots: list[Batch], count: int) -> None:
        self.slots, self._fetcher, self._count = slots, fetcher, count
        self._threads = DaemonThreads(count if count > 1 else 0, "decode")

    def fill(self, batch: Batch) -> Counters:
        """Reads the images of `batch.rows.samples` into one of the slots; returns what was read. Raises UserError."""
        parts = shares(len(batch.rows.samples), self._count)
        if len(parts) == 1:
            return self._fill(batch, parts[0])
        futures = [self._threads.submit(partial(self._fill, batch, rows)) for rows in parts]
        wait(futures)  # before an error is raised: then no thread writes to the batch any more
        return sum((future.result() for future in futures), Counters())

    def _fill(self, batch: Batch, rows: slice) -> Counters:
        return self._fetcher.fill(batch.rows.samples[rows], batch.rows.pixels[rows], batch.rows.labels[rows])

    def close(self) -> None:
        """Waits a while for what is being read."""
        self._threads.close(JOIN_TIMEOUT)


class ProcessDecodePool:
    """Processes that decode into memory that they share with this one."""

    def __init__(self, fetcher: Fetcher, plan: DecodePlan, slots: int, images: int) -> None:
        """`slots` batches of `images` images. Raises OSError when the system refuses the memory or the processes."""
        self._fetcher, self._pinned = fetcher, 0  # address
        self._workers: list[tuple[subprocess.Popen[bytes], Connection]] = []
        each = bytes_of_batch(images, *fetcher.shape)
        with ExitStack() as stack:
            memory = os.memfd_create("dcgan_dist batches")
            stack.callback(os.close, memory)
            os.ftruncate(memory, slots * each)
            self._memory = mmap.mmap(memory, slots * each)
            view = memoryview(self._memory)
            self.slots = [batch_in(view[n * each : (n + 1) * each], images, *fetcher.shape, n) for n in range(slots)]
            stack.callback(self.close)
            task = ForkingPickler.dumps((fetcher, slots, images))  # once, for a corpus may be large
            for rows in shares(images, plan.count):
                self._workers.append(_start(memory))
                self._workers[-1][1].send_bytes(task)
                self._workers[-1][1].send(rows)
            if plan.pinned:
                self._pin()
            stack.pop_all()
            os.close(memory)  # the maps of all processes hold it

    def _pin(self) -> None:
        """Registers the memory with CUDA, so that a GPU reads from it without a further copy."""
        runtime: Any = torch.cuda.cudart()
        address = torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr()
        torch.cuda.check_error(int(runtime.cudaHostRegister(address, len(self._memory), 0)))
        self._pinned = address

    def fill(self, batch: Batch) -> Counters:
        """As ThreadDecodePool's."""
        try:
            for _, connection in self._workers:
                connection.send_bytes(batch.slot.to_bytes(4, "little"))
            answers = [connection.recv() for _, connection in self._workers]
        except (EOFError, OSError) as error:
            problem = "a decoding process ended, perhaps out of memory; try fewer --data.workers"
            raise UserError(problem) from error
        for failure, _, damages in answers:
            if failure is not None:
                raise failure
            self._fetcher.note(damages)
        return sum((counters for _, counters, _ in answers), Counters())

    def close(self) -> None:
        """Ends the processes."""
        for _, connection in self._workers:
            connection.close()
        deadline = time.monotonic() + JOIN_TIMEOUT
        for process, _ in self._workers:
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._pinned:
            runtime: Any = torch.cuda.cudart()
            torch.cuda.check_error(int(runtime.cudaHostUnregister(self._pinned)))


def _start(memory: int) -> tuple[subprocess.Popen[bytes], Connection]:
    """A process that runs decode_worker; one of multiprocessing would import the trainer's torch."""
    ours, its = Pipe()
    package = str(Path(dcgan_dist.__file__).parent.parent)
    known = os.environ.get("PYTHONPATH")
    with signals_blocked():  # they end when the trainer closes its pipes, however it ends
        process = subprocess.Popen(
            [sys.executable, "-m", "dcgan_dist.data.reading.decode_worker", str(memory), str(its.fileno())],
            pass_fds=(memory, its.fileno()),
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{known}" if known else package},
        )
    its.close()
    return process, ours


def shares(count: int, parts: int) -> list[slice]:
    """0 .. count cut into at most `parts` runs of about equal length, none empty."""
    parts = min(parts, count)
    bounds = [part * count // parts for part in range(parts + 1)]
    return [slice(first, last) for first, last in pairwise(bounds)]


def open_decode_pool(fetcher: Fetcher, plan: DecodePlan, images: int) -> ThreadDecodePool | ProcessDecodePool:
    """The workers that fill batches of `images` images. Raises UserError when the system refuses them."""
    slots = plan.prefetch + 2  # one is being filled, one is with the trainer
    if plan.kind == "processes":
        try:
            return ProcessDecodePool(fetcher, plan, slots, images)
        except OSError as error:
            size = slots * bytes_of_batch(images, *fetcher.shape) / 1e6
            raise UserError(
                f"{plan.count} decoding processes with {size:.0f} MB of shared memory could not start "
                f"({error.strerror}); try --data.decode threads, or fewer --data.workers and a smaller --data.prefetch"
            ) from error
    batches = [empty_batch(images, *fetcher.shape, plan.pinned) for _ in range(slots)]
    return ThreadDecodePool(fetcher, batches, plan.count)
