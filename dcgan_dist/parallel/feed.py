"""Batches from the reader's memory to the device."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from dcgan_dist.data.ring import Batch


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches on the device. On a GPU the next copy runs on a stream of its own while the networks compute."""
    if device.type != "cuda":
        yield from batches
        return
    copies = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = replace(batch, images=_to(batch.images, device), flips=_to(batch.flips, device), labels=_to(batch.labels, device))
        # the reader reuses its memory when the next batch is asked for; this stream holds nothing but copies, so it is soon done
        copies.synchronize()
        for tensor in (moved.images, moved.flips, moved.labels):
            tensor.record_stream(torch.cuda.current_stream(device))
        yield moved


def _to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.to(device, non_blocking=True)
