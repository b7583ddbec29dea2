"""LitData, from chunks of encoded JPEG files or of pixels."""

import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from litdata import StreamingDataLoader, StreamingDataset  # pyright: ignore[reportMissingImports]
from litdata.streaming import Cache  # pyright: ignore[reportMissingImports]
from torch import Tensor

from benchmarks.peers.samples import samples
from benchmarks.turns import BATCH, Loader, Task

PACKAGES = ("litdata", "torch", "numpy", "simplejpeg")


class _Images(StreamingDataset):
    """`raw`: the shape of an image whose bytes are its pixels; None: they are a JPEG file."""

    raw: tuple[int, int, int] | None = None

    def __getitem__(self, index: Any) -> Tensor:
        data = super().__getitem__(index)
        pixels = simplejpeg.decode_jpeg(data) if self.raw is None else np.frombuffer(data, np.uint8).reshape(self.raw)
        return torch.from_numpy(pixels)


def load(task: Task) -> Iterator[Tensor]:
    """As its documentation shows it, with shuffling, on a local folder."""
    dataset = _Images(str(_chunks(task)), shuffle=True, drop_last=True)
    dataset.raw = (task.size, task.size, 3) if task.kind == "ppm" else None
    return _batches(dataset, task.workers)


def _batches(dataset: StreamingDataset, workers: int) -> Iterator[Tensor]:
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, shuffle=True, drop_last=True)
    for _ in count():
        yield from loader


def _chunks(task: Task) -> Path:
    folder = Path(task.corpus) / f"litdata-{task.kind}"
    if not folder.exists():
        temporary = folder.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        cache = Cache(str(temporary), chunk_bytes="64MB")
        for number, data in enumerate(samples(task)):
            cache[number] = data
        cache.done()
        cache.merge()
        temporary.rename(folder)
    return folder


LOADERS: dict[str, Loader] = {"LitData": load}
