"""Preallocated batches, filled in turn, ahead of the training by a thread or on request; pixels are not copied."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from itertools import cycle
from queue import SimpleQueue
from threading import Event, Thread

import torch
from torch import Tensor

from dcgan_dist.data.reading.counters import Counters
from dcgan_dist.data.reading.shared_batch import BatchArrays, batch_arrays, bytes_of_batch
from dcgan_dist.data.system.workers import signals_blocked

JOIN_TIMEOUT = 10  # seconds; a thread that hangs in a read must not delay the end of the program


@dataclass(kw_only=True)
class Batch:
    """A rank's part of one global batch of n images."""

    images: Tensor  # uint8 (n, C, H, W), channels last in memory
    flips: Tensor  # bool (n,): mirror this image
    labels: Tensor  # int64 (n,): -1 where there is none
    rows: BatchArrays
    """The same memory as arrays. Threads use only these: a thread inside torch when the program ends would abort it."""
    slot: int = 0  # number of the memory that holds it
    read: Counters = field(default_factory=Counters)  # what was read for it


def empty_batch(count: int, size: int, channels: int, pinned: bool) -> Batch:
    """A slot for `count` images; pinned memory goes to a GPU without a further copy and without waiting."""
    memory = torch.zeros(bytes_of_batch(count, size, channels), dtype=torch.uint8, pin_memory=pinned)
    batch = batch_in(memory.numpy().data, count, size, channels)
    batch.rows.labels[:] = batch.rows.samples[:] = -1
    return batch


def batch_in(memory: memoryview, count: int, size: int, channels: int, slot: int = 0) -> Batch:
    """A slot in memory that is there already, perhaps shared by several processes; see shared_batch.py."""
    rows = batch_arrays(memory, count, size, channels)
    images = torch.from_numpy(rows.pixels).permute(0, 3, 1, 2)
    flips, labels = torch.from_numpy(rows.flips), torch.from_numpy(rows.labels)
    return Batch(images=images, flips=flips, labels=labels, rows=rows, slot=slot)


def prefetch_batches(fill: Callable[[Batch], None], slots: list[Batch]) -> Generator[Batch, None, None]:
    """Yields the slots, filled one after the other by a thread. A batch is valid until the next one is requested.

    An error in `fill` is raised here, in its turn, after the batches before it.
    """
    free: SimpleQueue[Batch | None] = SimpleQueue()
    ready: SimpleQueue[Batch | BaseException] = SimpleQueue()
    closed = Event()
    for slot in slots:
        free.put(slot)

    def produce() -> None:
        while (slot := free.get()) is not None and not closed.is_set():
            try:
                fill(slot)
            except BaseException as error:
                ready.put(error)
                return
            ready.put(slot)

    thread = Thread(target=produce, name="reader", daemon=True)
    with signals_blocked():
        thread.start()
    try:
        while True:
            result = ready.get()
            if isinstance(result, BaseException):
                raise result
            yield result
            free.put(result)
    finally:
        closed.set()
        free.put(None)
        thread.join(JOIN_TIMEOUT)


def batches_in_turn(fill: Callable[[Batch], None], slots: list[Batch]) -> Generator[Batch, None, None]:
    """Yields the slots, each filled when it is requested, by the caller's thread.

    For samples that may come from processes that are forked on the way, as those of a DataLoader: a process that is
    forked by one thread while another computes or imports may wait for ever for a lock that the other held.
    """
    for slot in cycle(slots):
        with signals_blocked():  # also in those processes
            fill(slot)
        yield slot
