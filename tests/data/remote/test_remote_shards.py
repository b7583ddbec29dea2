"""Shards behind a web server, and compressed ones: the same batches as from local files, however they are reached."""

import gzip
import itertools
from typing import Any

import numpy as np
import pytest
import zstandard
from support.http_server import HttpServer, status
from support.shards import encoded, open_corpus, write_ours, write_tar
from support.waiting import LIMIT, until

from dcgan_dist.config import Config
from dcgan_dist.config.groups import DataConfig, ModelConfig
from dcgan_dist.data.loading import make_reader, open_data
from dcgan_dist.data.order import Split
from dcgan_dist.data.reading.decode_pool import DecodePlan
from dcgan_dist.data.reading.fetch import Fetcher
from dcgan_dist.data.reading.reader import IndexedReader
from dcgan_dist.data.remote.client import Remote
from dcgan_dist.data.shards.opener import CachePlan, Opener
from dcgan_dist.errors import UserError

SHAPE = (32, 3)
SPLIT = Split(batch=10, micro_batches=1, rank=0, world_size=1)
REMOTE = Remote(timeout=LIMIT, retries=2, pause=0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three shards of ours and a tar of others'."""
    folder = tmp_path_factory.mktemp("local")
    for number, suffix in enumerate(("jpg", "ppm", "png")):
        write_ours(folder / f"{number}.tar", 25, suffix, first=100 * number, label=lambda image: image)
    files = [(f"{image}.png", encoded(900 + image, "png")) for image in range(15)]
    write_tar(folder / "3.tar", files)
    return folder


@pytest.fixture
def server(folder):
    """With the same files, and compressed ones."""
    with HttpServer({path.name: path.read_bytes() for path in folder.iterdir()}) as server:
        for name, data in list(server.files.items()):
            server.files[f"{name}.gz"] = gzip.compress(data)
            server.files[f"{name}.zst"] = zstandard.compress(data)
        yield server


def contents(corpus, steps=20, kind: Any = "threads", position=0):
    reader = IndexedReader(Fetcher(corpus, SHAPE), seed=4, plan=DecodePlan(kind=kind, count=2, prefetch=2))
    batches = reader.batches(position, SPLIT)
    found = [
        (batch.rows.samples.copy(), batch.labels.numpy().copy(), batch.flips.numpy().copy(), batch.rows.pixels.copy())
        for batch in itertools.islice(batches, steps)
    ]
    batches.close()
    return found, reader


def same(one, other):
    return all(all(map(np.array_equal, a, b)) for a, b in zip(one, other, strict=True))


def names(server, ending=""):
    return [server.url(f"{number}.tar{ending}") for number in range(4)]


def opener(tmp_path, limit=10**9):
    return Opener(REMOTE, CachePlan(tmp_path / "cache", limit) if limit else None)


@pytest.mark.parametrize("kind", ["threads", "processes"])
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_the_batches_are_those_of_local_files(folder, server, tmp_path, monkeypatch, ending, kind):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    local = open_corpus([str(folder / "*.tar")])
    remote = open_corpus(names(server, ending), opener(tmp_path))
    assert remote.fingerprint == local.fingerprint
    found, _ = contents(remote, kind=kind)
    assert same(found, contents(local)[0])


def test_compressed_local_files_too(folder, tmp_path):
    for path in folder.glob("*.tar"):
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    local, packed = open_corpus([str(folder / "*.tar")]), open_corpus([str(tmp_path / "*.tar.gz")], opener(tmp_path))
    assert packed.fingerprint == local.fingerprint
    assert same(contents(packed)[0], contents(local)[0])


def test_without_a_cache_images_come_by_range_and_no_more_than_they(folder, server, tmp_path):
    corpus = open_corpus(names(server)[:3], opener(tmp_path, limit=0))
    local = open_corpus([str(folder / f"{number}.tar") for number in range(3)])
    found, reader = contents(corpus, steps=8)
    assert same(found, contents(local, steps=8)[0])
    assert reader.counters.from_remote == reader.counters.images
    assert not (tmp_path / "cache").exists()


def test_the_cache_takes_over_while_the_reader_goes_on(folder, server, tmp_path):
    corpus = open_corpus(names(server)[:3], opener(tmp_path))
    reader = IndexedReader(Fetcher(corpus, SHAPE), seed=4, plan=DecodePlan(prefetch=2))
    batches = reader.batches(0, SPLIT)
    until(lambda: next(batches) and reader.counters.from_cache >= 200)
    batches.close()
    assert reader.counters.from_remote + reader.counters.from_cache == reader.counters.images
    # the next attempt reads nothing from the server but what a start looks at
    before = server.requests()
    again = open_corpus(names(server)[:3], opener(tmp_path))
    found, reader = contents(again)
    assert reader.counters.from_remote == 0
    new = server.requests() - before
    assert all(new[f"{number}.tar"] <= 3 for number in range(3))
    local = open_corpus([str(folder / f"{number}.tar") for number in range(3)])
    assert same(found, contents(local)[0])


def test_a_cache_smaller_than_the_corpus_is_never_exceeded_and_the_batches_are_right(folder, server, tmp_path):
    sizes = [len(server.files[f"{number}.tar"]) for number in range(3)]
    limit = max(sizes) + 1024
    corpus = open_corpus(names(server)[:3], opener(tmp_path, limit))
    found, reader = contents(corpus, steps=60)
    local = open_corpus([str(folder / f"{number}.tar") for number in range(3)])
    assert same(found, contents(local, steps=60)[0])
    assert reader.counters.from_remote > 0
    held = sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())
    assert held <= limit


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_shard_that_the_cache_damaged_is_downloaded_again(folder, server, tmp_path, ending):
    def read():
        return contents(open_corpus(names(server, ending)[:3], opener(tmp_path)), steps=30)

    until(lambda: read() and len(list((tmp_path / "cache").glob("*.tar"))) == 3)
    corpus = open_corpus(names(server, ending)[:3], opener(tmp_path))
    for path in (tmp_path / "cache").glob("*.tar"):
        content = bytearray(path.read_bytes())
        content[1_000] ^= 1  # in the first image
        path.write_bytes(content)
    local = open_corpus([str(folder / f"{number}.tar") for number in range(3)])
    assert same(contents(corpus)[0], contents(local)[0])


