"""The indexed reader: any position of the order at once, images decoded straight into the batch."""

import os
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dcgan_dist.data.codecs import decode_into, netpbm_header
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.index import ShardIndex
from dcgan_dist.data.order import Order, rank_slices
from dcgan_dist.data.ring import Batch, empty_batch, read_ahead
from dcgan_dist.errors import UserError

MOST_OPEN_FILES = 512


@dataclass(frozen=True, kw_only=True)
class Split:
    """How a global batch is shared out: `batch` images in `micro_batches` over `world_size` ranks, seen by `rank`."""

    batch: int
    micro_batches: int
    rank: int
    world_size: int

    @property
    def per_rank_micro(self) -> int:
        """Images of one micro-batch on one rank."""
        return self.batch // (self.micro_batches * self.world_size)

    def slices(self, position: int) -> list[int]:
        """First positions of this rank's slice of every micro-batch of the batch at `position`."""
        return rank_slices(position, self.batch, self.micro_batches, self.rank, self.world_size)


class _File:
    """An open file that closes itself when the last thread that reads from it lets go of it."""

    _descriptor = -1  # when it could not be opened

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, length: int, offset: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    def readv(self, buffers: list[bytearray | memoryview], offset: int) -> int:
        return os.preadv(self._descriptor, buffers, offset)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class IndexedReader:
    """Reads the images of a corpus in the order of a seed. All state is the position that `batches` begins at."""

    exact = True  # resumes at the very sample

    def __init__(
        self, corpus: Corpus, *, shape: tuple[int, int], seed: int, threads: int, prefetch: int, pinned: bool
    ) -> None:
        """`shape`: height (and width), channels."""
        self.corpus = corpus
        self.order = Order(corpus.lengths, seed)
        self._shape = shape
        self._header = netpbm_header(shape[0], *shape)
        self._threads, self._prefetch, self._pinned = threads, prefetch, pinned
        self._files: dict[int, _File] = {}
        self._lock = threading.Lock()  # of _files

    def batches(self, position: int, split: Split) -> Generator[Batch, None, None]:
        """This rank's batches from a position on, without end: micro-batch after micro-batch within each."""
        count = split.per_rank_micro
        images = count * split.micro_batches
        positions = iter(range(position, 2**62, split.batch))
        slots = [empty_batch(images, *self._shape, self._pinned) for _ in range(self._prefetch + 2)]
        with ThreadPoolExecutor(self._threads, thread_name_prefix="decode") as pool:

            def fill(batch: Batch) -> None:
                starts = split.slices(next(positions))
                batch.samples[:] = np.concatenate([self.order.samples(start, count) for start in starts])
                batch.flips[:] = torch.from_numpy(np.concatenate([self.order.flips(start, count) for start in starts]))
                batch.labels[:] = torch.from_numpy(self.corpus.labels[batch.samples])
                parts = np.array_split(np.arange(len(batch.samples)), self._threads)
                list(pool.map(lambda rows: self._fill_rows(batch, rows), parts))

            yield from read_ahead(fill, slots)

    def _fill_rows(self, batch: Batch, rows: np.ndarray) -> None:
        pixels = batch.pixels
        for row in rows:
            self._read_image(int(batch.samples[row]), pixels[row])

    def _read_image(self, sample: int, out: np.ndarray) -> None:
        """Decodes one image into `out`, uint8 (H, W, C). Raises UserError naming shard, key and byte."""
        number, member = self.corpus.locate(sample)
        shard = self.corpus.shards[number]
        try:
            self._decode(self._open(number), shard, member, out)
        except OSError as error:
            raise UserError(f"{shard.describe(member)}: cannot be read any more ({error.strerror})") from error

    def _decode(self, file: _File, shard: ShardIndex, member: int, out: np.ndarray) -> None:
        offset, length = int(shard.offset[member]), int(shard.length[member])
        if length == len(self._header) + out.nbytes:  # pixels at training size: from the file into the batch
            header = bytearray(len(self._header))
            if file.readv([header, out.data.cast("B")], offset) == length and header == self._header:
                return
        data = file.read(length, offset)
        if len(data) < length:
            raise UserError(f"{shard.describe(member)}: the file ends early; it was cut after the run began")
        decode_into(data, shard.suffixes[shard.suffix[member]], out, shard.describe(member))

    def _open(self, number: int) -> _File:
        with self._lock:
            if number not in self._files:
                if len(self._files) >= MOST_OPEN_FILES:
                    del self._files[next(iter(self._files))]
                self._files[number] = _File(self.corpus.shards[number].path)
            return self._files[number]
