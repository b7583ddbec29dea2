"""A look at some samples of a shard: what it sees, what it costs, and that it says nothing of what it did not see."""

import pytest
from support.http_server import HttpServer
from support.shards import encoded, write_ours, write_tar
from support.waiting import LIMIT

from dcgan_dist.data.checking.access import ShardJob
from dcgan_dist.data.checking.verify import spot_check
from dcgan_dist.data.remote.client import Remote
from dcgan_dist.data.shards.index import read_index

IMAGES, SEEN = 24, [0, 8, 15, 23]


@pytest.fixture
def shard(tmp_path):
    return write_ours(tmp_path / "0.tar", IMAGES, "jpg")


def damage(shard, image):
    index = read_index(shard)
    assert index
    content = bytearray(shard.read_bytes())
    content[int(index.offset[image]) + 50] ^= 1
    shard.write_bytes(content)


def test_an_intact_shard(shard):
    assert spot_check(ShardJob(name=str(shard)), 4) == (4, [])
    assert spot_check(ShardJob(name=str(shard)), 1) == (1, [])
    assert spot_check(ShardJob(name=str(shard)), 1_000) == (IMAGES, [])


@pytest.mark.parametrize("image", [0, 1, 8, 23])
def test_one_bit_in_an_image_is_seen_if_it_is_of_the_sample(shard, image):
    damage(shard, image)
    count, problems = spot_check(ShardJob(name=str(shard)), len(SEEN))
    assert count == len(SEEN)
    assert [problem.key for problem in problems] == ([f"{image:05}"] if image in SEEN else [])
    assert [problem.key for problem in spot_check(ShardJob(name=str(shard)), IMAGES)[1]] == [f"{image:05}"]


def test_of_a_remote_shard_only_a_part_is_read(tmp_path):
    shard = write_ours(tmp_path / "0.tar", 1_000, "ppm")
    damage(shard, 999)
    content = shard.read_bytes()
    with HttpServer({"0.tar": content}) as server:
        remote = Remote(timeout=LIMIT, retries=0)
        stat = remote.stat(server.url("0.tar"))
        count, problems = spot_check(ShardJob(name=server.url("0.tar"), remote=remote, stat=stat), 4)
        asked = [span.removeprefix("bytes=").split("-") for _, span in server.log if span]
    assert (count, [problem.key for problem in problems]) == (4, ["00999"])
    assert sum(int(end) - int(start) + 1 for start, end in asked) < len(content) / 4


def test_a_shard_of_another_program_has_nothing_to_be_checked_by(tmp_path):
    tar = write_tar(tmp_path / "0.tar", [("a.jpg", encoded(1, "jpg"))])
    assert spot_check(ShardJob(name=str(tar)), 4) == (0, [])


def test_what_cannot_be_read_is_a_problem(shard, tmp_path):
    count, problems = spot_check(ShardJob(name=str(tmp_path / "1.tar")), 4)
    assert (count, [(problem.kind, problem.what) for problem in problems]) == (0, [("unreadable", "no such file")])
    content = bytearray(shard.read_bytes())
    content[-1_024 - 4] ^= 1  # the footer's own checksum
    shard.write_bytes(content)
    count, problems = spot_check(ShardJob(name=str(shard)), 4)
    assert count == 0
    assert "its index is damaged" in problems[0].what
