"""Shards are checked and saved alike wherever they lie and however they are packed."""

import gzip
import os
from dataclasses import replace

import pytest
import zstandard
from support.damages import DAMAGES, IMAGES, MAKERS, ours_jpg
from support.http_server import HttpServer
from support.waiting import LIMIT

from dcgan_dist.data.checking.access import ShardJob, base_name, opened
from dcgan_dist.data.checking.repair import repair_shard
from dcgan_dist.data.checking.verify import check_shard
from dcgan_dist.data.remote.client import Remote
from dcgan_dist.errors import UserError

PACK = {"a.tar.gz": gzip.compress, "a.tgz": gzip.compress, "a.tar.zst": zstandard.compress}


def check(name, **settings):
    return check_shard(ShardJob(name=str(name), deep=True, **settings), lambda _: None)


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def server(request):
    with HttpServer() as server:
        server.ranges = request.param
        yield server


def far(server, name, content):
    server.files[name] = content
    remote = Remote(timeout=LIMIT, retries=0)
    return {"remote": remote, "stat": remote.stat(server.url(name))}


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("damage", [None, "cut in an image", "flipped header of an image", "lost block"])
def test_remote_shards(tmp_path, server, make, damage):
    content = make(tmp_path / "a.tar").read_bytes()
    content = DAMAGES[damage](content) if damage else content
    (tmp_path / "a.tar").write_bytes(content)
    near, settings = check(tmp_path / "a.tar"), far(server, "a.tar", content)
    report = check(server.url("a.tar?signature=secret"), **settings)
    assert report.name == server.url("a.tar")
    assert [replace(problem, shard="") for problem in report.problems] == [
        replace(problem, shard="") for problem in near.problems
    ]
    assert (report.samples, report.bytes, report.sizes) == (near.samples, near.bytes, near.sizes)


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize("damage", [None, "flipped header of an image"])
def test_packed_shards(tmp_path, server, name, damage):
    content = ours_jpg(tmp_path / "a.tar").read_bytes()
    content = DAMAGES[damage](content) if damage else content
    (tmp_path / "a.tar").write_bytes(content)
    wanted = [replace(problem, shard="") for problem in check(tmp_path / "a.tar").problems]
    packed = PACK[name](content)
    (tmp_path / name).write_bytes(packed)
    for report in check(tmp_path / name), check(server.url(name), **far(server, name, packed)):
        assert [replace(problem, shard="") for problem in report.problems] == wanted
        assert report.samples == IMAGES


def test_damaged_packing_is_named(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(ours_jpg(tmp_path / "a.tar").read_bytes())[:-5000])
    (problem,) = check(path).problems
    assert str(problem) == f"{path}: the packed file is cut or empty; copy it again"
    assert problem.kind == "unreadable"
    path.write_bytes(b"<html>")
    assert "has the wrong ending" in str(check(path).problems[0])


def test_a_tar_that_is_packed_though_its_name_does_not_say_so(tmp_path):
    path = ours_jpg(tmp_path / "a.tar")
    path.write_bytes(gzip.compress(path.read_bytes()))
    report = check(path)
    assert (report.problems, report.samples) == ([], IMAGES)


def test_packed_shards_are_saved_unpacked(tmp_path):
    content = ours_jpg(tmp_path / "a.tar").read_bytes()
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(DAMAGES["flipped start of an image"](content)))
    job = (ShardJob(name=str(tmp_path / "b.tar.gz")), tmp_path / "c.tar")
    assert repair_shard(job, lambda _: None).lost == ("00005",)
    assert check(tmp_path / "c.tar").problems == []


def test_what_cannot_be_opened_is_one_line(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.tar")
    os.mkfifo(tmp_path / "pipe.tar.gz")
    for name, words in (
        ("none.tar", "no such file"),
        ("none.tar.gz", r"cannot be read \(No such file"),
        ("folder", "is a folder; name"),
        ("pipe.tar", "cannot be read .no regular file"),
        ("pipe.tar.gz", "cannot be read .no regular file"),
    ):
        with (
            pytest.raises(UserError, match=f"^{tmp_path}/{name}: {words}"),
            opened(ShardJob(name=f"{tmp_path}/{name}")),
        ):
            pass


def test_an_error_of_the_disk_is_one_line(tmp_path, monkeypatch):
    path = ours_jpg(tmp_path / "a.tar")

    def fails(descriptor, length, offset):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.pread", fails)
    assert str(check(path).problems[0]) == f"{path}: cannot be read (Input/output error)"


def test_a_server_that_fails_is_one_line(server):
    settings = far(server, "a.tar", b"x" * 5000)
    del server.files["a.tar"]
    (problem,) = check(server.url("a.tar?key=secret"), **settings).problems
    assert problem.kind == "unreadable"
    assert str(problem).startswith(f"{server.url('a.tar')}: ")
    assert "secret" not in str(problem)


def test_names():
    assert base_name("https://user:secret@host/folder/a.tar?key=secret") == "a.tar"
    assert base_name("folder/a?b.tar") == "a?b.tar"
