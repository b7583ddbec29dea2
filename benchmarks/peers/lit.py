"""LitData, from chunks of encoded JPEG files or of pixels."""

import math
import shutil
import warnings
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

warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)  # nobody writes here


class Encoded(StreamingDataset):
    """JPEG files."""

    def __getitem__(self, index: Any) -> Tensor:
        return torch.from_numpy(simplejpeg.decode_jpeg(super().__getitem__(index)))


class Bytes(StreamingDataset):
    """Pixels as bytes, of square images."""

    def __getitem__(self, index: Any) -> Tensor:
        pixels = np.frombuffer(super().__getitem__(index), np.uint8)
        side = math.isqrt(len(pixels) // 3)
        return torch.from_numpy(pixels.reshape(side, side, 3))


def _loader(dataset_class: type[StreamingDataset], name: str, arrays: bool = False) -> Loader:
    """As its documentation shows it, with shuffling, on a local folder."""

    def load(task: Task) -> Iterator[Tensor]:
        folder = _chunks(task, name, arrays)

        def batches() -> Iterator[Tensor]:
            # its own choice unpacks large items of a chunk anew for each that is asked for
            at_once = "auto" if name == "jpg" else False
            dataset = dataset_class(str(folder), shuffle=True, drop_last=True, batch_decode=at_once)
            loader = StreamingDataLoader(
                dataset, batch_size=BATCH, num_workers=task.workers, shuffle=True, drop_last=True
            )
            for _ in count():
                yield from loader

        return batches()

    return load


def _chunks(task: Task, name: str, arrays: bool) -> Path:
    folder = Path(task.corpus) / f"litdata-{name}"
    if not folder.exists():
        temporary = folder.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        cache = Cache(str(temporary), chunk_bytes="64MB")
        for number, data in enumerate(samples(task)):
            cache[number] = np.frombuffer(data, np.uint8).reshape(task.size, task.size, 3) if arrays else data
        cache.done()
        cache.merge()
        temporary.rename(folder)
    return folder


LOADERS: dict[str, Loader] = {
    "LitData": _loader(Encoded, "jpg"),
    "LitData, arrays": _loader(StreamingDataset, "arrays", arrays=True),
    "LitData, bytes": _loader(Bytes, "bytes"),
}
