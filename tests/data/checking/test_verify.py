"""Whatever is wrong with a shard is found, and named with shard, key and byte."""

import tarfile
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from support.damages import DAMAGES, IMAGES, MAKERS, NOTHING_LEFT, OF_THE_INDEX, flipped, foreign, members, ours_jpg
from support.shards import encoded, write_ours, write_tar

from dcgan_dist.data.checking import verify
from dcgan_dist.data.checking.access import ShardJob
from dcgan_dist.data.checking.verify import check_shard
from dcgan_dist.data.shards.foreign import walk
from dcgan_dist.data.shards.index import ShardWriter, member_bytes, read_index
from dcgan_dist.data.shards.manifest import ShardEntry
from dcgan_dist.data.system.pool import over_processes
from dcgan_dist.errors import UserError


def check(path, deep=True, **settings):
    return check_shard(ShardJob(name=str(path), deep=deep, **settings), lambda _: None)


def entry_of(path):
    data, index = path.read_bytes(), read_index(path)
    whole = xxhash.xxh3_128_hexdigest(data)
    mark = f"{index.fingerprint if index else 0:016x}"
    return ShardEntry(name=path.name, bytes=len(data), samples=IMAGES, xxh128=whole, fingerprint=mark)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("make", MAKERS)
def test_an_intact_shard(tmp_path, make, deep):
    path = make(tmp_path / "a.tar")
    report = check(path, deep, entry=entry_of(path))
    assert report.problems == []
    assert (report.name, report.bytes, report.samples) == (str(path), path.stat().st_size, IMAGES)
    assert report.checked == (make is not foreign)
    assert report.sizes == ({"32x32": IMAGES} if deep else {})


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("damage", DAMAGES | NOTHING_LEFT)
def test_damage_is_found(tmp_path, make, damage):
    path = make(tmp_path / "a.tar")
    content = path.read_bytes()
    path.write_bytes((DAMAGES | NOTHING_LEFT)[damage](content))
    problems = check(path).problems
    assert problems
    for problem in problems:
        assert str(problem).startswith(f"{path}")
        assert "\n" not in str(problem)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("damage", [name for name in DAMAGES if "lost b" not in name and "first" not in name])
def test_the_place_of_the_damage(tmp_path, make, damage):
    """The first thing that is said is about sample 5, or the byte where its members stand."""
    path = make(tmp_path / "a.tar")
    content = path.read_bytes()
    path.write_bytes(DAMAGES[damage](content))
    places = members(content)
    named = [problem for problem in check(path).problems if problem.byte is not None]
    if damage == "cut after the last sample":
        wanted = range(places[23][2], places[23][2] + 1)
    else:
        wanted = range(places[10][0] - 512, places[11][2] + 1)
    assert named[0].byte in wanted
    if named[0].key is not None:
        assert named[0].key.removeprefix("train/")[:5] in ("00004", "00005")


def test_flipped_pixels_are_found_by_checksum_alone(tmp_path):
    path = write_ours(tmp_path / "a.tar", 3, "ppm", first=7)
    index = read_index(path)
    assert index is not None
    path.write_bytes(flipped(path.read_bytes(), int(index.offset[1]) + 1000))
    (problem,) = check(path, deep=False).problems
    assert (problem.kind, problem.key, problem.byte) == ("checksum", "00008", int(index.offset[1]))
    message = "the bytes of the .ppm are not those that were written (checksum)"
    assert str(problem) == f"{path}: 00008 at byte {index.offset[1]}: {message}"


def test_a_flipped_header_is_distinguished_from_flipped_pixels(tmp_path):
    path = ours_jpg(tmp_path / "a.tar")
    content = path.read_bytes()
    for member, what in (10, "the tar header or padding of the .jpg"), (11, "the .cls member"):
        place = members(content)[member][0] + 4
        path.write_bytes(flipped(content, place))
        (problem,) = check(path).problems
        assert (problem.kind, problem.key, problem.byte) == ("checksum", "00005", place)
        assert problem.what == f"{what} is not what was written"


def test_all_bad_samples_of_a_shard_are_listed(tmp_path):
    path = ours_jpg(tmp_path / "a.tar")
    content = path.read_bytes()
    for number in 2, 3, 9:
        content = flipped(content, members(content)[2 * number][1] + 200)
    path.write_bytes(content)
    assert [problem.key for problem in check(path, deep=False).problems] == ["00002", "00003", "00009"]


