"""s3:// against a real server of that protocol (moto's); gs:// and hf:// against servers that answer as theirs do."""

import json
import os
import random
from collections import Counter

import fsspec.config
import pytest
from support.http_server import HttpServer, cut, status
from support.s3 import s3_server
from support.waiting import LIMIT

from dcgan_dist.data.remote.cache import ShardCache
from dcgan_dist.data.remote.client import Remote
from dcgan_dist.data.remote.stores import Span
from dcgan_dist.data.shards.patterns import shards_of
from dcgan_dist.errors import UsageError, UserError

DATA = random.Random(0).randbytes(300_000)


@pytest.fixture(scope="module")
def bucket():
    """An S3 server with `s3://shards/faces/{0,1}.tar`."""
    with s3_server({f"faces/{number}.tar": DATA[number:] for number in range(2)}) as client:
        yield client


REMOTE = Remote(timeout=LIMIT, retries=2, pause=0.001)


def test_s3_patterns(bucket):
    assert REMOTE.expand("s3://shards/faces/*.tar") == [f"s3://shards/faces/{number}.tar" for number in range(2)]
    assert REMOTE.expand("s3://shards/faces/0.tar") == ["s3://shards/faces/0.tar"]
    assert shards_of("s3://shards/faces/", REMOTE) == [f"s3://shards/faces/{number}.tar" for number in range(2)]
    for pattern in ("s3://shards/faces/*.zip", "s3://no-such-bucket/*.tar"):
        with pytest.raises(UsageError, match="no such files"):
            REMOTE.expand(pattern)


@pytest.mark.parametrize("end", ["", "/"])
def test_a_folder_on_a_server_is_read_like_a_local_one(bucket, tmp_path, end):
    files = [
        "a.tar",
        "b.TAR",
        "c.tar.gz",
        "d.tgz",
        "e.tar.zst",
        "f.tar.bz2",
        "g.txz",
        ".hidden.tar",
        "h.txt",
        "i",
        "j.tar.md5",
    ]
    files += ["manifest.json", "sub/k.tar", "sub/l.jpg"]
    for name in files:
        bucket.put_object(Bucket="shards", Key=f"mixed/{name}", Body=b"-")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"-")
    found = {}
    for folder in "s3://shards/mixed", str(tmp_path):
        passed = Counter()
        found[folder] = [name.removeprefix(f"{folder}/") for name in shards_of(folder + end, REMOTE, passed)], passed
    (names, passed), (local, local_passed) = found.values()
    assert names == local
    assert names == sorted(files[:7])
    assert passed == {"hidden": 1, ".txt": 1, "without ending": 2, ".md5": 1}  # i, and the folder
    assert local_passed == passed - Counter(["without ending"]) + Counter(["folders"])


@pytest.mark.parametrize(
    ("name", "what"), [("x.jpg", "these are images, not shards"), ("x.txt", r"holds no shards \(\.tar\)")]
)
def test_a_folder_without_shards_on_a_server_is_refused_like_a_local_one(bucket, tmp_path, name, what):
    bucket.put_object(Bucket="shards", Key=f"other-{name}/{name}", Body=b"-")
    (tmp_path / name).write_bytes(b"-")
    for folder in f"s3://shards/other-{name}/", str(tmp_path):
        with pytest.raises(UsageError, match=f"^{folder}: {what}; dcgan-dist shard"):
            shards_of(folder, REMOTE)


def test_a_file_without_ending_on_a_server_is_no_folder(bucket):
    assert shards_of("s3://shards/faces/0", REMOTE) == ["s3://shards/faces/0"]
    assert shards_of("https://127.0.0.1:9/data?id=3", REMOTE) == ["https://127.0.0.1:9/data?id=3"]
    with pytest.raises(UsageError, match="a web server has no listing"):
        shards_of("https://127.0.0.1:9/data/", REMOTE)


