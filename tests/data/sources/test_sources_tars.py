"""Tar shards as a source: plain, compressed and remote ones give the bytes and labels that plain webdataset gives."""

import bz2
import gzip
import lzma
import os
import random
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from support.http_server import HttpServer
from support.manifests import manifest_of
from support.shards import by_webdataset, encoded, write_ours
from support.sources import BY_NAME, PICTURES, given, ready, tar_bytes

from dcgan_dist.data.shards.manifest import manifest_json
from dcgan_dist.data.sources import find_source, tars
from dcgan_dist.errors import UsageError, UserError

MEMBERS = sorted(PICTURES.items())
PLAIN = tar_bytes(MEMBERS)
PACK = {
    ".tar": bytes,
    ".tar.gz": gzip.compress,
    ".TGZ": gzip.compress,
    ".tar.zst": zstandard.ZstdCompressor().compress,
}


def one(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    return find_source(str(tmp_path / name))


def items(source, tmp_path):
    return ready(source, tmp_path / "copies").items()


@pytest.mark.parametrize("ending", PACK)
def test_local_and_remote(tmp_path, ending):
    data = PACK[ending](PLAIN)
    assert given(one(tmp_path, f"a{ending}", data), tmp_path / "local") == BY_NAME
    with HttpServer({f"a{ending}": data}) as server:
        source = find_source(server.url(f"a{ending}?key=secret"))
        assert given(source, tmp_path / "remote") == BY_NAME
        copied = ready(source, tmp_path / "remote")
        assert copied.where(copied.items().images[0]) == f"{server.url(f'a{ending}')}: a/2.png at byte 512"
    assert copied.items().classes == {0: "a", 1: "b", 2: "c"}
    left = [path.suffix for path in (tmp_path / "remote").iterdir()]
    assert Counter(left) == {".tar": 1, ".lock": 1}


def test_several_of_all_kinds_in_the_order_of_their_names(tmp_path):
    with HttpServer() as server:
        server.files = {f"{number}.tar": tar_bytes([(f"{number}.png", b"%d" % number)]) for number in range(12)}
        source = find_source(server.url("{9..11}.tar"))
        assert [data for data, _ in given(source, tmp_path)] == [b"9", b"10", b"11"]
    for number, ending in ((10, ".tar.gz"), (9, ".tar"), (1, ".tar.zst")):
        (tmp_path / f"x{number}{ending}").write_bytes(PACK[ending](tar_bytes([(f"{number}.png", b"%d" % number)])))
    assert [data for data, _ in given(find_source(f"{tmp_path}/x*"), tmp_path)] == [b"1", b"10", b"9"]


def test_our_own_shards_keep_order_keys_and_labels(tmp_path):
    for number in range(3):
        write_ours(tmp_path / f"s{number}.tar", 5, "png", first=5 * number, size=8, label=lambda seed: seed * 7 % 4)
    images, left_out, classes, _ = find_source(f"{tmp_path}/s*.tar").items()
    assert [Path(item.name.partition("#")[0]).stem for item in images] == [f"{seed:05}" for seed in range(15)]
    assert (images.labels.tolist(), left_out, classes) == ([seed * 7 % 4 for seed in range(15)], {}, {})
    wanted = [(encoded(seed, "png", 8), seed * 7 % 4) for seed in range(15)]
    assert given(find_source(f"{tmp_path}/s*.tar"), tmp_path) == wanted


def test_the_grouping_is_webdatasets(tmp_path):
    members = [
        ("./x/1.json", b"{}"),
        ("./x/1.PNG", b"png"),
        ("./x/1.jpg", b"jpg"),
        ("./x/1.cls", b"3"),
        ("./x/2.txt", b"no image"),
        ("__meta__/0.png", b"-"),
        ("./y/3.b#1.jpg_", b"another suffix"),
        ("./y/3#2.jpeg", b"jpeg"),
        ("./y/4.webp", b"webp"),
        ("./y/4.cls", b"12"),
    ]
    source = one(tmp_path, "a.tar", tar_bytes(members))
    by_key = {sample["__key__"]: sample for sample in by_webdataset(tmp_path / "a.tar")}
    images = source.items().images
    assert [item.name.rpartition("#")[0] for item in images] == ["./x/1.jpg", "./y/3#2.jpeg", "./y/4.webp"]
    for item, (data, label) in zip(images, given(source, tmp_path), strict=True):
        key, _, suffix = item.name.rpartition("#")[0].rpartition(".")
        assert data == by_key[key][suffix]
        assert label == (int(by_key[key]["cls"]) if "cls" in by_key[key] else None)


@pytest.mark.parametrize(
    ("names", "labels", "classes"),
    [
        (["./b/1.png", "./a/2.png", "a/x/3.png"], [1, 0, 0], {0: "a", 1: "b"}),
        (["8/1.png", "10/2.png", "09/3.png"], [8, 10, 9], {8: "8", 9: "09", 10: "10"}),
        (["1.png", "a/2.png"], [None, None], {}),
        (["a/2.png", "b/1.png", "b/1.cls"], [None, 0], {}),
    ],
    ids=["folders", "numbers", "some outside", "members before folders"],
)
def test_labels(tmp_path, names, labels, classes):
    source = one(tmp_path, "a.tar", tar_bytes([(name, b"0") for name in names]))
    assert [label for _, label in given(source, tmp_path)] == labels
    assert source.items().classes == classes


def test_folders_label_alike_over_all_tars(tmp_path):
    one(tmp_path, "1.tar", tar_bytes([("b/1.png", b"1")]))
    one(tmp_path, "2.tar", tar_bytes([("a/1.png", b"2"), ("b/2.png", b"3")]))
    assert given(find_source(f"{tmp_path}/{{1,2}}.tar"), tmp_path) == [(b"1", 1), (b"2", 0), (b"3", 1)]


def test_any_order_with_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "MOST_OPEN_FILES", 2)
    for number in range(5):
        write_ours(tmp_path / f"{number}.tar", 4, "png", first=4 * number, size=8)
    source = find_source(f"{tmp_path}/*.tar")
    images = source.items().images
    places = random.Random(0).choices(range(20), k=200)
    with source.open() as load:
        for place, item in zip(places, images.take(places), strict=True):
            assert load(item) == (encoded(place, "png", 8), None)
            assert sum(path.resolve().suffix == ".tar" for path in Path("/proc/self/fd").iterdir()) <= 2


