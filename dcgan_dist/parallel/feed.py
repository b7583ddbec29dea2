"""Batches from the reader's memory to the device."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from dcgan_dist.data.reading.prefetch_buffer import Batch


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Copies the batches to the device. On a GPU the next copy overlaps with the computation, on its own stream."""
    if device.type != "cuda":
        yield from batches
        return
    copies = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(copies):
            sent = [tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.flips, batch.labels)]
        # the reader reuses its memory for the next batch; this stream holds only copies
        copies.synchronize()
        for tensor in sent:
            tensor.record_stream(torch.cuda.current_stream(device))
        images, flips, labels = sent
        yield replace(batch, images=images, flips=flips, labels=labels)
