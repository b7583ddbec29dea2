"""What benchmarks.loaders compares: ours, webdataset, torchvision and the floors.

A loader is called with a Task before the clocks are read, and returns batches without end.
"""

import tarfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import DatasetFolder
from webdataset.compat import WebDataset

from benchmarks.corpora import SHARDS
from benchmarks.ours import open_batches, with_workers
from benchmarks.turns import BATCH, Loader, Task
from dcgan_dist.config import Config
from dcgan_dist.config.groups import DataConfig, ModelConfig

PACKAGES = ("webdataset", "torch", "torchvision", "simplejpeg", "pillow", "numpy")
SHUFFLE = 1_000  # webdataset's buffer, as in its documentation


# ---- ours


def first_epoch(task: Task) -> Iterator[Tensor]:
    """From the opening of the shards on, checksums included; `workers`: at least 1."""
    size: Any = task.size  # also sizes that no network has
    config = Config(
        batch_size=BATCH,
        model=ModelConfig(image_size=size),
        data=DataConfig(shards=(str(Path(task.corpus) / task.kind / "*.tar"),)),
    )
    for batch in open_batches(with_workers(config, "threads", max(1, task.workers))):
        yield batch.images


def later_epochs(task: Task) -> Iterator[Tensor]:
    """The same after a pass over the images."""
    batches = first_epoch(task)
    for _ in range(-(-task.images // BATCH)):
        next(batches)
    return batches


# ---- webdataset


def wds_documented(task: Task) -> Iterator[Tensor]:
    """As its documentation shows it: PIL images, ToTensor, Normalize, a DataLoader."""
    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])
    return _webdataset(task, "pil", prepare)


def wds_pil(task: Task) -> Iterator[Tensor]:
    """PIL, delivering uint8 as ours does."""
    return _webdataset(task, "pil", _to_uint8)


def wds_tuned(task: Task) -> Iterator[Tensor]:
    """The most that is known to be made of it: simplejpeg for .jpg, the pixels themselves from .ppm."""
    return _webdataset(task, None, simplejpeg.decode_jpeg if task.kind == "jpg" else partial(_raw, size=task.size))


def _webdataset(task: Task, decode: str | None, prepare: Callable[[Any], Any]) -> Iterator[Tensor]:
    warnings.simplefilter("ignore", ResourceWarning)  # webdataset never closes the files that it reads
    shards = sorted(str(path) for path in (Path(task.corpus) / task.kind).glob("*.tar"))
    dataset: Any = WebDataset(shards, shardshuffle=100).shuffle(SHUFFLE)
    if decode is not None:
        dataset = dataset.decode(decode)
    dataset = dataset.to_tuple(task.kind).map_tuple(prepare)
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=task.workers, drop_last=True)
    for _ in count():
        for (images,) in loader:
            yield images


def _to_uint8(image: Any) -> np.ndarray:
    return np.array(image, dtype=np.uint8)


def _raw(data: bytes, size: int) -> np.ndarray:
    # a copy, for an array without the right to write is no tensor
    return np.frombuffer(data, dtype=np.uint8, offset=len(data) - size * size * 3).reshape(size, size, 3).copy()


# ---- torchvision


def folder_pil(task: Task) -> Iterator[Tensor]:
    """ImageFolder as it is, delivering uint8."""
    return _image_folder(task, _open_pil)


def folder_simplejpeg(task: Task) -> Iterator[Tensor]:
    """ImageFolder with the fastest decoder."""
    return _image_folder(task, _open_simplejpeg)


def _image_folder(task: Task, opened: Callable[[str], np.ndarray]) -> Iterator[Tensor]:
    dataset = DatasetFolder(f"{task.corpus}/folder", opened, extensions=(".jpg",))  # ImageFolder's own base class
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=task.workers, drop_last=True)
    for _ in count():
        for images, _labels in loader:
            yield images


def _open_pil(path: str) -> np.ndarray:
    from torchvision.datasets.folder import pil_loader

    return np.array(pil_loader(path))


def _open_simplejpeg(path: str) -> np.ndarray:
    return simplejpeg.decode_jpeg(Path(path).read_bytes())


# ---- floors: what no loader of such files can be below


def decoding(task: Task) -> Iterator[np.ndarray]:
    """simplejpeg alone, from memory into a batch."""
    files = [path.read_bytes() for path in sorted(Path(task.corpus, "folder", "all").iterdir())]
    order = np.random.default_rng(0).permutation(len(files))

    def batches() -> Iterator[np.ndarray]:
        out = np.empty((BATCH, task.size, task.size, 3), dtype=np.uint8)
        for start in count(step=BATCH):
            for row in range(BATCH):
                simplejpeg.decode_jpeg(files[order[(start + row) % len(order)]], buffer=out[row])
            yield out

    return batches()


def gather(task: Task) -> Iterator[np.ndarray]:
    """Random rows of a memory-mapped array, for the first time in this process."""
    return _gathered([np.load(Path(task.corpus) / "pixels.npy", mmap_mode="r")])


def gather_later(task: Task) -> Iterator[np.ndarray]:
    """The same after a pass over the images, so that the pages are in this process's table."""
    return _after_a_pass(gather(task), task)


def tar_gather(task: Task) -> Iterator[np.ndarray]:
    """The same from the memory-mapped `.ppm` shards: their pixels lie at a fixed stride. Each batch from one shard."""
    shape = (task.size, task.size, 3)
    pixels = int(np.prod(shape))
    views = []
    for path in sorted((Path(task.corpus) / "ppm").glob("*.tar")):
        with tarfile.open(path) as tar:
            first, second = islice(tar, 2)
            members = sum(name.endswith(".ppm") for name in tar.getnames())
        start, step = first.offset_data + first.size - pixels, second.offset_data - first.offset_data
        content = np.memmap(path, dtype=np.uint8, mode="r", offset=start)
        rows = np.lib.stride_tricks.as_strided(content, (members, pixels), (step, 1), writeable=False)
        views.append(rows.reshape(members, *shape))
    assert len(views) == SHARDS
    return _gathered(views)


def tar_gather_later(task: Task) -> Iterator[np.ndarray]:
    """The same after a pass over the images."""
    return _after_a_pass(tar_gather(task), task)


def _gathered(views: list[np.ndarray]) -> Iterator[np.ndarray]:
    orders = [np.random.default_rng(0).permutation(len(view)) for view in views]
    out = np.empty((BATCH, *views[0].shape[1:]), dtype=np.uint8)
    for start in count(step=BATCH):
        for view, order in zip(views, orders, strict=True):
            out[:] = view[order.take(range(start, start + BATCH), mode="wrap")]
            yield out


def _after_a_pass(batches: Iterator[np.ndarray], task: Task) -> Iterator[np.ndarray]:
    for _ in range(-(-task.images // BATCH)):
        next(batches)
    return batches


LOADERS: dict[str, Loader] = {
    "ours, first epoch": first_epoch,
    "ours, later epochs": later_epochs,
    "webdataset, documented": wds_documented,
    "webdataset, PIL, uint8": wds_pil,
    "webdataset, tuned": wds_tuned,
    "ImageFolder, PIL": folder_pil,
    "ImageFolder, simplejpeg": folder_simplejpeg,
    "bare decode": decoding,
    "memory map, first pass": gather,
    "memory map, later": gather_later,
    "tar as memory map, first pass": tar_gather,
    "tar as memory map, later": tar_gather_later,
}
