"""What the reports of a real run say of its loader: exact numbers, of what was trained on, over all ranks."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from support.capture import train_and_capture
from support.http_server import HttpServer
from support.output import unstamped
from support.ranks import run_ranks
from support.recording import metrics, options
from support.shards import open_corpus, write_ours

from dcgan_dist.data.order import Order
from dcgan_dist.data.remote.cache import EntryRequest
from dcgan_dist.data.remote.client import Remote
from dcgan_dist.data.shards.opener import CachePlan, Opener

pytestmark = pytest.mark.dist

REPORTS = [24, 48, 72, 96, 120]  # images; as recording.options has them
LENGTHS = [23, 17]
BAD = [5, 31]  # numbers of the damaged images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two shards of JPEG files, which are of many lengths."""
    folder = tmp_path_factory.mktemp("whole")
    for number, length in enumerate(LENGTHS):
        write_ours(folder / f"{number}.tar", length, "jpg", first=23 * number)
    return folder


@pytest.fixture(scope="module")
def damaged(folder, tmp_path_factory):
    """The same shards with a flipped bit in two of the images."""
    damaged, corpus = tmp_path_factory.mktemp("damaged"), open_corpus([str(folder / "*.tar")])
    contents = [bytearray((folder / f"{number}.tar").read_bytes()) for number in range(2)]
    for bad in BAD:
        number, member = corpus.locate(bad)
        contents[number][corpus.index(number).offset[member] + 200] ^= 4
    for number, content in enumerate(contents):
        (damaged / f"{number}.tar").write_bytes(content)
    return damaged


def train_on(ranks, shards, run_dir, changes=""):
    """The records of all reports of a run, and what its main rank printed; other ranks print nothing."""
    results = run_ranks(ranks, train_and_capture, options(shards, run_dir, changes))
    assert [code for code, _, _ in results] == [0] * ranks
    assert [out for _, out, _ in results[1:]] == [""] * (ranks - 1)
    records = metrics(run_dir)
    assert [record["images"] for record in records] == REPORTS
    return records, unstamped(results[0][1]).splitlines()


def bytes_per_image(folder):
    """The mean length of the image files at the positions of each report, from the indexes."""
    corpus = open_corpus([str(folder / "*.tar")])
    lengths = np.concatenate([corpus.index(number).length for number in range(2)])
    samples = Order(LENGTHS, 0).samples(0, REPORTS[-1]).reshape(-1, 24)
    means = [float(lengths[part].mean()) for part in samples]
    assert len(set(means)) > 1
    return means


def hits(end):
    """Positions before `end` whose image is damaged."""
    return int(np.isin(Order(LENGTHS, 0).samples(0, end), BAD).sum())


def progress(lines):
    return [line for line in lines if " img of " in line]


@pytest.mark.parametrize(
    ("ranks", "workers"),
    [(1, "--data.workers 1"), (2, "--data.workers 2"), (2, "--data.workers 2 --data.decode processes")],
)
def test_the_bytes_are_of_the_images_that_were_trained_on(folder, tmp_path, ranks, workers):
    """And not of those that were read ahead, on however many ranks."""
    records, lines = train_on(ranks, f"{folder}/*.tar", tmp_path / "run", workers)
    assert [record["data/bytes_per_image"] for record in records] == pytest.approx(bytes_per_image(folder), rel=1e-12)
    assert [record["data/substituted"] for record in records] == [0.0] * 5
    assert not any("data/cache_percent" in record for record in records)
    assert len(progress(lines)) == 5
    assert all("  data " in line for line in progress(lines))
    assert not any("substituted" in line or "cache" in line or "damaged" in line for line in lines)


@pytest.mark.parametrize(
    ("ranks", "workers"),
    [(1, "--data.workers 2 --data.decode processes"), (1, "--data.prefetch 9"), (2, "--data.workers 1")],
)
def test_substitutes_are_counted_over_all_ranks_and_shown(damaged, tmp_path, ranks, workers):
    records, lines = train_on(ranks, f"{damaged}/*.tar", tmp_path / "run", f"--data.damaged substitute {workers}")
    wanted = [hits(end) for end in REPORTS]
    assert wanted[-1] == 6  # in three epochs
    assert [record["data/substituted"] for record in records] == wanted
    shown = [line.rsplit("  ", 1)[-1] if "substituted" in line else None for line in progress(lines)]
    assert shown == [f"substituted {count}" if count else None for count in wanted]
    told = [line for line in lines if "is damaged, and another is used: " in line]
    assert sorted(int(line.split()[2]) for line in told) == BAD


def test_damage_after_the_last_report_is_reported_at_the_end(damaged, tmp_path):
    given = options(f"{damaged}/*.tar", tmp_path / "run", "--data.damaged substitute --log.every 1000")
    (code, out, err), _ = run_ranks(2, train_and_capture, given)
    assert (code, err) == (0, "")
    told = [line for line in unstamped(out).splitlines() if "is damaged, and another is used: " in line]
    assert sorted(int(line.split()[2]) for line in told) == BAD
    (last,) = progress(unstamped(out).splitlines())  # the report that every run ends with
    assert last.startswith("100.0 %")
    assert last.endswith(f"substituted {3 * len(BAD)}")  # in each of three epochs


def test_hits_of_the_cache_are_shown(folder, tmp_path):
    """Of remote shards: by range without a cache; then fetched while the run goes on; then all from the cache."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with HttpServer(files) as server:
        url = f"{server.url('{0..1}.tar')} --data.cache {tmp_path / 'cache'}"
        records, lines = train_on(2, url, tmp_path / "afar", "--data.cache_bytes 0")
        assert [record["data/cache_percent"] for record in records] == [0.0] * 5
        assert all("cache 0 %" in line for line in progress(lines))
        first, _ = train_on(1, url, tmp_path / "first")
        assert all(0 <= record["data/cache_percent"] <= 100 for record in first)
        fetch_all(url)
        records, lines = train_on(2, url, tmp_path / "cached")
    assert [record["data/cache_percent"] for record in records] == [100.0] * 5
    assert all("cache 100 %" in line for line in progress(lines))
    assert [record["data/bytes_per_image"] for record in records] == pytest.approx(bytes_per_image(folder), rel=1e-12)


def test_compressed_shards_count_as_those_of_a_cache(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    shards = f"{tmp_path}/*.tar.gz --data.cache {tmp_path / 'cache'}"
    records, _ = train_on(1, shards, tmp_path / "run")
    assert [record["data/cache_percent"] for record in records] == [100.0] * 5


def test_a_stream_reports_its_bytes_too(folder, tmp_path):
    """Every epoch, of 40 images, is a pass over all files."""
    corpus = open_corpus([str(folder / "*.tar")])
    mean = np.concatenate([corpus.index(number).length for number in range(2)]).mean()
    records, _ = train_on(1, f"{folder}/*.tar", tmp_path / "run", "--data.reader stream")
    assert np.mean([record["data/bytes_per_image"] for record in records]) == pytest.approx(mean)
    assert [record["data/substituted"] for record in records] == [0.0] * 5


def fetch_all(url):
    """Brings both shards into the cache."""
    names, _, folder = url.partition(" --data.cache ")
    opener = Opener(Remote(), CachePlan(Path(folder), 10**9))
    for shard in open_corpus([names], opener).shards:
        assert shard.source is not None
        assert opener.cache is not None
        entry = opener.cache.acquire(shard.source, EntryRequest())
        assert entry is not None
        entry.close()
