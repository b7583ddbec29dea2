"""Each image once per epoch, on any number of ranks, from any position at once, and well mixed."""

import bisect
import hashlib
import json
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcgan_dist import keyed
from dcgan_dist.data import order
from dcgan_dist.data.order import BLOCK, LANES, SHUFFLED, Order, Split, flips

WORLDS = [*range(1, 65), 96, 127, 128, 255, 256, 512, 777, 1000, 1024, 2048, 4096]
LENGTHS = st.lists(st.integers(0, 700), min_size=1, max_size=12).filter(any)
LIMITS = [SHUFFLED, 0]  # the second: small sets take the order of large ones, so that both can be tested on them
EITHER = pytest.mark.parametrize("limit", LIMITS, ids=["shuffled", "in lanes"])


def make(lengths, seed, limit):
    """An order that is one permutation up to `limit` samples."""
    with mock.patch.object(order, "SHUFFLED", limit):
        return Order(lengths, seed)


def ragged(shards, seed):
    """Lengths of shards of 1 to 700 samples."""
    return np.random.default_rng(seed).integers(1, 701, shards).tolist()


def splits(batch, micro_batches, world_size):
    """Of all ranks."""
    facts = {"batch": batch, "micro_batches": micro_batches, "world_size": world_size}
    return [Split(rank=rank, **facts) for rank in range(world_size)]


def taken(stream, start, batch, micro_batches, world_size):
    """What each rank takes of the global batch at `start`: (ranks, samples)."""
    count = batch // (micro_batches * world_size)
    slices = [split.slices(start) for split in splits(batch, micro_batches, world_size)]
    return np.array([np.concatenate([stream.samples(first, count) for first in firsts]) for firsts in slices])


def assert_epochs(samples, size):
    """Every `size` samples in a row are each sample once; what is left at the end has no repeats."""
    for start in range(0, len(samples), size):
        epoch = samples[start : start + size]
        times = np.bincount(epoch, minlength=size)
        assert len(times) == size
        assert times.max() == 1
        assert times.sum() == len(epoch)


@EITHER
@pytest.mark.parametrize("world_size", WORLDS)
def test_every_world_takes_each_sample_once_per_epoch(world_size, limit):
    stream = make(ragged(1 + world_size % 3, world_size), world_size, limit)
    per_rank = 1 + world_size % 3
    batch = per_rank * world_size
    steps = -(-2 * stream.size // batch) + 1
    # rank by rank within a step is position by position
    samples = np.concatenate([taken(stream, step * batch, batch, 1, world_size).ravel() for step in range(steps)])
    assert len(samples) > 2 * stream.size
    assert_epochs(samples, stream.size)


@EITHER
@given(LENGTHS, st.integers(0, 2**63), st.integers(0, 5))
def test_every_epoch_is_a_permutation(limit, lengths, seed, epoch):
    stream = make(lengths, seed, limit)
    assert_epochs(stream.samples(epoch * stream.size, 2 * stream.size), stream.size)


@EITHER
@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 127, 128, 4_097])
def test_small_sets_and_edges_of_blocks_and_lanes(size, limit):
    assert_epochs(make([size], 7, limit).samples(0, 3 * size), size)
    assert_epochs(make([1] * size, 7, limit).samples(0, 3 * size), size)


