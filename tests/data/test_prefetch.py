"""Shards are brought ahead of the reader, in the order of their use, once per node."""

import gzip
import multiprocessing
import os
import random
import threading
import time

import pytest
from support.http_server import HttpServer, silent, status

from dcgan_dist.data.remote.cache import ShardCache, entry_name
from dcgan_dist.data.remote.client import Remote
from dcgan_dist.data.remote.prefetch import Prefetcher
from dcgan_dist.errors import UserError

REMOTE = Remote(timeout=20, retries=0, pause=0.001)
DATA = {f"{number}.tar": random.Random(number).randbytes(1000) for number in range(8)}
PER_SHARD = 10  # positions
ORDER = [3, 1, 4, 0, 5, 7, 2, 6]


@pytest.fixture
def server():
    with HttpServer(DATA) as served:
        yield served


def first_uses(horizon):
    """One shard after the other, each epoch anew."""

    def following(position):
        first = position // PER_SHARD
        return [(ORDER[at % 8], max(position, at * PER_SHARD)) for at in range(first, first + horizon)]

    return following


def sources_of(server):
    return [REMOTE.stat(server.url(name)) for name in DATA]


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def content(shard):
    with shard:
        return os.pread(shard.descriptor, 10**6, 0)


def test_shards_come_in_the_order_of_their_use_as_far_as_is_looked(server, tmp_path):
    sources = sources_of(server)
    server.log.clear()
    cache = ShardCache(tmp_path, 10**6, REMOTE)
    ahead = Prefetcher(cache, sources, first_uses(3), position=80, threads=1)
    try:
        until(lambda: cache.counts.downloaded == 3000)
        assert list(dict.fromkeys(name for name, _ in server.log)) == ["3.tar", "1.tar", "4.tar"]
        assert ahead.shard(0, wait=False) is None
        ahead.advance(105)
        until(lambda: cache.counts.downloaded == 5000)
        assert [content(ahead.shard(number, wait=False)) for number in ORDER[:5]] == [
            DATA[f"{number}.tar"] for number in ORDER[:5]
        ]
        assert (cache.counts.hits, cache.counts.misses) == (5, 1)
    finally:
        ahead.close()


def test_a_small_cache_keeps_what_is_needed_soonest(server, tmp_path):
    sources = sources_of(server)
    cache = ShardCache(tmp_path, 3000, REMOTE)
    ahead = Prefetcher(cache, sources, first_uses(6))
    try:
        for at, number in enumerate(ORDER * 2):
            ahead.advance(at * PER_SHARD)
            wanted = {entry_name(sources[ORDER[(at + more) % 8]]) for more in range(3)}
            until(lambda wanted=wanted: wanted == {path.name for path in tmp_path.iterdir() if path.name[0] != "."})
            assert content(ahead.shard(number, wait=False)) == DATA[f"{number}.tar"]
        assert cache.counts.misses == 0
    finally:
        ahead.close()


def test_what_cannot_be_brought_is_raised_when_it_is_needed_and_not_before(server, tmp_path):
    sources = sources_of(server)
    server.always["1.tar"] = status(403)
    cache = ShardCache(tmp_path, 10**6, REMOTE)
    ahead = Prefetcher(cache, sources, first_uses(4))
    try:
        until(lambda: cache.counts.downloaded == 3000)
        assert content(ahead.shard(3, wait=False)) == DATA["3.tar"]
        until(lambda: ahead.failed(1))
        for wait in (False, True):
            with pytest.raises(UserError, match=r"/1.tar: access denied"):
                ahead.shard(1, wait=wait)
    finally:
        ahead.close()


def test_an_error_that_has_passed_is_forgotten(server, tmp_path, monkeypatch):
    monkeypatch.setattr("dcgan_dist.data.remote.prefetch.LATER", 0.01)
    sources = sources_of(server)
    server.fail("1.tar", status(503), status(503))
    cache = ShardCache(tmp_path, 10**6, REMOTE)
    ahead = Prefetcher(cache, sources, first_uses(4))
    try:
        until(lambda: cache.counts.downloaded == 4000)
        assert content(ahead.shard(1, wait=False)) == DATA["1.tar"]
    finally:
        ahead.close()


def test_a_mistake_in_the_order_is_not_swallowed(server, tmp_path):
    ahead = Prefetcher(ShardCache(tmp_path, 10**6, REMOTE), sources_of(server), lambda position: [(99, 0)])
    try:
        until(lambda: not any(thread.is_alive() for thread in ahead.threads))
        with pytest.raises(IndexError):
            ahead.shard(0, wait=False)
    finally:
        ahead.close()


def test_a_packed_shard_is_waited_for_and_a_plain_local_one_needs_nothing(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(b"content"))
    cache = ShardCache(tmp_path / "cache", 10**6, REMOTE)
    ahead = Prefetcher(cache, [None, tmp_path / "a.tar.gz"], lambda position: [(0, position)])
    try:
        assert ahead.shard(0, wait=True) is None
        assert ahead.shard(1, wait=False) is None
        assert content(ahead.shard(1, wait=True)) == b"content"
    finally:
        ahead.close()


def test_closing_does_not_wait_for_a_server_that_hangs(server, tmp_path, monkeypatch):
    monkeypatch.setattr("dcgan_dist.data.remote.prefetch.ENDING", 0.1)
    sources = sources_of(server)
    asked = threading.Event()

    def hang(handler, name):
        asked.set()
        silent(handler, name)

    server.fail("3.tar", hang)
    ahead = Prefetcher(ShardCache(tmp_path, 10**6, REMOTE), sources, first_uses(1), threads=1)
    assert asked.wait(30)
    ahead.close()
    assert ahead.threads[0].is_alive(), "it hangs, and was left behind"
    server.over.set()
    for thread in ahead.threads:
        thread.join(30)
        assert not thread.is_alive()


def prefetch_all(folder, sources, start, answers):
    cache = ShardCache(folder, 10**6, REMOTE)
    start.wait()
    ahead = Prefetcher(cache, sources, first_uses(8))
    until(lambda: all(cache.there(entry_name(source)) for source in sources))
    answers.put([content(ahead.shard(number, wait=False)) for number in range(8)])
    ahead.close()


@pytest.mark.dist
def test_the_ranks_of_a_node_bring_every_shard_once(server, tmp_path):
    sources = sources_of(server)
    before = server.requests()
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(4), context.Queue()
    ranks = [context.Process(target=prefetch_all, args=(tmp_path, sources, start, answers)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    assert [answers.get(timeout=100) for _ in ranks] == [list(DATA.values())] * 4
    for rank in ranks:
        rank.join()
    assert server.requests() - before == dict.fromkeys(DATA, 2)
