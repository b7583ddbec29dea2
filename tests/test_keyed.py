"""Numbers by key and index: any slice alone, the same for ever, and as random as they claim to be."""

from itertools import permutations
from math import factorial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcgan_dist import keyed

KEY = keyed.key("golden", 1)
MASK = 2**64 - 1


def philox(key, counter):
    """Philox4x64-10 as published, one block: four words of a 256-bit counter."""
    words = [counter >> shift & MASK for shift in (0, 64, 128, 192)]
    for round_ in range(10):
        key_0, key_1 = (key[0] + round_ * 0x9E3779B97F4A7C15) & MASK, (key[1] + round_ * 0xBB67AE8584CAA73B) & MASK
        first, second = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
        words = [second >> 64 ^ words[1] ^ key_0, second & MASK, first >> 64 ^ words[3] ^ key_1, first & MASK]
    return words


@pytest.mark.parametrize("block", [0, 1, 2, 12_345_678_901_234_567_890_123])
def test_words_are_the_published_generator_at_that_counter(block):
    wanted = philox([int(word) for word in KEY], block)
    assert keyed.words(KEY, 4 * block, 4).tolist() == wanted


@given(
    st.sampled_from([keyed.words, keyed.uniform, keyed.normal]),
    st.integers(0, 2**62),
    st.integers(0, 300),
    st.integers(0, 300),
)
def test_any_slice_is_the_slice_of_all_numbers(draw, start, skip, count):
    complete = draw(KEY, start, skip + count)
    assert len(complete) == skip + count
    assert np.array_equal(draw(KEY, start + skip, count), complete[skip:])


def test_golden_values():
    """A running experiment's order, noise and flips hang on these: they must never change."""
    assert [hex(word) for word in KEY] == ["0x2c50ce6fd67dafc4", "0xe102cfb4a46316b6"]
    assert [hex(word) for word in keyed.words(KEY, 5, 3)] == [
        "0xc9acec14f46dd6d7",
        "0xb87fb589a560558",
        "0xb8ed85d6c695377e",
    ]
    assert keyed.permutation(KEY, 12).tolist() == [8, 11, 0, 2, 7, 9, 5, 3, 6, 4, 1, 10]
    assert keyed.uniform(KEY, 0, 3).tolist() == [0.6458972777920953, 0.11330480951509464, 0.021939552761527092]
    # logarithm, sine and cosine may differ in the last bit between processors
    normal = [-1.7175570419177506, 0.21017306781364578, -0.8683441743052169]
    assert keyed.normal(KEY, 3, 3) == pytest.approx(normal, rel=1e-14)


def test_keys_differ_by_every_part_and_its_type():
    parts = [(), (1,), ("1",), (1, "flip"), (1, "window"), ("flip", 1), (1, 2), (12,), ("",)]
    assert len({keyed.key(*each).tobytes() for each in parts}) == len(parts)
    assert np.array_equal(keyed.key(1, "flip"), keyed.key(1, "flip"))


@given(st.integers(0, 5_000), st.integers(0, 2**64))
def test_a_permutation_is_one(size, seed):
    assert sorted(keyed.permutation(keyed.key(seed), size).tolist()) == list(range(size))


def chi_square_sigmas(counts):
    """By how many standard deviations the chi-square statistic of equally likely cells lies above its mean."""
    freedom, expected = counts.size - 1, counts.mean()
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_permutation_is_as_likely_as_any_other(size):
    number = {order: place for place, order in enumerate(permutations(range(size)))}
    draws = [number[tuple(keyed.permutation(keyed.key("chi", n), size).tolist())] for n in range(80 * factorial(size))]
    counts = np.bincount(draws, minlength=len(number))
    assert abs(chi_square_sigmas(counts)) < 4


def test_every_element_is_as_likely_at_every_place_of_a_larger_permutation():
    size, counts = 37, np.zeros((37, 37))
    for draw in range(3_000):
        counts[np.arange(size), keyed.permutation(keyed.key("place", draw), size)] += 1
    assert (counts.sum(axis=0) == 3_000).all()
    assert abs(chi_square_sigmas(counts)) < 4


def test_uniform_numbers_are_uniform_and_never_0_or_1(monkeypatch):
    numbers = keyed.uniform(KEY, 0, 400_000)
    assert abs(chi_square_sigmas(np.histogram(numbers, bins=1_000, range=(0, 1))[0])) < 4
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / np.sqrt(400_000)
    monkeypatch.setattr(keyed, "words", lambda key, start, count: np.array([0, 2**64 - 1], dtype=np.uint64))
    assert keyed.uniform(KEY, 0, 2).tolist() == [2.0**-54, 1 - 2.0**-53]


def test_normal_numbers_have_the_moments_of_the_normal_distribution():
    count = 400_000
    numbers = keyed.normal(KEY, 0, count)
    # mean, variance, skewness and kurtosis, each with its standard error
    for power, moment, error in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((numbers**power).mean() - moment) < 4 * np.sqrt(error / count)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / np.sqrt(count)
    assert 4 < np.abs(numbers).max() < 6.5