HALF = len(PLAIN) // 2
LONG = tar_bytes([("a.png", random.Random(0).randbytes(500_000))])  # of several blocks
FLIPPED = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(PLAIN))
FLIPPED[len(FLIPPED) // 2] ^= 255
GZIP_FLIPPED = gzip.compress(PLAIN)
GZIP_FLIPPED = GZIP_FLIPPED[:-6] + bytes([GZIP_FLIPPED[-6] ^ 255]) + GZIP_FLIPPED[-5:]  # in the checksum


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.tar", b"<html>", "HTML"),
        ("a.tar", PLAIN[:HALF], "cut"),
        ("a.tar", b"", "empty"),
        ("a.tar", tar_bytes([("a.txt", b"")]), "no images in it; skipped: 1 other member (1 .txt), 1 sample"),
        ("a.tar.gz", gzip.compress(PLAIN)[:-900], "the packed file is cut or empty; copy it again"),
        ("a.tar.gz", GZIP_FLIPPED, "is damaged, or has the wrong ending (Error -3 while decompressing data: in"),
        ("a.tar.gz", b"", "the packed file is cut or empty; copy it again"),
        ("a.tar.gz", gzip.compress(PLAIN[:HALF]), "cut"),
        ("a.tar.bz2", bz2.compress(PLAIN)[:-9], "the packed file is cut or empty; copy it again"),
        ("a.tar.xz", lzma.compress(PLAIN)[:-9], "the packed file is cut or empty; copy it again"),
        ("a.tar", gzip.compress(PLAIN), "the file is gzip (.tar.gz)"),
        ("a.tar.zst", zstandard.compress(LONG)[:-900], "the packed file is cut or empty; copy it again"),
        ("a.tar.zst", bytes(FLIPPED), "doesn't match checksum); copy it again"),
    ],
)
def test_damaged_tars_are_named(tmp_path, name, data, message):
    with HttpServer({name: data}) as server:
        for source in one(tmp_path, name, data), find_source(server.url(name)):
            with pytest.raises(UserError) as refused:
                items(source, tmp_path)
            assert name in str(refused.value).partition(": ")[0] + str(refused.value).partition(": ")[2]
            assert message in str(refused.value)
            assert "copies" not in str(refused.value)
            assert "\n" not in str(refused.value)
    assert list(tmp_path.rglob(".*")) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.tar.gz", "is damaged, or has the wrong ending (Error -3 while"),
        ("a.tar.zst", "is damaged, or has the wrong ending (zstd"),
        ("a.tar.bz2", "is damaged, or has the wrong ending (Invalid data stream"),
        ("a.tar.xz", "is damaged, or has the wrong ending (Input format not supported"),
    ],
)
def test_a_plain_tar_may_have_the_name_of_a_packed_one_on_a_local_disk(tmp_path, name, message):
    assert given(one(tmp_path, name, PLAIN), tmp_path) == BY_NAME
    with HttpServer({name: PLAIN}) as server, pytest.raises(UserError, match=re.escape(message)):
        items(find_source(server.url(name)), tmp_path)


