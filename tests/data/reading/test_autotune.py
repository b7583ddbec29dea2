"""How many decode, and as what: chosen from the cores and from what the images cost, and said."""

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.shards import encoded, open_corpus, write_ours, write_tar

from dcgan_dist.config import Config
from dcgan_dist.config.groups import DataConfig, ModelConfig
from dcgan_dist.data.reading import autotune
from dcgan_dist.data.reading.autotune import choose_decode_plan, measure_decoding
from dcgan_dist.data.reading.decode_pool import DecodePlan
from dcgan_dist.text import counted

IMAGES = 70
SUFFIXES = {"pixels": ["ppm"], "grey pixels": ["pgm"], "JPEG": ["jpg"], "mixed": ["ppm", "jpg"], "PNG": ["png"]}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Of every kind one; the second shard is of another kind and must not matter."""
    found = {}
    for name, suffixes in SUFFIXES.items():
        folder = tmp_path_factory.mktemp("staff")
        files = [(n, suffixes[n % len(suffixes)]) for n in range(IMAGES)]
        write_tar(folder / "0.tar", [(f"{n:03}.{suffix}", encoded(n, suffix)) for n, suffix in files])
        write_ours(folder / "1.tar", 3, "jpg" if "pixels" in name else "ppm")
        found[name] = open_corpus([str(folder / "*.tar")])
    return found


@pytest.fixture
def measured(monkeypatch):
    """What was measured: (files, shape) of each call; `measured.gil_share` is what the measurement says."""

    class Measured(list):
        gil_share = 0.1

    calls = Measured()

    def fake(files, shape):
        calls.append((files, shape))
        return 250e-6, calls.gil_share

    monkeypatch.setattr(autotune, "measure_decoding", fake)
    return calls


def plan_for(monkeypatch, corpus, cores, ranks=1, on_gpu=False, size: Any = 32, channels: Any = 3, **data):
    """The plan, and what was said of it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    config = Config(model=ModelConfig(image_size=size, channels=channels), data=DataConfig(**data))
    said: list[str] = []
    return choose_decode_plan(config, corpus, local_ranks=ranks, on_gpu=on_gpu, say=said.append), said


@pytest.mark.parametrize(
    ("cores", "ranks", "on_gpu", "where"),
    [
        (1, 1, False, "1 core, 1 rank on this node"),
        (8, 2, True, "8 cores, 2 ranks on this node"),
        (64, 1, True, "64 cores, 1 rank on this node"),
    ],
)
@pytest.mark.parametrize(("kind", "channels"), [("pixels", 3), ("grey pixels", 1)])
def test_one_thread_copies_pixels_on_any_machine(
    monkeypatch, corpora, measured, kind, channels, cores, ranks, on_gpu, where
):
    plan, said = plan_for(monkeypatch, corpora[kind], cores, ranks, on_gpu, channels=channels)
    assert plan == DecodePlan(kind="threads", count=1, prefetch=4, pinned=on_gpu)
    assert said == [f"data: decoding threads per rank: 1 (pixels at training size are only copied; {where})"]
    assert measured == []


@pytest.mark.parametrize(
    ("kind", "size", "channels"), [("pixels", 48, 3), ("pixels", 32, 1), ("grey pixels", 32, 3), ("mixed", 32, 3)]
)
def test_pixels_of_another_size_or_colour_have_to_be_decoded(monkeypatch, corpora, measured, kind, size, channels):
    plan, said = plan_for(monkeypatch, corpora[kind], 8, on_gpu=True, size=size, channels=channels)
    assert (plan.kind, plan.count) == ("threads", 8)
    where = "8 cores, 1 rank on this node"
    assert said == [f"data: decoding threads per rank: 8 (250 us an image, 10% of it with the GIL held; {where})"]
    assert [shape for _, shape in measured] == [(size, channels)]


def test_what_is_measured_are_images_of_the_first_shard(monkeypatch, corpora, measured):
    plan_for(monkeypatch, corpora["mixed"], 16)
    ((files, _),) = measured
    assert files == [(encoded(n, suffix), suffix) for n, suffix in zip(range(64), ["ppm", "jpg"] * 32, strict=True)]


