"""What `--store` costs: bytes of the shards and CPU time to read an image back, for each way of storing.

    python -m benchmarks.stores FOLDER [--sizes 64 96]

FOLDER holds images; it is packed with every store into a temporary folder. CPU time is that of Fetcher.fill in one
thread, for shuffled batches of 128: the first epoch, with all checks, and the median of three later ones.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import get_args

import numpy as np

from benchmarks.measure import table
from dcgan_dist.data.corpus import Corpus, open_shards
from dcgan_dist.data.images.codecs import StoreFormat
from dcgan_dist.data.order import Order
from dcgan_dist.data.reading.fetch import Fetcher
from dcgan_dist.data.shards.opener import Opener
from dcgan_dist.data.sources import find_source
from dcgan_dist.data.writing.packing import Packing
from dcgan_dist.data.writing.writer import write_shards

BATCH = 128


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96])
    options = parser.parse_args()
    rows = []
    for size in options.sizes:
        for store in get_args(StoreFormat):
            with tempfile.TemporaryDirectory() as out:
                begun = time.monotonic()
                summary = write_shards(find_source(options.folder), Path(out), Packing(size=size, store=store))
                rate = summary.samples / (time.monotonic() - begun)
                first, *later = epochs(out, size)
                each = summary.bytes / summary.samples
            cells = (f"{each:,.0f}", f"{first:.1f}", f"{statistics.median(later):.1f}", f"{rate:,.0f}")
            rows.append((f"{store}, {size} px", *cells))
            print(rows[-1], flush=True)
    print(table(("", "bytes an image", "us, first epoch", "us, later", "images/s packed"), rows))


def epochs(folder: str, size: int) -> list[float]:
    """CPU microseconds an image of four epochs."""
    opener = Opener()
    corpus = Corpus(open_shards(sorted(map(str, Path(folder).glob("*.tar"))), opener), opener)
    fetcher, order = Fetcher(corpus, (size, 3)), Order(corpus.lengths, 0)
    pixels, labels = np.empty((BATCH, size, size, 3), dtype=np.uint8), np.empty(BATCH, dtype=np.int64)
    batches = [order.samples(first, BATCH) for first in range(0, corpus.size - BATCH + 1, BATCH)]
    found = []
    for _ in range(4):
        begun = time.process_time()
        for samples in batches:
            fetcher.fill(samples, pixels, labels)
        found.append((time.process_time() - begun) / len(batches) / BATCH * 1e6)
    return found


if __name__ == "__main__":
    main()
