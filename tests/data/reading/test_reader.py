"""The indexed reader gives the images that the order says, and leaves nothing behind."""

import gc
import io
import itertools
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.processes import decoders as workers
from support.processes import open_files
from support.shards import encoded, open_corpus, write_ours, write_tar
from support.waiting import LIMIT

from dcgan_dist.data.order import Order, Split, flips
from dcgan_dist.data.reading import fetch
from dcgan_dist.data.reading.decode_pool import DecodePlan
from dcgan_dist.data.reading.fetch import Fetcher
from dcgan_dist.data.reading.prefetch_buffer import empty_batch, prefetch_batches
from dcgan_dist.data.reading.reader import IndexedReader
from dcgan_dist.data.shards.index import ShardWriter
from dcgan_dist.errors import UserError

SIZE, SEED = 32, 9
ALONE = Split(batch=12, micro_batches=1, rank=0, world_size=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """58 images of all kinds; those of the last shard are of another size."""
    folder = tmp_path_factory.mktemp("kinds")
    counts = {"jpg": 11, "png": 7, "webp": 5, "ppm": 20, "pgm": 6}
    for number, (suffix, count) in enumerate(counts.items()):
        label = (lambda image: image) if suffix in ("jpg", "ppm") else None
        write_ours(folder / f"{suffix}.tar", count, suffix, first=100 * number, label=label)
    write_tar(folder / "theirs.tar", [(f"x/{image}.png", encoded(900 + image, "png", size=48)) for image in range(9)])
    return open_corpus([str(folder / "*.tar")])


def make_reader(corpus, channels=3, threads=2, prefetch=2, kind: Any = "threads", **options):
    shape, plan = (SIZE, channels), DecodePlan(kind=kind, count=threads, prefetch=prefetch)
    return IndexedReader(Fetcher(corpus, shape, **options), seed=SEED, plan=plan)


def first_batches(reader, count, position=0, split=ALONE):
    """Copies of the first batches: pixels, samples, labels and flips of each."""
    batches = reader.batches(position, split)
    try:
        return [
            (batch.rows.pixels.copy(), batch.rows.samples.copy(), batch.labels.tolist(), batch.flips.tolist())
            for batch in itertools.islice(batches, count)
        ]
    finally:
        batches.close()


def plainly_read(corpus, sample, channels):
    """Pixels and label of an image by tarfile and PIL."""
    number, member = corpus.locate(sample)
    shard = corpus.index(number)
    key, suffix = shard.keys[member], shard.suffixes[shard.suffix[member]]
    with tarfile.open(shard.name) as tar:
        members = {info.name: tar.extractfile(info) for info in tar if info.name.startswith(f"{key}.")}
        content = {name: file.read() for name, file in members.items() if file}
    mode = "RGB" if channels == 3 else "L"
    image = Image.open(io.BytesIO(content[f"{key}.{suffix}"]))
    image.draft(mode, image.size)  # the grey of a JPEG is in the file
    image = image.convert(mode)
    pixels = np.asarray(image if image.width == SIZE else image.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    return suffix, pixels.reshape(SIZE, SIZE, channels), int(content.get(f"{key}.cls", b"-1"))


@pytest.mark.parametrize(("channels", "threads", "prefetch"), [(3, 1, 1), (3, 5, 4), (1, 3, 2)])
def test_the_images_are_those_that_the_order_says(corpus, channels, threads, prefetch):
    steps = 15  # three epochs
    order = Order(corpus.lengths, SEED)
    kinds = set()
    for step, (pixels, samples, labels, mirrored) in enumerate(
        first_batches(make_reader(corpus, channels, threads, prefetch), steps)
    ):
        assert samples.tolist() == order.samples(12 * step, 12).tolist()
        assert mirrored == flips(SEED, 12 * step, 12).tolist()
        for image, sample, label in zip(pixels, samples.tolist(), labels, strict=True):
            kind, wanted, wanted_label = plainly_read(corpus, sample, channels)
            assert label == wanted_label
            # two libraries of JPEG may round differently
            assert np.abs(image.astype(int) - wanted).max() <= (2 if kind == "jpg" else 0)
            kinds.add(kind)
    assert kinds == {"jpg", "png", "webp", "ppm", "pgm"}


@pytest.mark.parametrize("channels", [1, 3])
def test_what_a_batch_is(corpus, channels):
    batches = make_reader(corpus, channels).batches(0, ALONE)
    batch = next(batches)
    batches.close()
    assert (batch.images.shape, batch.images.dtype) == ((12, channels, SIZE, SIZE), torch.uint8)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (batch.flips.shape, batch.flips.dtype) == ((12,), torch.bool)
    assert (batch.labels.shape, batch.labels.dtype) == ((12,), torch.int64)
    assert np.shares_memory(batch.rows.pixels, batch.images.numpy())
    assert np.array_equal(batch.rows.pixels, batch.images.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_ranks_batches_together_are_the_global_batch(corpus, world_size, micro_batches):
    batch, steps = 72, 3
    whole = first_batches(make_reader(corpus), steps, split=Split(batch=batch, micro_batches=1, rank=0, world_size=1))
    splits = [
        Split(batch=batch, micro_batches=micro_batches, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    ranks = [first_batches(make_reader(corpus), steps, split=split) for split in splits]
    for step in range(steps):
        for field, wanted in enumerate(whole[step]):
            parts = np.array([ranks[rank][step][field] for rank in range(world_size)])
            # (rank, micro-batch, image) -> (micro-batch, rank, image)
            parts = parts.reshape(world_size, micro_batches, -1, *parts.shape[2:]).swapaxes(0, 1)
            assert np.array_equal(parts.reshape(batch, *parts.shape[3:]), wanted)


@pytest.mark.parametrize("channels", [1, 3])
def test_processes_read_what_threads_read(corpus, channels):
    """All kinds of images, over two epochs, from shared memory."""
    threads = first_batches(make_reader(corpus, channels, prefetch=1), 10)
    processes = first_batches(make_reader(corpus, channels, threads=2, prefetch=1, kind="processes"), 10)
    for wanted, batch in zip(threads, processes, strict=True):
        assert all(map(np.array_equal, batch, wanted))


def test_more_processes_than_images_in_a_batch(corpus):
    split = Split(batch=2, micro_batches=1, rank=0, world_size=1)
    threads, processes = (
        first_batches(make_reader(corpus, threads=3, kind=kind), 3, split=split) for kind in ("threads", "processes")
    )
    assert all(all(map(np.array_equal, one, other)) for one, other in zip(threads, processes, strict=True))


@pytest.mark.parametrize("position", [12, 60, 696, 1_200])
def test_a_reader_that_begins_anywhere_goes_on_as_one_that_began_at_0(corpus, position):
    begun = first_batches(make_reader(corpus), position // 12 + 3)
    later = first_batches(make_reader(corpus, threads=1), 3, position)
    for wanted, batch in zip(begun[-3:], later, strict=True):
        assert all(map(np.array_equal, batch, wanted))


def test_the_batch_may_change_at_any_position(corpus):
    """What follows depends on the position alone."""
    bigger = Split(batch=30, micro_batches=1, rank=0, world_size=1)
    samples = [batch[1] for batch in first_batches(make_reader(corpus), 3)]
    samples += [batch[1] for batch in first_batches(make_reader(corpus), 2, 36, bigger)]
    assert np.array_equal(np.concatenate(samples), Order(corpus.lengths, SEED).samples(0, 96))


def test_fewer_shards_than_ranks_and_fewer_images_than_the_batch(tmp_path):
    write_ours(tmp_path / "only.tar", 5)
    corpus = open_corpus([str(tmp_path / "only.tar")])
    splits = [Split(batch=16, micro_batches=1, rank=rank, world_size=8) for rank in range(8)]
    ranks = [first_batches(make_reader(corpus), 5, split=split) for split in splits]
    samples = np.array([[batch[1] for batch in rank] for rank in ranks]).swapaxes(0, 1).ravel()
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in samples.reshape(16, 5).tolist())


def test_a_batch_is_valid_until_the_next_is_asked_for():
    filled: SimpleQueue[int] = SimpleQueue()
    numbers = itertools.count()

    def fill(batch):
        number = next(numbers)
        batch.images.fill_(number)
        filled.put(number)

    batches = prefetch_batches(fill, [empty_batch(1, 4, 3, pinned=False) for _ in range(3)])
    for number in range(20):
        batch = next(batches)
        while filled.get(timeout=LIMIT) < number + 2:  # until every other slot is filled anew
            pass
        assert batch.images.unique().tolist() == [number]
    batches.close()


def broken(tmp_path, suffix, data):
    """A corpus of 40 images in two shards, one of them with these data; with its sample number."""
    for name in "ab":
        with ShardWriter(tmp_path / f"{name}.tar") as shard:
            for image in range(20):
                bad = (name, image) == ("b", 7)
                shard.add(f"image{image:02}", suffix, data if bad else encoded(image, suffix))
    return open_corpus([str(tmp_path / "*.tar")]), 27


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        ("jpg", b"no image at all"),
        ("jpg", encoded(0, "jpg")[:400]),
        ("png", encoded(0, "png")[:-40]),
        ("webp", b""),
        ("ppm", encoded(0, "ppm")[:-1]),
        ("ppm", b"x" * len(encoded(0, "ppm"))),
    ],
)
@pytest.mark.parametrize(("kind", "threads"), [("threads", 1), ("threads", 4), ("processes", 2)])
def test_an_image_that_does_not_decode_is_named_at_its_batch(tmp_path, suffix, data, kind, threads):
    corpus, bad = broken(tmp_path, suffix, data)
    step = Order(corpus.lengths, SEED).samples(0, 40).tolist().index(bad) // 4
    split = Split(batch=4, micro_batches=1, rank=0, world_size=1)
    batches = make_reader(corpus, threads=threads, prefetch=3, kind=kind).batches(0, split)
    assert len(list(itertools.islice(batches, step))) == step
    with pytest.raises(UserError) as caught:
        next(batches)
    shard = corpus.index(1)
    assert str(caught.value).startswith(f"{shard.name}: image07.{suffix} at byte {shard.offset[7]}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["ppm", "png"])
def test_a_shard_that_is_cut_after_the_start_is_named(tmp_path, suffix):
    shard = write_ours(tmp_path / "shard.tar", 20, suffix)
    corpus = open_corpus([str(shard)])
    reader = make_reader(corpus)
    os.truncate(shard, corpus.index(0).offset[10] + 50)
    batches = reader.batches(0, ALONE)
    with pytest.raises(UserError, match=rf"shard\.tar: 000\d\d\.{suffix} at byte \d+: .* cut after the run began"):
        list(batches)


def test_a_shard_that_vanishes_after_the_start_is_named(tmp_path):
    shard = write_ours(tmp_path / "shard.tar", 20)
    reader = make_reader(open_corpus([str(shard)]))
    shard.unlink()
    with pytest.raises(UserError, match=r"/shard\.tar: cannot be read any more \(No such file or directory\)$"):
        next(reader.batches(0, ALONE))


def test_a_shard_that_is_replaced_after_the_start_is_named(tmp_path):
    shard = write_ours(tmp_path / "shard.tar", 20)
    reader = make_reader(open_corpus([str(shard)]))
    write_ours(shard, 20, first=1)
    with pytest.raises(UserError, match=r"/shard\.tar: the index at byte \d+ is damaged|was replaced by another"):
        next(reader.batches(0, ALONE))


def resources():
    """Threads and open files of this process, without its idle connections to web servers."""
    ours = ("reader", "decode", "prefetch")
    return {thread.name for thread in threading.enumerate() if thread.name.startswith(ours)}, open_files()


@pytest.mark.parametrize("kind", ["threads", "processes"])
@pytest.mark.parametrize("ending", ["closed", "dropped", "closed before the first", "failed"])
def test_nothing_is_left_of_a_reader(tmp_path, ending, kind):
    corpus, _ = broken(tmp_path, "png", b"bad" if ending == "failed" else encoded(0, "png"))
    gc.collect()  # what earlier tests have left
    before = resources()
    for _ in range(3):
        batches = make_reader(corpus, threads=2, prefetch=5, kind=kind).batches(0, ALONE)
        if ending == "failed":
            with pytest.raises(UserError):
                list(batches)
        elif ending != "closed before the first":
            next(batches)
            assert {"reader"} <= resources()[0] - before[0]
            assert len(workers()) == (2 if kind == "processes" else 0)
            assert resources()[1] > before[1]
        if ending == "closed":
            batches.close()
        del batches
    gc.collect()
    threads, files = resources()
    assert threads <= before[0]
    assert files <= before[1]  # less, where an earlier test's garbage went meanwhile
    assert workers() == []


@pytest.mark.parametrize("make", ["ours", "theirs"])
def test_a_shard_that_is_replaced_by_rename_is_named_and_never_mixed(tmp_path, make):
    """Another file of the same number, names and sizes of images, between the start and the first image."""

    def write(path, first):
        if make == "ours":
            return write_ours(path, 20, first=first)
        return write_tar(path, [(f"{image:03}.ppm", encoded(first + image)) for image in range(20)])

    reader = make_reader(open_corpus([str(write(tmp_path / "shard.tar", 0))]))
    write(tmp_path / "other.tar", 100).replace(tmp_path / "shard.tar")
    with pytest.raises(UserError, match=r"/shard\.tar: was replaced by another file after the run began$"):
        next(reader.batches(0, ALONE))


SHORT_OF_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 200))
from data.reading.test_reader import ALONE, make_reader, open_corpus
batches = make_reader(open_corpus([sys.argv[1]]), threads=1).batches(0, ALONE)
print(sorted({sample for _ in range(10) for sample in next(batches).rows.samples.tolist()}) == list(range(120)))
"""


def test_more_shards_than_the_system_lets_be_open(tmp_path, monkeypatch):
    """The soft limit is raised, and what the hard one leaves is enough."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for number in range(120):
        write_ours(tmp_path / f"{number:03}.tar", 1, first=number)
    tests = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", SHORT_OF_FILES, str(tmp_path / "*.tar")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": tests})
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_more_shards_than_files_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(fetch, "MOST_OPEN", 60)
    count = 100
    for number in range(count):
        write_ours(tmp_path / f"{number:04}.tar", 1, first=number)
    corpus = open_corpus([str(tmp_path / "*.tar")])
    gc.collect()
    opened = resources()[1]
    batches = make_reader(corpus, threads=4).batches(0, ALONE)
    for _ in range(count // 12 + 5):
        batch = next(batches)
        for sample, pixels in zip(batch.rows.samples.tolist(), batch.rows.pixels, strict=True):
            assert pixels.tobytes() == encoded(sample)[-pixels.nbytes :]
    # those of the batch in the making may be further ones, or be closed while they are counted
    assert 60 - 12 <= resources()[1] - opened <= 60 + 12
    batches.close()
    del batches
    assert resources()[1] <= opened
