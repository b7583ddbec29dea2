"""Shards are prefetched in the order of their use, once per node."""

import gzip
import multiprocessing
import os
import random
import re
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from support.counting import CountedCache
from support.http_server import HttpServer, silent, status
from support.waiting import LIMIT, until

from dcgan_dist.data.order import Order
from dcgan_dist.data.reading.reader import prefetching_shards
from dcgan_dist.data.remote.cache import ANY, ShardCache, entry_name
from dcgan_dist.data.remote.client import Remote
from dcgan_dist.data.remote.prefetch import Prefetcher
from dcgan_dist.data.shards.opener import CachePlan, Opener, Shard

REMOTE = Remote(timeout=LIMIT, retries=0, pause=0.001)
DATA = {f"{number}.tar": random.Random(number).randbytes(1000) for number in range(8)}
PER_SHARD = 10  # positions
ORDER = [3, 1, 4, 0, 5, 7, 2, 6]


@pytest.fixture
def server():
    with HttpServer(DATA) as served:
        yield served


def first_uses(horizon):
    """One shard after the other, in every epoch."""

    def following(position):
        first = position // PER_SHARD
        return [(ORDER[at % 8], max(position, at * PER_SHARD)) for at in range(first, first + horizon)]

    return following


def sources_of(server):
    return [REMOTE.stat(server.url(name)) for name in DATA]


@pytest.fixture
def one_thread(monkeypatch):
    monkeypatch.setattr("dcgan_dist.data.remote.prefetch.THREADS", 1)


def unsaid(line):
    raise AssertionError(line)


def content(cache, source):
    with cache.get(source) as shard:
        return os.pread(shard.fileno(), 10**6, 0)


def test_shards_come_in_the_order_of_their_use_up_to_the_horizon(server, tmp_path, one_thread):
    sources = sources_of(server)
    server.log.clear()
    cache = CountedCache(tmp_path, 10**6, REMOTE)
    ahead = Prefetcher(cache, sources, first_uses(3), position=80, say=unsaid)
    try:
        until(lambda: cache.made == 3000)
        assert list(dict.fromkeys(name for name, _ in server.log)) == ["3.tar", "1.tar", "4.tar"]
        assert cache.get(sources[0]) is None
        ahead.advance(105)
        until(lambda: cache.made == 5000)
        assert [content(cache, sources[number]) for number in ORDER[:5]] == [
            DATA[f"{number}.tar"] for number in ORDER[:5]
        ]
        assert (cache.hits, cache.misses) == (5, 1)
    finally:
        ahead.close()


def test_a_small_cache_keeps_what_is_needed_soonest(server, tmp_path):
    sources = sources_of(server)
    cache = CountedCache(tmp_path, 3000, REMOTE)
    ahead = Prefetcher(cache, sources, first_uses(6), say=unsaid)
    try:
        for at, number in enumerate(ORDER * 2):
            ahead.advance(at * PER_SHARD)
            wanted = {entry_name(sources[ORDER[(at + more) % 8]]) for more in range(3)}
            until(lambda wanted=wanted: wanted == cache.names())
            assert content(cache, sources[number]) == DATA[f"{number}.tar"]
        assert cache.misses == 0
    finally:
        ahead.close()


def test_a_failed_download_is_reported_once_and_the_rest_arrives(server, tmp_path):
    sources, lines = sources_of(server), []
    server.always["1.tar"] = server.always["4.tar"] = status(403)
    cache = CountedCache(tmp_path, 10**6, REMOTE)
    ahead = Prefetcher(cache, sources, first_uses(5), say=lines.append)
    try:
        until(lambda: cache.made == 3000 and lines)
        ahead.advance(30)
        until(lambda: cache.made == 6000)
    finally:
        ahead.close()
    (line,) = lines
    assert re.fullmatch(r"data: shards are not prefetched: http://127.0.0.1:\d+/[14].tar: access denied .*", line)


def test_an_error_that_has_passed_is_forgotten(server, tmp_path, monkeypatch):
    for name in ("RESCAN_COMPLETE", "RESCAN"):
        monkeypatch.setattr(f"dcgan_dist.data.remote.prefetch.{name}", 0.01)
    sources, lines = sources_of(server), []
    server.fail("1.tar", status(503), status(503))
    cache = CountedCache(tmp_path, 10**6, REMOTE)
    ahead = Prefetcher(cache, sources, first_uses(4), say=lines.append)
    try:
        until(lambda: cache.made == 4000)
        assert content(cache, sources[1]) == DATA["1.tar"]
        assert len(lines) == 1
    finally:
        ahead.close()


def test_a_folder_that_is_gone_is_reported_and_does_not_end_the_run(server, tmp_path):
    cache, lines = ShardCache(tmp_path / "cache", 10**6, REMOTE), []
    (tmp_path / "cache").rmdir()
    ahead = Prefetcher(cache, sources_of(server), first_uses(4), say=lines.append)
    try:
        until(lambda: lines)
        ahead.advance(10)
    finally:
        ahead.close()
    assert [line.partition("cache cannot be used")[0] for line in lines] == [
        f"data: shards are not prefetched: {tmp_path}/cache: the "
    ]


