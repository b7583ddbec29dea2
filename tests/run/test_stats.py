import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dcgan_dist.run.stats import Stats

NAMES = ("loss/d", "loss/g", "d/real")
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
ARRAYS = hnp.arrays(np.float32, SHAPES, elements=st.floats(-100, 100, width=16))
CALLS = st.lists(st.dictionaries(st.sampled_from(NAMES), ARRAYS), max_size=4)


def together(ranks, act):
    """What `act(stats, all_reduce)` returns on each rank when they meet; each may call all_reduce once."""
    given = []

    def record(tensor):
        given.append(tensor.clone())
        return tensor

    for stats in copy.deepcopy(ranks):
        act(stats, record)
    assert len(given) == len(ranks)
    total = torch.stack(given).sum(0)
    return [act(stats, lambda _: total.clone()) for stats in ranks]


def add(stats, call):
    stats.add({name: torch.from_numpy(np.asarray(array)) for name, array in call.items()})


def expected(calls, std=()):
    means = {}
    for name in NAMES:
        values = np.concatenate([np.ravel(call[name]) for call in calls if name in call] or [[]]).astype(np.float64)
        if values.size:
            means[name] = values.mean()
            means |= {f"{name}_std": values.std()} if name in std else {}
    return means


@given(st.lists(CALLS, min_size=3, max_size=3))
@settings(max_examples=100, deadline=None)
def test_means_and_deviations_equal_numpys_over_all_ranks(calls):
    ranks = [Stats() for _ in calls]
    for stats, mine in zip(ranks, calls, strict=True):
        add(stats, dict.fromkeys(NAMES, np.zeros(0)))  # every rank has used every name
        for call in mine:
            add(stats, call)
    results = together(ranks, lambda stats, all_reduce: stats.reduce(all_reduce, std=("loss/g",)))
    want = expected([call for mine in calls for call in mine], std=("loss/g",))
    assert results == [results[0]] * 3
    # a deviation is the root of a difference of squares: exact to half of float64's digits
    assert results[0].pop("loss/g_std", 0.0) == pytest.approx(want.pop("loss/g_std", 0.0), abs=1e-5)
    assert results[0] == pytest.approx(want, abs=1e-12)
    assert together(ranks, lambda stats, all_reduce: stats.reduce(all_reduce)) == [{}] * 3  # and begins anew


@given(st.lists(CALLS, min_size=7, max_size=7))
@settings(max_examples=50, deadline=None)
def test_half_an_interval_survives_a_change_of_ranks(calls):
    before, after = [Stats() for _ in range(3)], [Stats() for _ in range(4)]
    for stats, mine in zip(before + after, calls, strict=True):
        add(stats, dict.fromkeys(NAMES, np.zeros(0)))  # every rank has used every name
        for call in mine:
            add(stats, call)
    main = [number == 0 for number in range(4)]
    flags = iter(main[:3] * 2)
    together(before, lambda stats, all_reduce: stats.fold(all_reduce, next(flags)))
    saved = before[0].state_dict()
    assert all(value.shape == (3,) and value.dtype == torch.float64 for value in saved.values())
    assert not any(value.any() for stats in before[1:] for value in stats.state_dict().values())
    for stats, mine, is_main in zip(after, calls[3:], main, strict=True):
        stats.load_state_dict(saved, is_main)
        for call in mine:
            add(stats, call)
    want = expected([call for mine in calls for call in mine])
    for result in together(after, lambda stats, all_reduce: stats.reduce(all_reduce)):
        assert result == pytest.approx(want, abs=1e-12)


def test_a_fold_changes_no_result():
    stats = Stats()
    stats.add({"loss/d": torch.arange(4.0)})
    stats.fold(lambda tensor: tensor, main=True)
    stats.add({"loss/d": torch.tensor(11.5)})
    assert stats.reduce(lambda tensor: tensor) == {"loss/d": (0 + 1 + 2 + 3 + 11.5) / 5}


def test_values_of_every_kind_count_alike():
    stats = Stats()
    leaf = torch.tensor([1.0, 2.0], requires_grad=True)
    stats.add({"a": leaf * 2, "b": torch.tensor([True, False]), "c": 0.1, "d": torch.tensor(3, dtype=torch.int64)})
    stats.add({"a": torch.tensor([[9.0]], dtype=torch.bfloat16), "d": torch.tensor(4.0)})
    assert stats.reduce(lambda tensor: tensor) == {"a": 5.0, "b": 0.5, "c": 0.1, "d": 3.5}


def test_small_differences_of_many_values_are_not_lost():
    stats = Stats()
    for _ in range(1000):
        stats.add({"loss/d": torch.tensor([1e4, 1e4 + 1.0])})  # float32 sums would stop at 2^24
    result = stats.reduce(lambda tensor: tensor, std=["loss/d"])
    assert result["loss/d"] == 1e4 + 0.5
    assert result["loss/d_std"] == pytest.approx(0.5, rel=1e-6)


def test_one_all_reduce_of_the_sorted_names():
    stats = Stats()
    stats.add({"b": torch.tensor([2.0, 4.0]), "a": torch.tensor(7.0), "unused": torch.zeros(0)})
    calls = []
    stats.reduce(lambda tensor: calls.append(tensor) or tensor)
    (table,) = calls
    assert table.tolist() == [[1, 7, 49], [2, 6, 20], [0, 0, 0]]


def test_adding_never_reads_a_value():
    stats = Stats("meta")  # a device without values: whatever would wait for one raises
    for _ in range(3):
        stats.add({"loss/d": torch.ones(4, device="meta"), "d/real": torch.ones((), device="meta")})
    with pytest.raises(NotImplementedError):
        stats.reduce(lambda tensor: tensor)


def test_diverged_values_are_shown():
    stats = Stats()
    stats.add({"loss/d": torch.tensor([1.0, float("nan")]), "loss/g": torch.tensor([float("inf"), 1.0])})
    result = stats.reduce(lambda tensor: tensor)
    assert str(result) == "{'loss/d': nan, 'loss/g': inf}"
