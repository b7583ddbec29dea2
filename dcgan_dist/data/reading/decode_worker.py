"""The process that decodes its rows of every batch into shared memory; see decode_pool.py. Does not import torch."""

import contextlib
import mmap
import sys
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from dcgan_dist.data.reading.counters import Counters
from dcgan_dist.data.reading.fetch import Fetcher
from dcgan_dist.data.reading.shared_batch import batch_arrays, bytes_of_batch
from dcgan_dist.errors import UserError


def main(memory: int, connection: int) -> None:
    """Serves until the trainer closes the connection or ends."""
    with Connection(connection) as parent, contextlib.suppress(EOFError, OSError):
        fetcher, slots, images = parent.recv()
        rows = parent.recv()
        each = bytes_of_batch(images, *fetcher.shape)
        ring = memoryview(mmap.mmap(memory, slots * each))
        batches = [batch_arrays(ring[n * each : (n + 1) * each], images, *fetcher.shape) for n in range(slots)]
        while True:
            pixels, labels, samples, _ = batches[int.from_bytes(parent.recv_bytes(), "little")]
            parent.send(_fill(fetcher, samples[rows], pixels[rows], labels[rows]))


def _fill(
    fetcher: Fetcher, samples: NDArray[np.int64], pixels: NDArray[np.uint8], labels: NDArray[np.int64]
) -> tuple[UserError | None, Counters, dict[int, str]]:
    known = len(fetcher.damages)
    try:
        counters = fetcher.fill(samples, pixels, labels)
    except UserError as error:
        return error, Counters(), {}
    return None, counters, dict(list(fetcher.damages.items())[known:])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
