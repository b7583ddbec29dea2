"""Training from a bucket: real ranks that share one node's cache, and the same run as from a local disk."""

import io
import os
import threading
from contextlib import redirect_stderr
from unittest import mock

import numpy as np
import pytest
import safetensors.numpy
from support.http_server import HttpServer
from support.ranks import run_ranks
from support.recording import begin, deviations, metrics, options
from support.s3 import KEYS, s3_server
from support.shards import write_ours
from support.waiting import LIMIT

from dcgan_dist.data.remote.cache import ShardCache
from dcgan_dist.errors import UserError
from dcgan_dist.train import main

pytestmark = pytest.mark.dist

SHARDS = 3


def networks(run_dir):
    folder = run_dir / "checkpoints" / (run_dir / "checkpoints" / "latest").read_text()
    names = ("netg", "netd", "netg_ema")
    files = [(name, safetensors.numpy.load((folder / f"{name}.safetensors").read_bytes())) for name in names]
    return {f"{name}/{key}": np.asarray(value) for name, values in files for key, value in values.items()}


@pytest.mark.parametrize("cache_bytes", ["", "--data.cache_bytes 0"])
def test_two_ranks_from_a_bucket_are_one_rank_from_a_disk(tmp_path, cache_bytes):
    near = tmp_path / "near"
    near.mkdir()
    for number in range(SHARDS):
        write_ours(near / f"{number}.tar", 20, ("jpg", "ppm", "png")[number], first=100 * number)
    files = {f"faces/{path.name}": path.read_bytes() for path in near.iterdir()}
    assert run_ranks(1, main, options(f"{near}/*.tar", tmp_path / "one")) == [0]
    with s3_server(files):
        variables = {name: os.environ[name] for name in (*KEYS, "AWS_ENDPOINT_URL")}
        far = options("s3://shards/faces/*.tar", tmp_path / "two", f"--data.cache {tmp_path / 'cache'} {cache_bytes}")
        assert run_ranks(2, main, far, variables=variables) == [0, 0]
    worst = max(deviations(networks(tmp_path / "two"), networks(tmp_path / "one")).values())
    assert worst < 1e-9
    shown = [row["data/cache_percent"] for row in metrics(tmp_path / "two") if "data/cache_percent" in row]
    assert shown
    assert all(0 <= percent <= 100 for percent in shown)
    if cache_bytes:
        assert set(shown) == {0}
        assert not (tmp_path / "cache").exists()
    else:
        sizes = {len(data) for data in files.values()}
        assert {path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")} <= sizes
        assert list((tmp_path / "cache").glob("*.tmp")) == []


def told_without_room(given, world_size):
    """What a rank says of a cache into which nothing can be brought."""
    tried = threading.Event()

    def refuse(cache, source, request=None):
        tried.set()
        raise UserError("the disk is full")

    with mock.patch.object(ShardCache, "acquire", refuse), redirect_stderr(io.StringIO()) as told:
        session = begin(given, world_size)
        batches = session.reader.batches(0, session.split)
        next(batches)
        assert tried.wait(LIMIT)
        batches.close()  # and with them the threads that look ahead
    return [line for line in told.getvalue().splitlines() if line.startswith("data: ")]


def test_only_the_first_rank_of_a_node_reports_what_keeps_shards_from_the_cache(tmp_path):
    shard = write_ours(tmp_path / "0.tar", 24)
    with HttpServer({"0.tar": shard.read_bytes()}) as server:
        far = options(server.url("0.tar"), tmp_path / "run", f"--data.cache {tmp_path / 'cache'}")
        told = run_ranks(2, told_without_room, far, 2)
    assert told == [["data: shards are not prefetched: the disk is full"], []]
