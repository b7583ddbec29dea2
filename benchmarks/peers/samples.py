"""What peers write into their own formats: the very bytes that the others read."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.turns import Task


def samples(task: Task) -> Iterator[bytes]:
    """JPEG files, or pixels."""
    corpus = Path(task.corpus)
    if task.kind == "jpg":
        yield from (path.read_bytes() for path in sorted((corpus / "folder" / "all").iterdir()))
    else:
        yield from (image.tobytes() for image in np.load(corpus / "pixels.npy", mmap_mode="r"))
