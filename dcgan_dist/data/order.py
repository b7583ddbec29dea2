"""The order of the images: pure arithmetic, whose whole state is one integer.

Position P counts the samples that the whole job has taken since its start. From (lengths of the shards, seed, P) follow
the epoch, the sample and the flip bit. Nothing is padded, dropped or repeated: every epoch is a permutation of all
samples, and the stream runs on into the next. The global batch at P is [P, P + B) on any number of ranks; a rank takes
its slice of it.

An epoch's order, for data that lie sorted and are best read in runs: the shards are cut into blocks of samples; the
blocks are permuted (keyed by seed and epoch) and laid end to end; the result is cut into lanes of equal length; each
lane is permuted in windows; and the lanes are interleaved sample by sample. Two samples of one batch thus come from far
apart, while each lane walks through its blocks one after the other.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dcgan_dist import keyed

VERSION = 1  # of the arithmetic below: a checkpoint of another version cannot go on at its position
BLOCK = 64  # samples; about the smallest run that disks read at full speed
LANES = 64
WINDOW = 2048  # samples of a lane that are permuted together


class Order:
    """The endless stream of sample numbers 0 .. n - 1, where n is the sum of `lengths`, the samples of each shard."""

    def __init__(self, lengths: Sequence[int], seed: int) -> None:
        self.size = int(sum(lengths))
        self.seed = seed
        if self.size == 0:
            raise ValueError("an order of no samples")
        self._block_start, self._block_length = _blocks(np.asarray(lengths, dtype=np.int64))
        # an instance's own caches: one epoch's blocks, and the windows that the lanes are in
        self._epoch_blocks = lru_cache(maxsize=2)(self._permute_blocks)
        self._window_order = lru_cache(maxsize=4 * LANES)(self._permute_window)

    def samples(self, start: int, count: int) -> NDArray[np.int64]:
        """The sample numbers at positions start .. start + count. The cost does not depend on `start`."""
        taken = np.empty(count, dtype=np.int64)
        done = 0
        while done < count:
            epoch, within = divmod(start + done, self.size)
            part = min(count - done, self.size - within)
            taken[done : done + part] = self._in_epoch(epoch, within, part)
            done += part
        return taken

    def flips(self, start: int, count: int) -> NDArray[np.bool_]:
        """Whether the image at each position is mirrored."""
        return flips(self.seed, start, count)

    def _in_epoch(self, epoch: int, within: int, count: int) -> NDArray[np.int64]:
        position = np.arange(within, within + count, dtype=np.int64)
        lane, step = position % LANES, position // LANES
        start, length = _shares(self.size, LANES, lane)
        windows = np.maximum(1, np.rint(length / WINDOW).astype(np.int64))
        window = ((step + 1) * windows - 1) // length
        first, end = window * length // windows, (window + 1) * length // windows
        places = zip(lane.tolist(), window.tolist(), (end - first).tolist(), (step - first).tolist(), strict=True)
        within_window = [self._window_order(epoch, *which)[place] for *which, place in places]
        sequence = start + first + np.array(within_window, dtype=np.int64)
        offsets, ends = self._epoch_blocks(epoch)
        return offsets[np.searchsorted(ends, sequence, side="right")] + sequence

    def _permute_window(self, epoch: int, lane: int, window: int, size: int) -> NDArray[np.int64]:
        return keyed.permutation(keyed.key(self.seed, "window", epoch, lane, window), size)

    def _permute_blocks(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each block of the epoch's sequence: what to add to a place in it to get the sample, and its end."""
        order = keyed.permutation(keyed.key(self.seed, "blocks", epoch), len(self._block_start))
        ends = np.cumsum(self._block_length[order])
        return self._block_start[order] - (ends - self._block_length[order]), ends


def _blocks(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First sample and length of every block; a block lies in one shard, so a shard's last one may be short."""
    per_shard = -(-lengths // BLOCK)
    shard = np.repeat(np.arange(len(lengths)), per_shard)
    within = (np.arange(len(shard)) - np.repeat(np.cumsum(per_shard) - per_shard, per_shard)) * BLOCK
    start = (np.cumsum(lengths) - lengths)[shard] + within
    return start, np.minimum(BLOCK, lengths[shard] - within)


def _shares(size: int, parts: int, part: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and length of some of `parts` shares of `size` things; the first `size % parts` shares have one more."""
    each, rest = divmod(size, parts)
    return part * each + np.minimum(part, rest), each + (part < rest)


def rank_slices(start: int, batch: int, micro_batches: int, rank: int, world_size: int) -> list[int]:
    """First positions of a rank's slice of every micro-batch of the global batch at `start`.

    The global batch is first cut into micro-batches and each of those over the ranks, so that micro-batch k is the same
    set of images on any number of ranks. Each slice has batch / (micro_batches * world_size) samples.
    """
    per_micro = batch // micro_batches
    per_rank = per_micro // world_size
    return [start + micro * per_micro + rank * per_rank for micro in range(micro_batches)]


def flips(seed: int, start: int, count: int) -> NDArray[np.bool_]:
    """Whether the image at each position is mirrored: a fair coin for every position of a seed."""
    return (keyed.words(keyed.key(seed, "flip"), start, count) & np.uint64(1)).astype(np.bool_)
