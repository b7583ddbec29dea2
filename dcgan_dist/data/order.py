"""The order of the images: pure arithmetic, whose only state is one integer.

Position P counts the samples that all ranks together have taken since the start. The lengths of the shards, the seed
and P determine the epoch, the sample and the flip bit. Nothing is padded, dropped or repeated: every epoch is a
permutation of all samples, and the stream runs on into the next. The global batch at P is [P, P + B) on any number of
ranks; a rank takes its slice of it.

Up to SHUFFLED samples, an epoch is one keyed permutation of all of them: a uniform shuffle.

Larger sets, whose shards are best read in runs, are mixed in two steps. The shards are cut into blocks of samples; the
blocks are permuted (keyed by seed and epoch) and concatenated; the result is cut into lanes of equal length; each
lane is permuted in windows; and the lanes are interleaved sample by sample. Two samples of one batch thus come from
distant places, while each lane walks through its blocks one after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from dcgan_dist import keyed

VERSION = 2  # of the arithmetic below: a checkpoint of another version cannot be resumed at its position
# samples; the permutation takes 8 bytes and, once an epoch, 0.1 us of each
SHUFFLED = 2**21
BLOCK = 64  # samples; about the smallest run that disks read at full speed
LANES = 64
WINDOW = 2048  # samples of a lane that are permuted together
CHUNK = LANES * WINDOW // 2  # positions; so few that no lane goes through more than two windows


class Order:
    """The endless stream of sample numbers 0 .. n - 1, where n is the sum of `lengths`, the samples of each shard.

    Thread-safe. Up to SHUFFLED samples it holds the permutations of the last epochs. Above, it holds about half a byte
    per sample and the current windows of the lanes: reading on costs a table look-up per sample, jumping by more than a
    window a new permutation. A rank permutes all windows of which it takes a part, about 25 ns per sample of the job.
    """

    def __init__(self, lengths: Sequence[int], seed: int) -> None:
        shards = np.asarray(lengths, dtype=np.int64)
        self.size = int(shards.sum())
        self.seed = seed
        if self.size == 0:
            raise ValueError("an order of no samples")
        self._shard_end = np.cumsum(shards)
        self._shuffled = self.size <= SHUFFLED
        # an instance's own caches; the reader may be in two epochs while another thread looks ahead into a third
        self._epoch = lru_cache(maxsize=3)(self._permute_all)
        self._epoch_blocks = lru_cache(maxsize=2)(self._permute_blocks)
        blocks = -(-shards // BLOCK)  # a block is within one shard, so a shard's last one may be short
        self._blocks_end = np.cumsum(blocks)
        # block b of shard s begins at sample offset[s] + BLOCK * b
        self._offset = self._shard_end - shards - BLOCK * (self._blocks_end - blocks)
        self._block_length = np.full(int(blocks.sum()), BLOCK, dtype=np.uint8)  # samples
        filled = shards > 0
        self._block_length[self._blocks_end[filled] - 1] = (shards - BLOCK * (blocks - 1))[filled]
        each, rest = divmod(self.size, LANES)
        lanes = np.arange(LANES)
        self._lane_start, self._lane_length = lanes * each + np.minimum(lanes, rest), each + (lanes < rest)
        self._lane_windows = np.maximum(1, np.rint(self._lane_length / WINDOW).astype(np.int64))
        widest = 0 if self._shuffled else int((-(-self._lane_length // self._lane_windows)).max())
        self._reading, self._looking_ahead = _Windows(widest), _Windows(widest)

    def samples(self, start: int, count: int) -> NDArray[np.int64]:
        """The sample numbers at positions start .. start + count. The cost does not depend on `start`."""
        return self._take(self._reading, start, count)

    def first_uses(self, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards of positions start .. start + count, and the first position of each, in that order.

        It has windows of its own, so it does not slow `samples` down.
        """
        samples = self._take(self._looking_ahead, start, count)
        first = np.full(len(self._shard_end), -1, dtype=np.int64)
        # numpy keeps the last of several values for one index, so in reverse
        first[np.searchsorted(self._shard_end, samples[::-1], side="right")] = np.arange(count - 1, -1, -1)
        shards = np.flatnonzero(first >= 0)
        shards = shards[np.argsort(first[shards])]
        return shards, start + first[shards]

    def _take(self, windows: "_Windows", start: int, count: int) -> NDArray[np.int64]:
        taken = np.empty(count, dtype=np.int64)
        done = 0
        with windows.lock:
            while done < count:
                epoch, within = divmod(start + done, self.size)
                part = min(count - done, self.size - within, CHUNK)
                taken[done : done + part] = self._in_epoch(windows, epoch, within, part)
                done += part
        return taken

    def _in_epoch(self, windows: "_Windows", epoch: int, within: int, count: int) -> NDArray[np.int64]:
        if self._shuffled:
            return self._epoch(epoch)[within : within + count]
        step, lane = np.divmod(np.arange(within, within + count), LANES)
        in_lane = self._lane_windows[lane]
        window = ((step + 1) * in_lane - 1) // self._lane_length[lane]
        number = epoch * in_lane + window  # of the lane's windows since the first epoch
        row = 2 * lane + number % 2
        missing = np.flatnonzero(windows.number[row] != number)
        if missing.size:
            for place in missing[np.unique(row[missing], return_index=True)[1]].tolist():
                first, samples = self._window(epoch, int(lane[place]), int(window[place]))
                windows.samples[row[place], : len(samples)] = samples
                windows.number[row[place]], windows.first[row[place]] = number[place], first
        return windows.samples[row, step - windows.first[row]]

    def _window(self, epoch: int, lane: int, window: int) -> tuple[int, NDArray[np.int64]]:
        """The step at which a window of a lane begins, and its samples in their order."""
        length, windows = int(self._lane_length[lane]), int(self._lane_windows[lane])
        first, end = window * length // windows, (window + 1) * length // windows
        start = int(self._lane_start[lane])
        order = keyed.permutation(keyed.key(self.seed, "window", epoch, lane, window), end - first)
        return first, self._sequence(epoch, start + first, start + end)[order]

    def _sequence(self, epoch: int, start: int, end: int) -> NDArray[np.int64]:
        """The samples at places start .. end of the epoch's concatenated blocks."""
        order, ends = self._epoch_blocks(epoch)
        first, last = np.searchsorted(ends, (start, end - 1), side="right")
        block, block_end = order[first : last + 1], ends[first : last + 1]
        length = self._block_length[block].astype(np.int64)
        block_start = self._offset[np.searchsorted(self._blocks_end, block, side="right")] + BLOCK * block
        to_sample = block_start - (block_end - length)
        length[0] = block_end[0] - start
        length[-1] -= block_end[-1] - end
        return np.repeat(to_sample, length) + np.arange(start, end)

    def _permute_all(self, epoch: int) -> NDArray[np.int64]:
        """The samples of an epoch in their order, up to SHUFFLED of them."""
        return keyed.permutation(keyed.key(self.seed, "epoch", epoch), self.size)

    def _permute_blocks(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The blocks in the epoch's sequence, and where each of them ends in it."""
        order = keyed.permutation(keyed.key(self.seed, "blocks", epoch), len(self._block_length))
        return order, np.cumsum(self._block_length[order], dtype=np.int64)


class _Windows:
    """The samples of two windows of every lane, in their order.

    A lane has a row for even windows and one for odd, so that a batch can extend over the end of a window or an epoch.
    """

    def __init__(self, widest: int) -> None:
        self.lock = Lock()
        self.number = np.full(2 * LANES, -1, dtype=np.int64)
        self.first = np.zeros(2 * LANES, dtype=np.int64)  # step
        self.samples = np.empty((2 * LANES, widest), dtype=np.int64)


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
        """First positions of this rank's slice of every micro-batch of the batch at `position`.

        The batch is first cut into micro-batches and each of those over the ranks, so that micro-batch k is the same
        set of images on any number of ranks.
        """
        per_micro = self.batch // self.micro_batches
        first = position + self.rank * self.per_rank_micro
        return [first + micro * per_micro for micro in range(self.micro_batches)]


def flips(seed: int, start: int, count: int) -> NDArray[np.bool_]:
    """Whether the image at each position is mirrored: a fair coin for every position of a seed."""
    return (keyed.words(keyed.key(seed, "flip"), start, count) & np.uint64(1)).astype(np.bool_)
