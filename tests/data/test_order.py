"""Each image once per epoch, on any number of ranks, from any position at once, and well mixed."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from dcgan_dist import keyed
from dcgan_dist.data import order
from dcgan_dist.data.order import BLOCK, LANES, Order, rank_slices

WORLDS = [*range(1, 65), 96, 127, 128, 255, 256, 512, 777, 1000, 1024, 2048, 4096]
LENGTHS = st.lists(st.integers(0, 700), min_size=1, max_size=12).filter(any)


def ragged(shards, seed):
    """Lengths of shards of 1 to 700 samples."""
    return np.random.default_rng(seed).integers(1, 701, shards).tolist()


def taken(stream, start, batch, micro_batches, world_size):
    """What each rank takes of the global batch at `start`: (ranks, samples)."""
    count = batch // (micro_batches * world_size)
    slices = [rank_slices(start, batch, micro_batches, rank, world_size) for rank in range(world_size)]
    return np.array([np.concatenate([stream.samples(first, count) for first in firsts]) for firsts in slices])


def assert_epochs(samples, size):
    """Every `size` samples in a row are each sample once; what is left at the end has no repeats."""
    for start in range(0, len(samples), size):
        epoch = samples[start : start + size]
        times = np.bincount(epoch, minlength=size)
        assert len(times) == size
        assert times.max() == 1
        assert times.sum() == len(epoch)


@pytest.mark.parametrize("world_size", WORLDS)
def test_every_world_takes_each_sample_once_per_epoch(world_size):
    stream = Order(ragged(1 + world_size % 3, world_size), seed=world_size)
    per_rank = 1 + world_size % 3
    batch = per_rank * world_size
    steps = -(-2 * stream.size // batch) + 1
    # rank by rank within a step is position by position
    samples = np.concatenate([taken(stream, step * batch, batch, 1, world_size).ravel() for step in range(steps)])
    assert len(samples) > 2 * stream.size
    assert_epochs(samples, stream.size)


@given(LENGTHS, st.integers(0, 2**63), st.integers(0, 5))
def test_every_epoch_is_a_permutation(lengths, seed, epoch):
    stream = Order(lengths, seed)
    assert_epochs(stream.samples(epoch * stream.size, 2 * stream.size), stream.size)


@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 127, 128, 4_097])
def test_small_sets_and_edges_of_blocks_and_lanes(size):
    assert_epochs(Order([size], 7).samples(0, 3 * size), size)
    assert_epochs(Order([1] * size, 7).samples(0, 3 * size), size)


def test_lanes_of_several_windows():
    """As many samples as make lanes of 1 and 2 windows, and some more and one less."""
    for windows in (1, 2):
        for size in (LANES * order.WINDOW * windows + extra for extra in (-1, 0, LANES // 2)):
            assert_epochs(Order([size // 3, size - size // 3], 0).samples(0, size), size)


def test_epochs_and_seeds_differ():
    stream, size = Order([500, 300], 1), 800
    epochs = [stream.samples(epoch * size, size) for epoch in range(4)] + [Order([500, 300], 2).samples(0, size)]
    agree = [(first == second).mean() for first, second in pairwise(epochs)]
    assert max(agree) < 0.05


def test_no_samples_have_no_order():
    with pytest.raises(ValueError, match="no samples"):
        Order([0, 0], 1)


@given(st.integers(0, 10**12), st.integers(1, 40), st.integers(1, 5), st.integers(1, 9))
def test_the_ranks_slices_of_the_micro_batches_partition_the_global_batch(start, world_size, micro_batches, per_rank):
    batch = world_size * micro_batches * per_rank
    per_micro = batch // micro_batches
    slices = [rank_slices(start, batch, micro_batches, rank, world_size) for rank in range(world_size)]
    for micro in range(micro_batches):
        positions = [first[micro] + i for first in slices for i in range(per_rank)]
        # micro-batch k is the same positions on any number of ranks
        assert positions == list(range(start + micro * per_micro, start + (micro + 1) * per_micro))


STAGES = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 3, 4, 7, 8, 16, 48, 64]), st.integers(1, 3), st.integers(1, 4), st.integers(1, 12)
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=50)
@given(LENGTHS, st.integers(0, 2**32), STAGES)
def test_nothing_is_lost_or_repeated_when_the_world_and_the_batch_change(lengths, seed, stages):
    """A run that goes through several lives: (ranks, micro-batches, images per rank and micro-batch, steps)."""
    size, position, samples = sum(lengths), 0, []
    for world_size, micro_batches, per_rank, steps in stages:
        stream, batch = Order(lengths, seed), world_size * micro_batches * per_rank
        for _ in range(steps):
            step = taken(stream, position, batch, micro_batches, world_size)
            samples += sorted(step.ravel().tolist())
            position += batch
    whole = Order(lengths, seed).samples(0, position)
    for start in range(0, position, size):
        epoch = whole[start : start + size]
        assert len(set(epoch.tolist())) == len(epoch)
    assert Counter(samples) == Counter(whole.tolist())


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_every_world_sees_the_same_images_in_each_step_and_micro_batch(micro_batches):
    lengths, batch = ragged(6, 3), 48 * micro_batches
    stream = Order(lengths, 5)
    for step in range(3 * stream.size // batch):
        wanted = stream.samples(step * batch, batch).reshape(micro_batches, -1)
        for world_size in (1, 2, 3, 4, 6, 12, 48):
            ranks = taken(stream, step * batch, batch, micro_batches, world_size)
            micro = ranks.reshape(world_size, micro_batches, -1).swapaxes(0, 1).reshape(micro_batches, -1)
            assert np.array_equal(micro, wanted)


@given(LENGTHS, st.integers(0, 3_000), st.integers(0, 500), st.integers(0, 200))
def test_any_slice_is_the_slice_of_the_whole(lengths, start, skip, count):
    whole = Order(lengths, 11).samples(start, skip + count)
    assert np.array_equal(Order(lengths, 11).samples(start + skip, count), whole[skip:])


def test_the_work_of_a_seek_does_not_grow_with_the_position(monkeypatch):
    permuted = []
    permutation = keyed.permutation
    monkeypatch.setattr(keyed, "permutation", lambda key, size: permuted.append(size) or permutation(key, size))
    lengths, work = [2_000] * 100, []
    size, blocks = sum(lengths), 100 * -(-2_000 // BLOCK)
    for start in [0, size // 2, 10 * size, 10**9, 10**15 + size // 2]:
        permuted.clear()
        Order(lengths, 1).samples(start, 256)
        work.append(sum(permuted))
    # the blocks of one epoch, and for each lane the one or two windows that the samples lie in
    assert max(work) <= blocks + 2 * LANES * 1.5 * order.WINDOW
    # and a reader that goes on from there does them once
    stream = Order(lengths, 1)
    permuted.clear()
    for start in range(10**9, 10**9 + size // 2, 512):
        stream.samples(start, 512)
    assert sum(permuted) <= 2 * blocks + 2 * size


def test_every_position_of_a_thousand_million_samples_is_reached_at_once():
    size = 2_000 * 500_000
    stream = Order([2_000] * 500_000, 3)
    epoch = 7 * size
    for within in (0, 1_234_567, size // 2, size - 300):
        samples = stream.samples(epoch + within, 300)
        assert len(set(samples.tolist())) == 300
        assert samples.min() >= 0
        assert samples.max() < size
        assert np.array_equal(stream.samples(epoch + within + 100, 50), samples[100:150])
        assert 0.25 < samples.mean() / size < 0.75


def test_golden_order_version_1():
    """A checkpoint goes on at its position only if this never changes; whoever changes it raises order.VERSION."""
    assert order.VERSION == 1
    golden = [
        ([100] * 3, 0, "b84d35b2c5fa95e6"),
        ([1 + 377 * shard % 700 for shard in range(40)], 12_345, "7c70e74a9ba76dab"),
        ([2_000] * 500, 1, "7aab2c32c80cacac"),
    ]
    for lengths, seed, wanted in golden:
        samples = Order(lengths, seed).samples(0, 10_000).astype("<i8")
        flips = Order(lengths, seed).flips(0, 10_000).astype("u1")
        assert xxhash.xxh3_64_hexdigest(samples.tobytes() + flips.tobytes()) == wanted


def test_flips_are_fair_coins_of_the_position():
    stream = Order([1_000], 4)
    flips = stream.flips(0, 100_000)
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / np.sqrt(100_000)
    assert abs((flips[1:] == flips[:-1]).mean() - 0.5) < 4 * 0.5 / np.sqrt(100_000)
    # an image is flipped in one epoch and not in another
    assert 0.4 < (flips[:1_000] == flips[1_000:2_000]).mean() < 0.6
    assert np.array_equal(Order([7, 5], 4).flips(99_000, 1_000), flips[99_000:])
    assert not np.array_equal(Order([1_000], 5).flips(0, 1_000), flips[:1_000])


def total_variation(classes, batch):
    """Mean distance of the batches' class shares from equal shares."""
    batches = classes[: len(classes) // batch * batch].reshape(-1, batch)
    counts = np.apply_along_axis(np.bincount, 1, batches, minlength=100)
    return np.abs(counts / batch - 1 / 100).sum(axis=1).mean() / 2


def test_data_sorted_by_class_are_mixed_nearly_as_well_as_by_a_perfect_shuffle():
    size, batch = 1_000_000, 512
    classes = np.arange(size) * 100 // size
    ours = classes[Order([2_000] * 500, 0).samples(0, size)]
    perfect = np.random.default_rng(0).permutation(classes)
    assert total_variation(ours, batch) < 1.15 * total_variation(perfect, batch)
    # and the measure tells: unshuffled batches are all of one class or two
    assert total_variation(classes, batch) > 0.98


def test_a_lane_walks_through_its_blocks_one_after_the_other():
    """Disks are read in runs: the 2,083 samples of a lane's window come from no more blocks than hold as many."""
    lane = Order([2_000] * 200, 0).samples(0, 2_083 * LANES)[::LANES]
    shard, within = np.divmod(lane, 2_000)
    blocks = set(zip(shard.tolist(), (within // BLOCK).tolist(), strict=True))
    assert len(blocks) <= 2_083 / (2_000 / -(-2_000 // BLOCK)) + 4