@pytest.mark.parametrize("damage", OF_THE_INDEX)
def test_damage_of_the_index_is_found(tmp_path, damage):
    path = ours_jpg(tmp_path / "a.tar")
    path.write_bytes(OF_THE_INDEX[damage](path.read_bytes()))
    assert {problem.kind for problem in check(path).problems} <= {"index", "structure"}
    assert check(path).problems


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return [write_ours(folder / f"{suffix}.tar", 3, suffix, size=16, label=lambda n: n) for suffix in ("jpg", "ppm")]


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_no_flipped_byte_is_overlooked(whole, tmp_path_factory, data):
    path = data.draw(st.sampled_from(whole))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path_factory.getbasetemp() / "flipped.tar"
    damaged.write_bytes(content)
    report = check(damaged, deep=False)
    assert report.problems, place


@given(name=st.text(max_size=130), size=st.integers(0, 3000))
def test_members_are_those_of_tarfile(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    padded = b"x" * size + bytes(-size % 512)
    assert member_bytes(name, b"x" * size) == info.tobuf(tarfile.PAX_FORMAT) + padded


def test_an_index_that_does_not_fit_its_tar_is_found(tmp_path):
    """A checksum proves that the bytes are as they were written, not that what was written makes sense."""
    path = tmp_path / "a.tar"
    with ShardWriter(path) as shard:
        shard.add("a", "jpg", encoded(1, "jpg"), 4)
        shard.add("b", "jpg", encoded(2, "jpg"), 5)
        shard._rows[1] = (*shard._rows[1][:-1], 6)
    (problem,) = check(path).problems
    assert (problem.kind, problem.key) == ("structure", "b")
    assert "tar and index do not agree: the .cls member" in problem.what


def test_deep_names_images_that_cannot_be_decoded(tmp_path):
    path = tmp_path / "a.tar"
    images = [encoded(1, "jpg"), encoded(2, "jpg")[:-200], b"no image", encoded(3, "ppm") + b"more"]
    with ShardWriter(path) as shard:
        for number, data in enumerate(images):
            shard.add(str(number), "ppm" if number == 3 else "jpg", data)
    index = read_index(path)
    assert index is not None
    assert check(path, deep=False).problems == []
    problems = check(path).problems
    assert [(problem.kind, problem.key, problem.byte) for problem in problems] == [
        ("image", str(number), int(index.offset[number])) for number in (1, 2, 3)
    ]
    assert "a damaged image" in problems[0].what
    assert problems[1].what.startswith("not an image in a supported format")
    assert problems[2].what == "4 bytes more than its header says"


def test_sizes_are_counted(tmp_path):
    path = tmp_path / "a.tar"
    with ShardWriter(path) as shard:
        for number, size in enumerate([16, 32, 16, 48, 16]):
            shard.add(str(number), "png", encoded(number, "png", size))
    assert check(path).sizes == {"16x16": 3, "32x32": 1, "48x48": 1}


def test_what_training_refuses_of_other_programs_is_named(tmp_path):
    twins = write_tar(tmp_path / "twins.tar", [("a.jpg", encoded(1, "jpg")), ("a.JPG", encoded(2, "jpg"))])
    (problem,) = check(twins).problems
    assert problem.what.startswith("'a.JPG' at byte 1536: a second member of this name")
    texts = write_tar(tmp_path / "texts.tar", [("a.txt", b"text")])
    assert [problem.what for problem in check(texts).problems] == ["holds no images"]
    own = write_tar(tmp_path / "own.tar", [("a.jpg", encoded(1, "jpg")), ("a.__key__", b"x")])
    assert "for its own use" in check(own).problems[0].what
    left_out = write_tar(tmp_path / "bad.tar", [("a.jpg", b"x"), ("a.__bad__", b"x"), ("b.jpg", encoded(1, "jpg"))])
    assert (check(left_out).problems, check(left_out).samples) == ([], 1)
    two = tmp_path / "two.tar"
    two.write_bytes(2 * foreign(tmp_path / "one.tar").read_bytes())
    (problem,) = check(two).problems
    assert f"more data after the end mark at byte {problem.byte}; several tars in one?" in problem.what
    assert check(two).samples == IMAGES - 1  # where the last one ends is not known


NAMES = st.sampled_from(
    [
        "a.jpg",
        "a.cls",
        "a.JPG",
        "b.png",
        "b.seg.png",
        "b.json",
        "d/a.jpg",
        "__x__.jpg",
        "c",
        "a.__bad__",
        "b.__url__",
        "é\n.jpg",
    ]
)


@settings(max_examples=150, deadline=None)
@given(names=st.lists(NAMES, max_size=7), tar_format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_intact_is_what_training_can_read(tmp_path_factory, names, tar_format):
    path = write_tar(tmp_path_factory.getbasetemp() / "a.tar", [(name, b"1") for name in names], tar_format)
    report = check(path, deep=False)
    try:
        index = walk(path)
    except UserError:
        assert report.problems
    else:
        assert ([problem.what for problem in report.problems], report.samples) == (
            [] if len(index) else ["holds no images"],
            len(index),
        )


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_kinds_of_tars(tmp_path, tar_format):
    name = "folder/" * 12 + "Ünï" if tar_format == tarfile.USTAR_FORMAT else "long" * 60 + "/" + "Ünï" * 40
    rows = [(f"{name}{number}.jpg", encoded(number, "jpg")) for number in range(5)]
    path = write_tar(tmp_path / "a.tar", rows, tar_format)
    assert (check(path).problems, check(path).samples) == ([], 5)
    path.write_bytes(path.read_bytes()[:-11_000])
    assert check(path).problems


def test_differences_from_the_manifest(tmp_path):
    path = ours_jpg(tmp_path / "a.tar")
    entry = entry_of(path)
    assert check(path, entry=entry).problems == []
    size = path.stat().st_size

    def said(**other):
        return [(problem.kind, problem.what) for problem in check(path, entry=replace(entry, **other)).problems]

    assert said(bytes=7) == [("manifest", f"{size:,} bytes, but 7 in the manifest")]
    assert said(samples=7) == [("manifest", f"{IMAGES} samples, but 7 in the manifest")]
    assert [kind for kind, _ in said(xxh128="0" * 32)] == ["manifest"]


def test_small_buffers_change_nothing(tmp_path, monkeypatch):
    """Headers and images lie across the borders of what is read at a time."""
    for damage in ("zeroed stretch", "lost bytes", "lost beginning", "zeroed header"):
        path = foreign(tmp_path / "a.tar")
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
        wanted = check(path)
        for size in 513, 1000, 4096:
            with monkeypatch.context() as patch:
                patch.setattr(verify, "CHUNK", size)
                assert check(path) == wanted


def test_memory_is_bounded(tmp_path):
    """A shard of 60 MB is read a few megabytes at a time, also for the manifest's checksum."""
    path = tmp_path / "a.tar"
    noise = np.random.default_rng(0).bytes(300_000)
    with ShardWriter(path) as shard:
        for number in range(200):
            shard.add(str(number), "jpg", noise)
    entry = replace(entry_of(path), samples=200)
    tracemalloc.start()
    try:
        assert check(path, deep=False, entry=entry).problems == []
        assert tracemalloc.get_traced_memory()[1] < 16e6
    finally:
        tracemalloc.stop()


def test_progress_comes_to_the_size(tmp_path):
    for make in MAKERS:
        path = make(tmp_path / "a.tar")
        steps = []
        check_shard(ShardJob(name=str(path)), steps.append)
        assert sum(steps) == path.stat().st_size
        assert min(steps) > 0


def test_several_processes_find_the_same(tmp_path):
    jobs = []
    for number, damage in enumerate([*DAMAGES, *NOTHING_LEFT]):
        path = MAKERS[number % 3](tmp_path / f"{number}.tar")
        if number % 4:
            path.write_bytes((DAMAGES | NOTHING_LEFT)[damage](path.read_bytes()))
        jobs.append(ShardJob(name=str(path), deep=True))
    done = []
    together = over_processes(check_shard, jobs, 2, done.append)
    assert together == over_processes(check_shard, jobs, 1, lambda _: None)
    assert done[-1] == sum(report.bytes for report in together)
