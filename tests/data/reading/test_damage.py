"""A damaged image at run time: named, or replaced by the same other one on any rank, and counted; never silent."""

import itertools
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shards import encoded, open_corpus, write_ours, write_tar

from dcgan_dist.data.order import Order, Split
from dcgan_dist.data.reading.decode_pool import DecodePlan
from dcgan_dist.data.reading.fetch import Fetcher
from dcgan_dist.data.reading.reader import IndexedReader
from dcgan_dist.data.shards import files
from dcgan_dist.errors import UserError

IMAGES = 40  # in each of two shards
SHAPE = (32, 3)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def zero(path, first, length):
    content = bytearray(path.read_bytes())
    content[first : first + length] = bytes(length)
    path.write_bytes(content)


def corpus_of(folder, suffix):
    for number in range(2):
        write_ours(folder / f"{number}.tar", IMAGES, suffix, first=100 * number, label=lambda image: image)
    return open_corpus([str(folder / "*.tar")])


# what happens to sample 7 of the second shard, number 47
DAMAGES = {
    "a flipped bit in the image": lambda path, index: flip(path, index.offset[7] + index.length[7] // 2),
    "a flipped bit in its last byte": lambda path, index: flip(path, index.offset[7] + index.length[7] - 1),
    "a flipped bit in its header": lambda path, index: flip(path, index.start[7] + 4),
    "a zeroed header": lambda path, index: zero(path, int(index.start[7]), 512),
    "a flipped bit in its label": lambda path, index: flip(path, index.start[8] - 512),
    "a zeroed image": lambda path, index: zero(path, int(index.offset[7]), int(index.length[7])),
}
BAD = IMAGES + 7


def read(corpus, ranks=1, steps=30, batch=12, kind: Any = "threads", **options):
    """The global batches of some steps: samples, labels and pixels, from readers of all ranks; and the readers."""
    readers = [
        IndexedReader(Fetcher(corpus, SHAPE, **options), seed=3, plan=DecodePlan(kind=kind, count=2, prefetch=1))
        for _ in range(ranks)
    ]
    parts = []
    for rank, reader in enumerate(readers):
        batches = reader.batches(0, Split(batch=batch, micro_batches=1, rank=rank, world_size=ranks))
        parts.append(
            [
                (each.rows.samples.copy(), each.labels.numpy().copy(), each.rows.pixels.copy())
                for each in itertools.islice(batches, steps)
            ]
        )
        batches.close()
    joined = [[np.concatenate(rank) for rank in zip(*step, strict=True)] for step in zip(*parts, strict=True)]
    return joined, readers


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", ["ppm", "jpg"])
def test_damage_is_raised_by_name_at_its_first_touch(tmp_path, suffix, damage):
    corpus = corpus_of(tmp_path, suffix)
    index = corpus.index(1)
    DAMAGES[damage](tmp_path / "1.tar", index)
    with pytest.raises(UserError) as caught:
        read(corpus)
    assert str(caught.value).startswith(
        f"{tmp_path}/1.tar: 00107.{suffix} at byte {index.offset[7]}: its bytes are not"
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("ranks", "kind"), [(1, "threads"), (3, "threads"), (2, "processes")])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", ["ppm", "jpg"])
def test_a_substitute_is_the_same_on_any_ranks_and_counted(tmp_path, suffix, damage, ranks, kind):
    corpus = corpus_of(tmp_path, suffix)
    whole, _ = read(corpus)
    DAMAGES[damage](tmp_path / "1.tar", corpus.index(1))
    found, readers = read(corpus_after(tmp_path), ranks=ranks, kind=kind, damaged="substitute")
    order = Order([IMAGES, IMAGES], 3)
    hit = 0
    for step, (samples, labels, pixels) in enumerate(found):
        wanted = order.samples(12 * step, 12)
        hit += int((wanted == BAD).sum())
        assert samples.tolist() == [BAD + 1 if sample == BAD else sample for sample in wanted.tolist()]
        assert labels.tolist() == [sample if sample < IMAGES else 100 + sample - IMAGES for sample in samples.tolist()]
        same = wanted != BAD
        assert np.array_equal(pixels[same], whole[step][2][same])
    assert hit in (4, 5)  # in four and a half epochs
    assert sum(reader.counters.substituted for reader in readers) == hit
    for reader in readers:
        assert list(reader.damages) in ([], [BAD])
        assert reader.counters.images == 12 * 30 // ranks


def corpus_after(folder):
    """Opened again, as a later attempt of the run does."""
    return open_corpus([str(folder / "*.tar")])


@settings(max_examples=40)
@given(data=st.data(), suffix=st.sampled_from(["ppm", "jpg"]))
def test_no_flipped_bit_is_silent(tmp_path_factory, data, suffix):
    """Anywhere in the samples or the index: found when the shard is opened or when its image is read."""
    folder = tmp_path_factory.mktemp("flip")
    path = write_ours(folder / "0.tar", 6, suffix, label=lambda image: image)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        index = tar.getmembers()[-1]
    # the index is found from the end: other programs alone read its tar header and the end mark behind it
    read_by_us = [*range(index.offset), *range(index.offset_data, len(content) - 1024)]
    place = data.draw(st.sampled_from(read_by_us))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"0\.tar: "):
        read(corpus_after(folder), steps=2)