def test_faults_that_pass_are_survived(folder, server, tmp_path):
    corpus = open_corpus(names(server)[:3], opener(tmp_path, limit=0))
    for number in range(3):
        server.fail(f"{number}.tar", status(503), status(500))
    local = open_corpus([str(folder / f"{number}.tar") for number in range(3)])
    assert same(contents(corpus, steps=4)[0], contents(local, steps=4)[0])


def test_a_server_that_goes_away_ends_the_reading_in_one_line(server, tmp_path):
    corpus = open_corpus(names(server)[:3], opener(tmp_path, limit=0))
    for number in range(3):
        server.always[f"{number}.tar"] = status(503)
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:\d+/\d\.tar: [^\n]*503"):
        contents(corpus)


def test_a_shard_that_is_replaced_while_the_run_goes_on_is_named(server, tmp_path, folder):
    corpus = open_corpus(names(server)[1:2], opener(tmp_path, limit=0))
    contents(corpus, steps=2)
    server.files["1.tar"] = (folder / "0.tar").read_bytes()
    with pytest.raises(UserError, match=r"1\.tar: [^\n]*(replaced|not those that were written|damaged)"):
        contents(corpus, steps=30)


@pytest.mark.parametrize("damage", ["missing", "a web page", "cut"])
def test_a_bad_remote_shard_is_named_at_the_start(server, tmp_path, damage):
    if damage == "missing":
        del server.files["1.tar"]
    else:
        server.files["1.tar"] = b"<html>" * 999 if damage == "a web page" else server.files["1.tar"][:9_000]
    with pytest.raises(UserError, match=r"^http://127\.0\.0\.1:\d+/1\.tar: [^\n]+$"):
        open_corpus(names(server), opener(tmp_path))


def test_the_options_choose_the_cache_and_the_console_reports_it(server, tmp_path):
    lines = []
    options = {"cache": tmp_path / "kept", "timeout": float(LIMIT), "retries": 1}

    def begin(**more):
        lines.clear()
        data = DataConfig(shards=tuple(names(server)[:3]), **{**options, **more})
        config = Config(model=ModelConfig(image_size=32), data=data)
        corpus = open_data(config, lines.append)
        reader = make_reader(config, corpus, local_ranks=1, pinned=False, say=lambda line: None)
        batches = reader.batches(0, SPLIT)
        next(batches)
        batches.close()

    begin(cache_bytes=0)
    assert any("no cache (--data.cache_bytes 0), so images are read one by one" in line for line in lines)
    assert not (tmp_path / "kept").exists()
    begin(cache_bytes=50_000)
    assert any("% of them fit into the 0.0 GB of" in line for line in lines)
    begin()
    assert any(f"fetched once into {tmp_path / 'kept'}" in line for line in lines)
    assert (tmp_path / "kept").is_dir()
