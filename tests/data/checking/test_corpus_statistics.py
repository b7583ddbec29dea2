"""What inspect counts is what is there."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.shards import by_webdataset, encoded, open_corpus, picture, write_ours, write_tar

from dcgan_dist.data.checking.corpus_statistics import count, decode, pictures, spread
from dcgan_dist.data.shards.index import ShardWriter


def as_file(image, file_format="PNG"):
    file = io.BytesIO()
    image.save(file, file_format)
    return file.getvalue()


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """Three shards: labelled, of mixed images, and another program's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    mixed = tmp_path / "mixed.tar"
    with ShardWriter(mixed) as shard:
        for number, size in enumerate([(20, 30), (31, 8), (20, 30)]):
            shard.add(f"n{number}", "png", as_file(picture(number).resize(size)), 7)
        shard.add("grey", "png", as_file(picture(9).convert("L")))
    rows = [(f"{number}.{suffix}", encoded(number, suffix)) for number, suffix in enumerate(["jpg", "webp", "jpg"])]
    return [
        write_ours(tmp_path / "ours.tar", 5, "ppm", label=lambda number: number % 2),
        mixed,
        write_tar(tmp_path / "others.tar", rows),
    ]


def corpus_of(paths):
    return open_corpus([str(path) for path in paths])


def test_counts(paths):
    statistics = count(corpus_of(paths))
    assert (statistics.shards, statistics.checked, statistics.images) == (3, 2, 12)
    assert statistics.file_bytes == sum(path.stat().st_size for path in paths)
    assert statistics.suffixes == {"ppm": 5, "png": 4, "jpg": 2, "webp": 1}
    assert statistics.labels == {0: 3, 1: 2, 7: 3, -1: 4}
    samples = by_webdataset(*paths)
    images = [sample[suffix] for sample in samples for suffix in statistics.suffixes if suffix in sample]
    assert statistics.image_bytes == sum(map(len, images))


def test_sizes_and_pixels(paths):
    corpus = corpus_of(paths)
    done = []
    found = decode(corpus, range(corpus.size), done.append)
    assert done == list(range(1, 13))
    assert (found.images, found.bad) == (12, [])
    assert found.sizes == {(32, 32): 9, (20, 30): 2, (31, 8): 1}
    assert found.modes == {"RGB": 11, "L": 1}
    pixels = []
    for sample in by_webdataset(*paths):
        (suffix,) = set(sample) & {"jpg", "png", "webp", "ppm"}
        with Image.open(io.BytesIO(sample[suffix])) as image:
            pixels.append(np.asarray(image.convert("RGB")).reshape(-1, 3) / 255)
    np.testing.assert_allclose(found.pixels.mean(), np.concatenate(pixels).mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(found.pixels.std(), np.concatenate(pixels).std(axis=0), atol=1e-12)


def test_a_part_of_the_images(paths):
    found = decode(corpus_of(paths), [0, 5, 6], lambda _: None)
    assert found.sizes == {(32, 32): 1, (20, 30): 1, (31, 8): 1}


def test_grey_images_have_one_channel(tmp_path):
    path = write_ours(tmp_path / "a.tar", 3, "pgm")
    found = decode(corpus_of([path]), range(3), lambda _: None)
    values = [np.asarray(picture(number, channels=1)) / 255 for number in range(3)]
    np.testing.assert_allclose(found.pixels.mean(), [np.mean(values)], atol=1e-12)
    np.testing.assert_allclose(found.pixels.std(), [np.std(values)], atol=1e-12)


def test_damaged_images_are_named_not_counted(tmp_path):
    path = tmp_path / "a.tar"
    with ShardWriter(path) as shard:
        shard.add("good", "jpg", encoded(1, "jpg"))
        shard.add("bad", "jpg", b"no image")
    found = decode(corpus_of([path]), range(2), lambda _: None)
    assert found.images == 1
    (line,) = found.bad
    assert line.startswith(f"{path}: bad.jpg at byte ")


def test_pictures_come_in_order_with_their_names(paths):
    corpus = corpus_of(paths)
    found = list(pictures(corpus, range(corpus.size)))
    assert [item.key for item in found] == [key for shard in range(3) for key in corpus.index(shard).keys]
    assert [item.label for item in found] == corpus.labels.tolist()
    for number in range(5):
        image = found[number].image
        assert isinstance(image, Image.Image)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(picture(number)))


@given(st.integers(1, 5_000), st.integers(1, 400), st.integers(0, 3))
def test_images_are_spread_evenly(total, wanted, seed):
    chosen = spread(total, wanted, seed)
    assert len(chosen) == min(total, wanted)
    for part, place in enumerate(chosen):
        assert total * part // len(chosen) <= place < total * (part + 1) // len(chosen)
    assert chosen == spread(total, wanted, seed)


def test_another_seed_chooses_others():
    assert spread(10**9, 64, 0) != spread(10**9, 64, 1)
