"""Plain webdataset on shards, in a process of its own: python -m dcgan_dist.commands.bench.webdataset JSON.

A process of its own, because webdataset's workers are forked, which a process with threads had better not do.
"""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import count
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader
from torchvision import transforms
from webdataset.compat import WebDataset

from dcgan_dist.commands.bench.turns import Turn, until
from dcgan_dist.data.formats import IMAGE_SUFFIXES
from dcgan_dist.errors import UserError

SHUFFLE = 1_000  # its buffer, as in its documentation


def in_own_process(**task: Any) -> Turn:
    """`turn` with the same arguments. Raises UserError when it fails."""
    command = [sys.executable, "-m", "dcgan_dist.commands.bench.webdataset", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise UserError(f"webdataset cannot read these shards ({reason}); --no_webdataset measures without it")
    return Turn(**json.loads(done.stdout.splitlines()[-1]))


def turn(*, kind: str, shards: list[str], shape: list[int], batch: int, workers: int, seconds: float) -> Turn:
    """Batches for about so many seconds from the first one on.

    Args:
        kind: one of KINDS.
        shards: local tars.
        shape: height (and width) and channels of the images; others are fitted.
        batch: images of a batch.
        workers: processes; 0: none but this one.
        seconds: length.
    """
    batches = _batches(KINDS[kind], shards, shape, batch, workers)
    first = until(0, batches)
    rest = until(seconds, batches)
    return Turn(rest.images, rest.wall, rest.cpu, first.wall)


def _batches(
    finish: Callable[[Any], Any], shards: list[str], shape: list[int], batch: int, workers: int
) -> Iterator[int]:
    warnings.simplefilter("ignore", ResourceWarning)  # webdataset never closes the files that it reads
    size, channels = shape
    dataset: Any = WebDataset(shards, shardshuffle=100, empty_check=False).shuffle(SHUFFLE)
    dataset = dataset.decode("pil" if channels == 3 else "pill").to_tuple(";".join(IMAGE_SUFFIXES))
    loader = DataLoader(
        dataset.map_tuple(lambda image: finish(_fit(image, size))), batch_size=batch, num_workers=workers
    )
    for _ in count():
        for (images,) in loader:
            yield len(images)


def _fit(image: Image.Image, size: int) -> Image.Image:
    return image if image.size == (size, size) else ImageOps.fit(image, (size, size))


def _to_uint8(image: Image.Image) -> np.ndarray:
    return np.array(image, dtype=np.uint8)


KINDS: dict[str, Callable[[Any], Any]] = {
    "as documented": transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]),
    "PIL, uint8": _to_uint8,  # what our loader delivers
}


def main() -> None:
    """One turn; prints it as JSON."""
    torch.set_num_threads(1)
    print(json.dumps(asdict(turn(**json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