def test_several_frames_in_one_file(tmp_path):
    packed = b"".join(zstandard.compress(PLAIN[start : start + 1_000]) for start in range(0, len(PLAIN), 1_000))
    assert given(one(tmp_path, "a.tar.zst", packed), tmp_path) == BY_NAME
    packed = b"".join(gzip.compress(PLAIN[start : start + 1_000]) for start in range(0, len(PLAIN), 1_000))
    assert given(one(tmp_path, "a.tar.gz", packed), tmp_path) == BY_NAME


def test_a_tar_that_is_cut_after_it_was_listed(tmp_path):
    source = one(tmp_path, "a.tar", PLAIN)
    images = source.items().images
    os.truncate(tmp_path / "a.tar", PLAIN.index(BY_NAME[-1][0]) + 10)
    with source.open() as load:
        assert load(images[-2]) == BY_NAME[-2]
        with pytest.raises(UserError, match=r"a\.tar: c/7\.png at byte \d+: is cut$"):
            load(images[-1])
    (tmp_path / "a.tar").unlink()
    with source.open() as load, pytest.raises(UserError, match=r"a/2\.png at byte 512: cannot be read any more \(No"):
        load(images[0])


def test_an_empty_member(tmp_path):
    source = one(tmp_path, "a.tar", tar_bytes([("a.png", b"")]))
    with (
        source.open() as load,
        pytest.raises(UserError, match=r"a\.tar: a\.png at byte 512: holds no image \(null, or no bytes\)$"),
    ):
        load(source.items().images[0])


def test_a_server_that_has_no_such_file(tmp_path):
    with HttpServer() as server, pytest.raises(UserError, match=r"http://127\.0\.0\.1:\d+/a\.tar: no such file"):
        items(find_source(server.url("a.tar?key=secret")), tmp_path)


def test_zstandard_is_missing(tmp_path, monkeypatch):
    data = PACK[".tar.zst"](PLAIN)
    with HttpServer({"a.tar.zst": data}) as server:
        sources = one(tmp_path, "a.tar.zst", data), find_source(server.url("a.tar.zst"))
        monkeypatch.setitem(sys.modules, "zstandard", None)
        for source in sources:
            wanted = r"/a\.tar\.zst: needs a package that is missing: pip install 'dcgan_dist\[zstd\]'$"
            with pytest.raises(UsageError, match=wanted):
                items(source, tmp_path)
        assert server.requests()["a.tar.zst"] == 1  # for its size: nothing was downloaded


def test_a_copied_source_is_not_read_before(tmp_path):
    source = one(tmp_path, "a.tgz", gzip.compress(PLAIN))
    with pytest.raises(RuntimeError, match="prepared"):
        source.items()


@pytest.fixture
def shards(tmp_path):
    """Two of our own shards with the labels 0 and 1, and the manifest that names both classes."""
    paths = [tmp_path / "set" / f"s{number}.tar" for number in range(2)]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        write_ours(path, 4, "png", first=4 * number, size=8, label=lambda seed: seed % 2)
    (paths[0].parent / "manifest.json").write_bytes(manifest_json(manifest_of(paths, ("cat", "dog"))))
    return paths


def test_the_manifest_beside_shards_names_their_classes(shards, tmp_path):
    folder = shards[0].parent
    for source in folder, shards[1], f"{folder}/s{{0,1}}.tar":
        assert items(find_source(str(source)), tmp_path).classes == {0: "cat", 1: "dog"}
    with HttpServer({path.name: path.read_bytes() for path in folder.iterdir()}) as server:
        assert items(find_source(server.url("s{0..1}.tar")), tmp_path).classes == {0: "cat", 1: "dog"}
        log = server.log
        assert sum(name == "manifest.json" and bool(span) and span != "bytes=0-0" for name, span in log) == 1, log


def test_a_manifest_without_names_of_classes(shards, tmp_path):
    folder = shards[0].parent
    lines: list[str] = []

    def classes():
        found = items(find_source(str(folder)), tmp_path)
        lines[:] = found.lines
        return found.classes

    (folder / "manifest.json").write_bytes(manifest_json(manifest_of(shards, (None, "dog"))))
    assert classes() == {1: "dog"}
    changed = replace(manifest_of(shards, ("cat", "dog")), classes=(), unlabelled=8)
    (folder / "manifest.json").write_bytes(manifest_json(changed))
    assert classes() == {}
    (folder / "manifest.json").write_bytes(manifest_json(manifest_of(shards[:1], ("cat", "dog"))))
    assert classes() == {}  # the manifest is not that of all these shards
    assert lines == [f"{folder}/manifest.json does not name s1.tar: of another set, or left from an earlier one?"]
    (folder / "manifest.json").write_text("another program's")
    assert classes() == {}
    (line,) = lines
    assert re.fullmatch(
        r".*/manifest\.json: is not a manifest of shards .*; so missing shards and the names of classes are not known",
        line,
    )