def test_the_substitute_of_neighbours_and_of_the_last_goes_on_round_the_end(tmp_path):
    corpus = corpus_of(tmp_path, "ppm")
    index = corpus.index(1)
    for member in (38, 39, 0):
        flip(tmp_path / "1.tar", index.offset[member])
    found, _ = read(corpus, damaged="substitute")
    samples = np.concatenate([step[0] for step in found])
    wanted = Order([IMAGES, IMAGES], 3).samples(0, 360)
    taken = {bad: set(samples[wanted == bad].tolist()) for bad in (78, 79, 40)}
    assert taken == {78: {41}, 79: {41}, 40: {41}}


def test_a_tar_of_others_substitutes_what_does_not_decode(tmp_path):
    """It has no checksums: what still decodes cannot be told from what was meant."""
    files = [(f"{image:02}.png", encoded(image, "png")) for image in range(20)]
    files[5] = ("05.png", files[5][1][:-60])
    write_tar(tmp_path / "0.tar", files)
    found, (reader,) = read(corpus_after(tmp_path), batch=4, steps=5, damaged="substitute")
    assert sorted(np.concatenate([step[0] for step in found]).tolist()) == sorted([*range(5), 6, *range(6, 20)])
    (problem,) = reader.damages.values()
    assert problem.startswith(f"{tmp_path}/0.tar: 05.png at byte ")


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_more_damage_than_allowed_ends_the_run(tmp_path, kind):
    """However many of those who decode have met it."""
    corpus = corpus_of(tmp_path, "ppm")
    index = corpus.index(0)
    for member in (3, 13, 23):
        flip(tmp_path / "0.tar", index.offset[member])
    with pytest.raises(
        UserError, match=r"^more than --data\.most_damaged 2 damaged images, the last: .*0\.tar: 000\d3\.ppm"
    ):
        read(corpus, kind=kind, steps=7, damaged="substitute", most_damaged=2)
    read(corpus, kind=kind, damaged="substitute", most_damaged=3)


def test_after_a_shard_without_any_whole_image_comes_the_next(tmp_path):
    corpus = corpus_of(tmp_path, "ppm")
    for offset in corpus.index(0).offset.tolist():
        flip(tmp_path / "0.tar", offset)
    found, (reader,) = read(corpus_after(tmp_path), damaged="substitute")
    taken = np.concatenate([step[0] for step in found])
    wanted = Order([IMAGES, IMAGES], 3).samples(0, 360)
    assert set(taken[wanted < IMAGES].tolist()) == {IMAGES}
    assert np.array_equal(taken[wanted >= IMAGES], wanted[wanted >= IMAGES])
    assert len(reader.damages) == IMAGES
    for offset in corpus.index(1).offset.tolist():
        flip(tmp_path / "1.tar", offset)
    with pytest.raises(UserError, match=r"^no image of the corpus can be used; .*\.tar: 00\d\d\d\.ppm at byte"):
        read(corpus_after(tmp_path), damaged="substitute")


@pytest.mark.parametrize("suffix", ["ppm", "jpg", "png"])
@pytest.mark.parametrize("mapped", [True, False])
def test_an_image_twice_in_a_batch(tmp_path, monkeypatch, suffix, mapped):
    """Both at their first touch, also where the file is read and not mapped, as on network file systems."""
    monkeypatch.setattr(files, "on_network", lambda device: not mapped)
    write_ours(tmp_path / "0.tar", 6, suffix, label=lambda image: image)
    corpus = corpus_after(tmp_path)
    samples = np.array([3, 5, 3, 3])
    pixels, labels = np.zeros((4, 32, 32, 3), dtype=np.uint8), np.zeros(4, dtype=np.int64)
    fetcher = Fetcher(corpus, SHAPE)
    for _ in range(2):
        fetcher.fill(samples, pixels, labels)
        assert labels.tolist() == [3, 5, 3, 3]
        assert np.array_equal(pixels[0], pixels[2])
        assert np.array_equal(pixels[0], pixels[3])
        assert not np.array_equal(pixels[0], pixels[1])
        pixels[:] = 0


def test_with_classes_the_substitute_is_of_the_classes_too(tmp_path):
    write_ours(tmp_path / "0.tar", IMAGES, label=lambda image: image % 4)
    corpus = corpus_after(tmp_path).of_classes([1, 3])
    flip(Path(tmp_path / "0.tar"), corpus.index(0).offset[9])
    found, _ = read(corpus, batch=4, steps=5, damaged="substitute")
    members = [corpus.locate(int(sample))[1] for step in found for sample in step[0]]
    assert sorted(members) == sorted([m for m in range(IMAGES) if m % 2 and m != 9] + [11])
    assert {label for step in found for label in step[1].tolist()} == {1, 3}