@pytest.mark.parametrize(
    ("cores", "ranks", "on_gpu", "gil_share", "kind", "count"),
    [
        (1, 1, False, 0.1, "threads", 1),
        (2, 1, False, 0.1, "threads", 1),  # a core is left to the networks
        (2, 1, True, 0.1, "threads", 2),
        (2, 4, True, 0.1, "threads", 1),
        (4, 1, True, 1.0, "threads", 4),  # of so few, threads are never in one another's way
        (8, 1, False, 0.1, "threads", 7),
        (8, 2, True, 1.0, "threads", 4),
        (8, 1, True, 0.5, "processes", 8),
        (10, 1, True, 0.1, "threads", 10),  # ten threads are as many as a tenth under the lock allows
        (11, 1, True, 0.1, "processes", 11),
        (16, 1, True, 0.0, "threads", 16),
        (17, 1, True, 0.0, "processes", 17),
        (64, 1, True, 0.1, "processes", 32),
        (64, 8, True, 0.1, "threads", 8),
        (64, 8, False, 0.5, "processes", 7),
    ],
)
def test_processes_are_chosen_where_threads_would_wait_for_one_another(
    monkeypatch, corpora, measured, cores, ranks, on_gpu, gil_share, kind, count
):
    measured.gil_share = gil_share
    plan, said = plan_for(monkeypatch, corpora["JPEG"], cores, ranks, on_gpu)
    assert plan == DecodePlan(kind=kind, count=count, prefetch=4, pinned=on_gpu)
    assert len(said) == 1
    assert said[0].startswith(f"data: decoding {kind} per rank: {count} (")
    reason = f"250 us an image, {gil_share:.0%} of it with the GIL held; "
    assert (reason in said[0]) == bool(measured)
    assert said[0].endswith(f"{counted(cores, 'core')}, {counted(ranks, 'rank')} on this node)")


@given(
    cores=st.integers(1, 64),
    ranks=st.integers(1, 16),
    on_gpu=st.booleans(),
    gil_share=st.floats(0, 1),
    kind=st.sampled_from(list(SUFFIXES)),
    decode=st.sampled_from(["auto", "threads", "processes"]),
)
def test_no_choice_asks_for_more_than_there_is(corpora, cores, ranks, on_gpu, gil_share, kind, decode):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "measure_decoding", lambda files, shape: (1e-4, gil_share))
        plan, said = plan_for(patch, corpora[kind], cores, ranks, on_gpu, decode=decode)
    assert len(said) == 1
    assert plan.count >= 1
    if plan.count > 1:
        assert plan.count * ranks + (0 if on_gpu else ranks) <= cores
    assert plan.count <= (16 if plan.kind == "threads" else 32)
    assert decode in ("auto", plan.kind)


@pytest.mark.parametrize(
    ("data", "kind", "count", "lines", "measurements"),
    [
        ({"workers": 3}, "processes", 3, 1, 1),
        ({"workers": 2}, "threads", 2, 1, 1),
        ({"workers": 40}, "processes", 40, 1, 1),
        ({"decode": "threads"}, "threads", 8, 1, 0),
        ({"decode": "processes"}, "processes", 8, 1, 0),
        ({"workers": 5, "decode": "threads"}, "threads", 5, 0, 0),
        ({"workers": 1, "decode": "processes", "prefetch": 9}, "processes", 1, 0, 0),
    ],
)
def test_what_is_given_is_taken_as_it_is(monkeypatch, corpora, measured, data, kind, count, lines, measurements):
    """And what is not is chosen; nothing is said when nothing was."""
    measured.gil_share = 0.5
    plan, said = plan_for(monkeypatch, corpora["JPEG"], 8, on_gpu=True, **data)
    assert plan == DecodePlan(kind=kind, count=count, prefetch=data.get("prefetch", 4), pinned=True)
    assert len(said) == lines
    assert len(measured) == measurements


def test_pixels_are_copied_by_a_process_where_one_is_asked_for(monkeypatch, corpora, measured):
    plan, said = plan_for(monkeypatch, corpora["pixels"], 8, decode="processes")
    assert (plan.kind, plan.count) == ("processes", 1)
    assert said[0].startswith("data: decoding processes per rank: 1 (pixels at training size are only copied; ")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "ppm"])
def test_a_measurement_of_real_files_is_plausible(suffix):
    seconds, gil_share = measure_decoding([(encoded(n, suffix), suffix) for n in range(16)], (32, 3))
    assert 0 < seconds < 1
    assert 0 <= gil_share <= 1


def test_files_that_do_not_decode_are_left_to_the_training():
    files = [(b"", "jpg"), (b"<html>", "png"), (encoded(0, "jpg")[:300], "jpg"), (b"P6\n32 32\n255\n", "ppm")]
    for some in (files, [*files, (encoded(1, "png"), "png")]):
        seconds, gil_share = measure_decoding(some, (32, 3))
        assert seconds > 0
        assert 0 <= gil_share <= 1