def test_a_mistake_in_the_program_is_not_swallowed(server, tmp_path):
    ahead = Prefetcher(ShardCache(tmp_path, 10**6, REMOTE), sources_of(server), lambda position: [(99, 0)], say=unsaid)
    try:
        until(lambda: not any(thread.is_alive() for thread in ahead.threads))
        with pytest.raises(IndexError):
            ahead.advance(1)
    finally:
        ahead.close()


def test_a_packed_shard_is_unpacked_ahead_and_a_plain_local_one_needs_nothing(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(b"content"))
    cache = ShardCache(tmp_path / "cache", 10**6, REMOTE)
    plan = [(0, 0), (1, 0)]
    ahead = Prefetcher(cache, [None, tmp_path / "a.tar.gz"], lambda position: plan, say=unsaid)
    try:
        until(cache.names)
        assert content(cache, tmp_path / "a.tar.gz") == b"content"
    finally:
        ahead.close()


class Watched(ShardCache):
    """Counts the looks at the folder, and the attempts to acquire something."""

    looks = tries = 0

    def names(self):
        self.looks += 1
        return super().names()

    def acquire(self, source, request=ANY):
        self.tries += 1
        return super().acquire(source, request)


@pytest.mark.parametrize(("limit", "tries"), [(8000, 0), (7500, 4)])
def test_the_folder_is_looked_at_once_for_every_step_of_the_reader(server, tmp_path, monkeypatch, limit, tries):
    """All that fits is cached already; what does not fit is tried at most once by every thread."""
    monkeypatch.setattr("dcgan_dist.data.remote.prefetch.PAUSE", 0.001)
    monkeypatch.setattr("dcgan_dist.data.remote.prefetch.RESCAN", 1000)
    sources, asked = sources_of(server), []
    cache = Watched(tmp_path, limit, REMOTE)
    for number in ORDER[: limit // 1000]:
        shard = cache.acquire(sources[number])
        assert shard is not None
        shard.close()
    cache.tries = 0

    def plan(position):
        asked.append(position)
        return [(number, at) for at, number in enumerate(ORDER, position // 100)]

    ahead = Prefetcher(cache, sources, plan, say=unsaid)
    try:
        for step in range(3):
            for position in range(100 * step, 100 * step + 3):
                ahead.advance(position)
                until(lambda position=position: asked.count(position) > 40)
            assert cache.looks == step + 1
            assert cache.tries <= tries * (step + 1)
    finally:
        ahead.close()


def looks_ahead(shards, plan, lines):
    corpus: Any = SimpleNamespace(shards=shards, opener=Opener(REMOTE, plan))
    return prefetching_shards(corpus, Order([10] * len(shards), 0), 0, lines.append)


def test_local_shards_open_no_cache(tmp_path):
    folder = tmp_path / "cache"
    with looks_ahead([Shard(name="a.tar", count=10, fingerprint=1)], CachePlan(folder, 10**6), []) as advance:
        advance(10)
    assert not folder.exists()


def test_the_reader_reports_why_shards_are_not_prefetched(server, tmp_path):
    sources, lines = sources_of(server), []
    server.always["1.tar"] = status(403)
    shards = [Shard(name=source.url, count=10, fingerprint=1, source=source) for source in sources[1:3]]
    with looks_ahead(shards, CachePlan(tmp_path, 10**6), lines) as advance:
        until(lambda: lines and entry_name(sources[2]) in {path.name for path in tmp_path.iterdir()})
        advance(10)
    assert len(lines) == 1
    assert lines[0].startswith(f"data: shards are not prefetched: {server.url('1.tar')}: access denied (403)")


def test_closing_does_not_wait_for_a_server_that_hangs(server, tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr("dcgan_dist.data.remote.prefetch.SHUTDOWN", 0.1)
    sources = sources_of(server)
    asked = threading.Event()

    def hang(handler, name):
        asked.set()
        silent(handler, name)

    server.fail("3.tar", hang)
    ahead = Prefetcher(ShardCache(tmp_path, 10**6, REMOTE), sources, first_uses(1), say=unsaid)
    assert asked.wait(LIMIT)
    ahead.close()
    assert ahead.threads[0].is_alive(), "it hangs, and was left behind"
    server.over.set()
    for thread in ahead.threads:
        thread.join(LIMIT)
        assert not thread.is_alive()


def prefetch_all(folder, sources, start, answers):
    cache = ShardCache(folder, 10**6, REMOTE)
    start.wait()
    ahead = Prefetcher(cache, sources, first_uses(8), say=unsaid)
    until(lambda: cache.names() == {entry_name(source) for source in sources})
    answers.put([content(cache, source) for source in sources])
    ahead.close()


@pytest.mark.dist
def test_the_ranks_of_a_node_download_every_shard_once(server, tmp_path):
    sources = sources_of(server)
    before = server.requests()
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(4), context.Queue()
    ranks = [context.Process(target=prefetch_all, args=(tmp_path, sources, start, answers)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    assert [answers.get(timeout=LIMIT) for _ in ranks] == [list(DATA.values())] * 4
    for rank in ranks:
        rank.join()
    assert server.requests() - before == dict.fromkeys(DATA, 2)