def test_s3_ranges_and_complete_files(bucket, tmp_path):
    url = "s3://shards/faces/1.tar"
    stat = REMOTE.stat(url)
    assert stat.size == len(DATA) - 1
    assert REMOTE.read_spans([Span(url, start, 50) for start in range(40)]) == [
        DATA[start + 1 : start + 51] for start in range(40)
    ]
    assert b"".join(REMOTE.download(stat)) == DATA[1:]
    with ShardCache(tmp_path, 10**6, REMOTE).acquire(stat) or pytest.fail("no space") as shard:
        assert shard.path.read_bytes() == DATA[1:]


def test_s3_versions(bucket):
    bucket.put_object(Bucket="shards", Key="changing.tar", Body=b"one")
    old = REMOTE.stat("s3://shards/changing.tar")
    bucket.put_object(Bucket="shards", Key="changing.tar", Body=b"two")
    assert REMOTE.stat("s3://shards/changing.tar").version != old.version
    with pytest.raises(UserError, match="another version"):
        list(REMOTE.download(old))


def test_s3_errors(bucket):
    for url, says in {
        "s3://shards/nope.tar": "no such file or bucket",
        "s3://no-such-bucket/a.tar": "no such file or bucket",
        "s3://shards/faces": "is a folder",
    }.items():
        with pytest.raises(UserError, match=says):
            REMOTE.stat(url)
    with pytest.raises(UserError, match="the file ends before"):
        REMOTE.read("s3://shards/faces/0.tar", len(DATA) + 1, 5)


def test_s3_faults_are_retried_here_and_not_below(monkeypatch):
    """The answers of a broken S3 server, and how often it was asked."""
    with HttpServer({"shards/a.tar": DATA}) as server:
        monkeypatch.setitem(
            fsspec.config.conf, "s3", {"endpoint_url": server.url("").rstrip("/"), "key": "id", "secret": "key"}
        )
        remote = Remote(timeout=LIMIT + 21, retries=2, pause=0.001)
        server.fail("shards/a.tar", status(503), cut(100))
        assert remote.read("s3://shards/a.tar", 5, 1000) == DATA[5:1005]
        server.always["shards/a.tar"] = status(503)
        before = server.requests()["shards/a.tar"]
        with pytest.raises(UserError, match=r"the server answers 503 \(Service Unavailable\); tried 3 times"):
            remote.read("s3://shards/a.tar", 5, 1000)
        assert server.requests()["shards/a.tar"] == before + 3
        server.always["shards/a.tar"] = status(403)
        with pytest.raises(UserError, match=r"access denied .*AWS_PROFILE"):
            remote.read("s3://shards/a.tar", 5, 1000)
        assert server.requests()["shards/a.tar"] == before + 4