def test_the_largest_set_that_is_shuffled_and_the_next():
    for size in (SHUFFLED, SHUFFLED + 1):
        assert_epochs(Order([size // 3, size - size // 3], 0).samples(0, size), size)


def test_lanes_of_several_windows():
    """As many samples as make lanes of 1 and 2 windows, and some more and one less."""
    for windows in (1, 2):
        for size in (LANES * order.WINDOW * windows + extra for extra in (-1, 0, LANES // 2)):
            assert_epochs(make([size // 3, size - size // 3], 0, 0).samples(0, size), size)


@EITHER
def test_epochs_and_seeds_differ(limit):
    stream, size = make([500, 300], 1, limit), 800
    epochs = [stream.samples(epoch * size, size) for epoch in range(4)] + [make([500, 300], 2, limit).samples(0, size)]
    agree = [(first == second).mean() for first, second in pairwise(epochs)]
    assert max(agree) < 0.05


def test_no_samples_have_no_order():
    with pytest.raises(ValueError, match="no samples"):
        Order([0, 0], 1)


@given(st.integers(0, 10**12), st.integers(1, 40), st.integers(1, 5), st.integers(1, 9))
def test_the_ranks_slices_of_the_micro_batches_partition_the_global_batch(start, world_size, micro_batches, per_rank):
    batch = world_size * micro_batches * per_rank
    per_micro = batch // micro_batches
    slices = [split.slices(start) for split in splits(batch, micro_batches, world_size)]
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


@EITHER
@settings(max_examples=50)
@given(LENGTHS, st.integers(0, 2**32), STAGES)
def test_nothing_is_lost_or_repeated_when_the_world_and_the_batch_change(limit, lengths, seed, stages):
    """A run that goes through several lives: (ranks, micro-batches, images per rank and micro-batch, steps)."""
    size, position, samples = sum(lengths), 0, []
    for world_size, micro_batches, per_rank, steps in stages:
        stream, batch = make(lengths, seed, limit), world_size * micro_batches * per_rank
        for _ in range(steps):
            step = taken(stream, position, batch, micro_batches, world_size)
            samples += sorted(step.ravel().tolist())
            position += batch
    whole = make(lengths, seed, limit).samples(0, position)
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


@EITHER
@given(LENGTHS, st.integers(0, 3_000), st.integers(0, 500), st.integers(0, 200))
def test_any_slice_is_the_slice_of_all_numbers(limit, lengths, start, skip, count):
    whole = make(lengths, 11, limit).samples(start, skip + count)
    assert np.array_equal(make(lengths, 11, limit).samples(start + skip, count), whole[skip:])


@pytest.fixture
def permuted(monkeypatch):
    """The sizes of all permutations that were drawn."""
    sizes: list[int] = []
    permutation = keyed.permutation
    monkeypatch.setattr(keyed, "permutation", lambda key, size: sizes.append(size) or permutation(key, size))
    return sizes


def test_the_work_of_a_seek_does_not_grow_with_the_position(permuted):
    lengths, work = [2_000] * 100, []
    size, blocks = sum(lengths), 100 * -(-2_000 // BLOCK)
    for start in [0, size // 2, 10 * size, 10**9, 10**15 + size // 2]:
        permuted.clear()
        make(lengths, 1, 0).samples(start, 256)
        work.append(sum(permuted))
    # the blocks of one epoch, and for each lane the one or two windows that the samples lie in
    assert max(work) <= blocks + 2 * LANES * 1.5 * order.WINDOW


@pytest.mark.parametrize("ranks", [1, 5])
def test_a_reader_that_goes_on_permutes_every_window_once(permuted, ranks):
    """Also the reader of a rank that takes a part of every batch, while another thread looks ahead."""
    lengths, batch = [2_000] * 100, 510
    size, blocks = sum(lengths), 100 * -(-2_000 // BLOCK)
    stream, steps = make(lengths, 1, 0), 3 * size // 2 // batch
    for start in range(10**9, 10**9 + steps * batch, batch):
        stream.samples(start, batch // ranks)
    # the epochs that were met and, of the lanes, no more than the samples that were passed and a window at each end
    assert sum(permuted) <= 3 * blocks + 3 * size // 2 + 2 * LANES * 1.5 * order.WINDOW
    permuted.clear()
    start = 10**9 + steps * batch
    stream.samples(start, batch // ranks)
    stream.first_uses(start + size // 2, batch)
    permuted.clear()
    stream.samples(start, batch // ranks)
    assert permuted == []


def test_a_shuffled_set_is_permuted_once_an_epoch(permuted):
    """Also while another thread looks ahead into the next epoch."""
    stream, size = Order([700, 300], 1), 1_000
    for start in range(0, 3 * size, 100):
        stream.samples(start, 150)
        stream.first_uses(start + 500, 600)
    assert permuted == [size] * 4


@pytest.fixture(scope="module")
def thousand_million():
    """500,000 shards of 2,000 samples, and the most bytes that were held to open them and to seek in three epochs."""
    tracemalloc.start()
    try:
        stream = Order([2_000] * 500_000, 1)
        for start in (0, 2 * stream.size, 3 * stream.size + 7):
            stream.samples(start, 512)
        return stream, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_thousand_million_samples_are_held_in_a_byte_each(thousand_million):
    stream, most = thousand_million
    assert stream.size == 10**9
    assert most < 10**9


def test_every_position_of_a_thousand_million_samples_is_reached_at_once(thousand_million, permuted):
    stream, _ = thousand_million
    size, epoch = stream.size, 3 * stream.size
    blocks = 500_000 * -(-2_000 // BLOCK)
    for within in (1_234_567, size // 2, size - 300):
        permuted.clear()
        samples = stream.samples(epoch + within, 300)
        # of the epoch nothing but the windows that the lanes are in; its blocks were permuted by the fixture
        assert LANES <= len(permuted) <= 2 * LANES
        assert max(permuted) < 1.5 * order.WINDOW
        assert len(set(samples.tolist())) == 300
        assert samples.min() >= 0
        assert samples.max() < size
        assert np.array_equal(stream.samples(epoch + within + 100, 50), samples[100:150])
        assert 0.25 < samples.mean() / size < 0.75
    permuted.clear()
    stream.samples(4 * size, 1)
    assert sorted(permuted)[-1] == blocks
    assert sum(permuted) < blocks + 1.5 * order.WINDOW


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "order.json").read_text())


def digest(values, kind):
    return hashlib.sha256(values.astype(kind).tobytes()).hexdigest()


@pytest.mark.parametrize("name", GOLDEN["sets"])
def test_golden_orders(name):
    """A checkpoint goes on at its position only if these never change; whoever changes them raises order.VERSION."""
    assert GOLDEN["version"] == order.VERSION
    lengths = [length for length, times in GOLDEN["sets"][name]["shards"] for _ in range(times)]
    for epoch in GOLDEN["sets"][name]["epochs"]:
        stream = Order(lengths, epoch["seed"])
        start, count = epoch["epoch"] * stream.size, GOLDEN["positions"]
        assert digest(stream.samples(start, count), "<i8") == epoch["samples"]
        # and in batches, which take another way through the windows
        parts = [stream.samples(start + done, 250) for done in range(0, count, 250)]
        assert digest(np.concatenate(parts), "<i8") == epoch["samples"]


def test_golden_flips():
    for wanted in GOLDEN["flips"]:
        found = flips(wanted["seed"], wanted["position"], GOLDEN["positions"])
        assert digest(found, "u1") == wanted["flips"]


@EITHER
@given(LENGTHS, st.integers(0, 20_000), st.integers(0, 3_000))
def test_the_first_uses_of_shards(limit, lengths, start, count):
    stream = make(lengths, 2, limit)
    ends = np.cumsum(lengths).tolist()
    wanted: dict[int, int] = {}
    for position, sample in enumerate(stream.samples(start, count).tolist(), start):
        wanted.setdefault(bisect.bisect_right(ends, sample), position)
    shards, positions = stream.first_uses(start, count)
    assert list(zip(shards.tolist(), positions.tolist(), strict=True)) == list(wanted.items())


@EITHER
def test_threads_take_what_one_alone_would(limit):
    """Several readers at different places, and one that looks ahead: none disturbs another's tables."""
    lengths, starts = ragged(9, 1), [0, 10**6, 5_000, 10**12]
    wanted = [make(lengths, 3, limit).samples(start, 6_000) for start in starts]
    stream = make(lengths, 3, limit)

    def read(start):
        parts = []
        for done in range(0, 6_000, 100):
            parts.append(stream.samples(start + done, 100))
            stream.first_uses(start + 7 * done, 50)
        return np.concatenate(parts)

    with ThreadPoolExecutor(len(starts)) as pool:
        assert [found.tolist() for found in pool.map(read, starts)] == [part.tolist() for part in wanted]


def test_flips_are_fair_coins_of_the_position():
    found = flips(4, 0, 100_000)
    assert abs(found.mean() - 0.5) < 4 * 0.5 / np.sqrt(100_000)
    assert abs((found[1:] == found[:-1]).mean() - 0.5) < 4 * 0.5 / np.sqrt(100_000)
    # an image is flipped in one epoch and not in another
    assert 0.4 < (found[:1_000] == found[1_000:2_000]).mean() < 0.6
    assert np.array_equal(flips(4, 99_000, 1_000), found[99_000:])
    assert not np.array_equal(flips(5, 0, 1_000), found[:1_000])


def total_variation(classes, batch):
    """Mean distance of the batches' class shares from equal shares."""
    batches = classes[: len(classes) // batch * batch].reshape(-1, batch)
    rows = np.arange(len(batches))[:, None]
    counts = np.bincount((100 * rows + batches).ravel(), minlength=100 * len(batches)).reshape(-1, 100)
    return np.abs(counts / batch - 1 / 100).sum(axis=1).mean() / 2


def test_data_sorted_by_class_are_mixed_nearly_as_well_as_by_a_perfect_shuffle():
    size, batch = 1_000_000, 512
    classes = np.arange(size) * 100 // size
    perfect = total_variation(np.random.default_rng(0).permutation(classes), batch)
    for seed in range(5):
        stream = make([2_000] * 500, seed, 0)
        for epoch in (0, seed):
            ours = total_variation(classes[stream.samples(epoch * size, size)], batch)
            assert ours < 1.15 * perfect
    # and the measure tells: unshuffled batches are all of one class or two
    assert total_variation(classes, batch) > 0.98


def test_a_lane_walks_through_its_blocks_one_after_the_other():
    """Disks are read in runs: the 2,083 samples of a lane's window come from no more blocks than hold as many."""
    lane = make([2_000] * 200, 0, 0).samples(0, 2_083 * LANES)[::LANES]
    shard, within = np.divmod(lane, 2_000)
    blocks = set(zip(shard.tolist(), (within // BLOCK).tolist(), strict=True))
    assert len(blocks) <= 2_083 / (2_000 / -(-2_000 // BLOCK)) + 4


def uniform(size, epochs):
    """The samples of epochs that numpy shuffles."""
    noise = np.random.default_rng(size)
    return np.stack([noise.permutation(size) for _ in range(epochs)])


def meetings(epochs, batch):
    """How many pairs of samples that lie close to each other in the shards share a batch."""
    size, count = epochs.shape[1], 0
    for row in epochs:
        number = np.empty(size, dtype=np.int64)
        number[row] = np.arange(size) // batch
        count += sum(int((number[apart:] == number[:-apart]).sum()) for apart in range(1, 1 + min(size // 8 + 1, 64)))
    return count


def commonest(epochs, batch):
    """Times that a sample meets the one it meets most often, mean over some samples."""
    size = epochs.shape[1]
    number = np.empty_like(epochs)
    np.put_along_axis(number, epochs, np.broadcast_to(np.arange(size) // batch, epochs.shape), 1)
    together = [(number == number[:, [sample]]).sum(0) for sample in range(0, size, max(1, size // 32))]
    return np.mean([np.sort(row)[-2] if size > 1 else 0 for row in together])


def classes_met(epochs, batch, classes):
    """Mean number of classes in a batch of samples that lie sorted by class; a batch may end in the next epoch."""
    size = epochs.shape[1]
    stream = (epochs * classes // size).ravel()
    batches = stream[: len(stream) // batch * batch].reshape(-1, batch)
    ordered = np.sort(batches, axis=1)
    return 1 + (np.diff(ordered, axis=1) != 0).sum(axis=1).mean()


SIZES = [1, 2, 3, 5, 10, 63, 64, 65, 100, 389, 1_000, 4_095, 4_096, 4_097, 10_000, 131_073, 1_000_000]


@pytest.mark.parametrize("size", SIZES)
def test_batches_are_mixed_as_by_a_uniform_shuffle(size):
    """Whatever the size and the batch: who meets whom, how often, and how many of 10 and of 1,000 classes."""
    epochs = min(2_000, max(2, 40_000 // size))
    shards = [size] if size < 20 else [size // 3, size // 5, size - size // 3 - size // 5]
    stream = Order(shards, 3)
    ours = stream.samples(0, epochs * size).reshape(epochs, size)
    fair = uniform(size, epochs)
    for batch in (1, 2, 7, 16, 64, 100, 256, 1_024):
        if batch < size:
            expected = meetings(fair, batch)
            assert abs(meetings(ours, batch) - expected) <= 0.1 * expected + 8 * np.sqrt(expected) + 8
            if size <= 10_000:
                assert 1 / 1.1 <= (1 + commonest(ours, batch)) / (1 + commonest(fair, batch)) <= 1.1
        if batch * 20 <= epochs * size:
            for classes in (10, 1_000):
                assert 1 / 1.1 <= classes_met(ours, batch, classes) / classes_met(fair, batch, classes) <= 1.1


def test_the_measures_of_mixing_notice_file_order():
    """Each of them fails for what version 1 did with 64 images: the same batches in every epoch."""
    epochs = np.tile(np.arange(64), (600, 1))
    fair = uniform(64, 600)
    assert meetings(epochs, 16) > 2 * meetings(fair, 16)
    assert commonest(epochs, 16) > 2 * commonest(fair, 16)
    assert classes_met(epochs, 16, 10) < 0.5 * classes_met(fair, 16, 10)
