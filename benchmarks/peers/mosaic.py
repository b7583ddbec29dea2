"""MosaicML Streaming, from MDS shards of encoded JPEG files or of pixels."""

import shutil
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from streaming import (  # pyright: ignore[reportMissingImports]
    MDSWriter,
    StreamingDataLoader,
    StreamingDataset,
)
from torch import Tensor

from benchmarks.peers.samples import samples
from benchmarks.turns import BATCH, Loader, Task

PACKAGES = ("mosaicml-streaming", "torch", "numpy", "simplejpeg")

warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)  # nobody writes here


class _Images(StreamingDataset):
    """`raw`: the shape of an image whose bytes are its pixels; None: they are a JPEG file."""

    raw: tuple[int, int, int] | None = None

    def __getitem__(self, index: Any) -> Tensor:
        data = super().__getitem__(index)["image"]
        pixels = simplejpeg.decode_jpeg(data) if self.raw is None else np.frombuffer(data, np.uint8).reshape(self.raw)
        return torch.from_numpy(pixels)


def load(task: Task) -> Iterator[Tensor]:
    """As its documentation shows it, with shuffling, on a local folder."""
    folder = _shards(task)

    def batches() -> Iterator[Tensor]:
        dataset = _Images(local=str(folder), shuffle=True, batch_size=BATCH)
        dataset.raw = (task.size, task.size, 3) if task.kind == "ppm" else None
        loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=task.workers, drop_last=True)
        for _ in count():
            yield from loader

    return batches()


def _shards(task: Task) -> Path:
    folder = Path(task.corpus) / f"mds-{task.kind}"
    if not folder.exists():
        temporary = folder.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        with MDSWriter(out=str(temporary), columns={"image": "bytes"}) as writer:
            for data in samples(task):
                writer.write({"image": data})
        temporary.rename(folder)
    return folder


LOADERS: dict[str, Loader] = {"MosaicML Streaming": load}