def test_missing_credentials_end_at_once_and_say_what_to_set(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    with pytest.raises(
        UserError, match=r"^s3://bucket/a.tar: access denied, or no credentials; set AWS_ACCESS_KEY_ID .*FSSPEC_S3_ANON"
    ):
        Remote(timeout=LIMIT + 20).stat("s3://bucket/a.tar")


def test_gs(monkeypatch, tmp_path):
    about = {
        "kind": "storage#object",
        "name": "faces/0.tar",
        "bucket": "shards",
        "generation": "7",
        "size": str(len(DATA)),
    }
    files = {
        "storage/v1/b/shards/o/faces%2F0.tar": json.dumps(about).encode(),
        "storage/v1/b/shards/o": json.dumps({"kind": "storage#objects", "items": [about]}).encode(),
        "download/storage/v1/b/shards/o/faces%2F0.tar": DATA,
    }
    with HttpServer(files) as server:
        monkeypatch.setitem(fsspec.config.conf, "gs", {"endpoint_url": server.url("").rstrip("/"), "token": "anon"})
        remote = Remote(timeout=LIMIT + 22, retries=2, pause=0.001)
        assert remote.expand("gs://shards/faces/*.tar") == ["gs://shards/faces/0.tar"]
        assert shards_of("gs://shards/faces/", remote) == ["gs://shards/faces/0.tar"]
        stat = remote.stat("gs://shards/faces/0.tar")
        assert (stat.size, stat.version) == (len(DATA), "7")
        assert remote.read(stat.url, 11, 22) == DATA[11:33]
        assert b"".join(remote.download(stat)) == DATA
        with pytest.raises(UserError, match="no such file"):
            remote.read("gs://shards/faces/1.tar", 0, 5)


def test_hf(monkeypatch):
    page = "datasets/someone/faces/resolve/main/data/0.tar"
    tree = [{"type": "file", "path": "data/0.tar", "size": len(DATA), "oid": "0" * 40}]
    api = "api/datasets/someone/faces"
    files = {
        page: DATA,
        api: b'{"id": "someone/faces"}',
        f"{api}/revision/main": b'{"id": "someone/faces"}',
        f"{api}/tree/main": json.dumps([{"type": "directory", "path": "data", "oid": "1" * 40}]).encode(),
        f"{api}/tree/main/data": json.dumps(tree).encode(),
    }
    with HttpServer(files) as server:
        monkeypatch.setitem(
            fsspec.config.conf,
            "hf",
            {"endpoint": server.url("").rstrip("/"), "token": "a-token", "use_listings_cache": False},
        )
        remote = Remote(timeout=LIMIT + 23, retries=1, pause=0.001)
        url = "hf://datasets/someone/faces/data/0.tar"
        seen = []
        server.always[page] = lambda handler, name: seen.append(handler.headers.get("Authorization")) or True
        stat = remote.stat(url)
        assert stat.size == len(DATA)
        assert remote.read(url, 11, 22) == DATA[11:33]
        assert set(seen) == {"Bearer a-token"}
        assert remote.expand("hf://datasets/someone/faces/data/*.tar") == [url]
        assert shards_of("hf://datasets/someone/faces/data", remote) == [url]
        for bad in ("hf://datasets/someone/nothing/0.tar", "hf://nonsense"):
            with pytest.raises(UserError, match=f"^{bad}: "):
                remote.stat(bad)


def test_hf_sends_to_another_server_which_gets_no_token(monkeypatch):
    page, url = "datasets/someone/faces/resolve/main/0.tar", "hf://datasets/someone/faces/0.tar"
    api = "api/datasets/someone/faces"
    about = json.dumps([{"type": "file", "path": "0.tar", "size": len(DATA), "oid": "0" * 40}]).encode()
    hub = HttpServer({page: DATA, api: b'{"id": "someone/faces"}', f"{api}/tree/main": about})
    with HttpServer({"0.tar": DATA}) as storage, hub as server:

        def send_on(handler, name):
            handler.send_response(302)
            handler.send_header("Location", f"{storage.url('0.tar')}?signature=secret")
            handler.send_header("X-Linked-ETag", '"the-hubs"')
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        server.always[page] = send_on
        seen = []
        storage.always["0.tar"] = lambda handler, name: seen.append(handler.headers.get("Authorization")) or True
        options = {"endpoint": server.url("").rstrip("/"), "token": "a-token"}
        monkeypatch.setitem(fsspec.config.conf, "hf", options)
        remote = Remote(timeout=LIMIT + 25, retries=1, pause=0.001)
        stat = remote.stat(url)
        assert (stat.size, stat.version) == (len(DATA), '"the-hubs"')
        assert b"".join(remote.download(stat)) == DATA
        assert set(seen) == {None}


def test_hf_without_a_network(monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": "http://127.0.0.1:1"})
    with pytest.raises(UserError, match=r"^hf://datasets/someone/faces/0.tar: .*tried 2 times"):
        Remote(timeout=LIMIT + 24, retries=1, pause=0.001).stat("hf://datasets/someone/faces/0.tar")
