"""What is undamaged in a shard is saved, and nothing else."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import damages
from support.damages import DAMAGES, IMAGES, MAKERS, NOTHING_LEFT, OF_THE_INDEX, flipped, foreign, members, ours_jpg
from support.http_server import HttpServer
from support.shards import by_index, encoded, write_ours
from support.waiting import LIMIT

from dcgan_dist.data.checking.access import ShardJob
from dcgan_dist.data.checking.repair import repair_shard
from dcgan_dist.data.checking.verify import check_shard
from dcgan_dist.data.remote.client import Remote
from dcgan_dist.data.shards.foreign import walk
from dcgan_dist.data.shards.index import ShardWriter, read_index
from dcgan_dist.data.shards.samples import MemberChoice
from dcgan_dist.data.sources import find_source
from dcgan_dist.data.writing.packing import Packing
from dcgan_dist.data.writing.writer import write_shards
from dcgan_dist.errors import UserError


def repair(path, new, **settings):
    if Path(new).is_file():
        Path(new).unlink()
    return repair_shard((ShardJob(name=str(path), **settings), Path(new)), lambda _: None)


def rows_of(path):
    """Key, suffix, bytes and label of every sample of an intact shard."""
    return by_index(read_index(path) or walk(path))


def rows_of_new(path):
    """The same of a shard that was saved, which is intact and one of ours."""
    report = check_shard(ShardJob(name=str(path), deep=True), lambda _: None)
    assert report.problems == []
    assert report.checked
    return rows_of(path)


CUTS = [damage for damage in DAMAGES if damage.startswith("cut")]
OURS = [make for make in MAKERS if make is not foreign]


@pytest.mark.parametrize("make", OURS)
@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage not in CUTS])
def test_exactly_the_undamaged_samples_are_saved(tmp_path, make, damage):
    path, new = make(tmp_path / "a.tar"), tmp_path / "new" / "a.tar"
    intact, content = rows_of(path), path.read_bytes()
    damaged = DAMAGES[damage](content)
    undamaged = [row for row, sample in zip(intact, damages.images(content), strict=True) if sample in damaged]
    if len(damaged) == len(content):  # the index knows all but the images
        places = [slice(*place[1:]) for place in members(content)[::2]]
        undamaged = [row for row, place in zip(intact, places, strict=False) if content[place] == damaged[place]]
    path.write_bytes(damaged)
    report = repair(path, new)
    assert report.kept == len(undamaged)
    assert path.read_bytes() == damaged
    assert rows_of_new(new) == undamaged
    assert report.path == str(new)
    assert set(report.lost) == {row[0] for row in intact} - {row[0] for row in undamaged}
    named = {problem.key for problem in check_shard(ShardJob(name=str(path)), lambda _: None).problems}
    assert set(report.lost) <= named


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_without_an_index_shard_saves_all_in_front_of_the_damage(tmp_path, make, damage):
    """Of a tar that is cut these are all good samples, and their labels."""
    path = (make if damage in CUTS else foreign)(tmp_path / "a.tar")
    intact, content = rows_of(path), path.read_bytes()
    path.write_bytes(DAMAGES[damage](content))
    first = "first" in damage or damage == "lost beginning"
    count = {"cut after the last sample": IMAGES, "zeroed stretch": 4}.get(damage, 0 if first else 5)
    wanted = [row[2:] for row in intact[:count]]
    assert repair(path, tmp_path / "new.tar").problem == "it has no intact index"
    source = find_source(str(path), choice=MemberChoice(allow_cut=True, skip_bad=True))
    if not wanted:
        with pytest.raises(UserError):
            write_shards(source, tmp_path / "out", Packing(store="keep", skip_bad=True, shuffle=False, processes=1))
        return
    write_shards(source, tmp_path / "out", Packing(store="keep", skip_bad=True, shuffle=False, processes=1))
    saved = [row[2:] for row in rows_of_new(tmp_path / "out" / "shard-00000.tar")]
    assert saved[: len(wanted)] == wanted
    behind = {data for data, _ in saved[len(wanted) :]}
    assert behind <= {row[2] for row in intact}


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("damage", NOTHING_LEFT)
def test_nothing_comes_of_nothing(tmp_path, make, damage):
    path = make(tmp_path / "a.tar")
    path.write_bytes(NOTHING_LEFT[damage](path.read_bytes()) if damage != "gzip" else b"\x1f\x8b" + os.urandom(9000))
    if damage == "gzip":  # recognised by its first bytes, and not readable
        with pytest.raises(UserError, match="is damaged, or has the wrong ending"):
            repair(path, tmp_path / "new" / "a.tar")
    else:
        report = repair(path, tmp_path / "new" / "a.tar")
        assert (report.kept, report.path, report.lost) == (0, None, ())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("suffix", ["jpg", "ppm", "png"])
@pytest.mark.parametrize("damage", OF_THE_INDEX)
def test_a_damaged_index_loses_no_sample(tmp_path, suffix, damage):
    """Where it can't be used, the tar is packed again as if it had none."""
    path = write_ours(tmp_path / "a.tar", IMAGES, suffix, label=lambda number: number)
    intact = rows_of(path)
    path.write_bytes(OF_THE_INDEX[damage](path.read_bytes()))
    report = repair(path, tmp_path / "new.tar")
    if report.problem:
        assert damage not in ("flipped in the end mark", "cut in the end mark", "half an end mark")
        source = find_source(str(path), choice=MemberChoice(allow_cut=True, skip_bad=True))
        packing = Packing(store="keep", skip_bad=True, shuffle=False, processes=1)
        assert write_shards(source, tmp_path / "out", packing).samples == IMAGES
        assert [row[2:] for row in rows_of_new(tmp_path / "out" / "shard-00000.tar")] == [row[2:] for row in intact]
    else:
        assert (report.kept, report.lost) == (IMAGES, ())
        assert rows_of_new(tmp_path / "new.tar") == intact


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_costs_the_image_that_it_is_in_and_no_other(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    path = write_ours(folder / "flipped.tar", 4, data.draw(st.sampled_from(["jpg", "ppm"])), size=16, label=int)
    intact, content = rows_of(path), bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    index = read_index(path)
    assert index is not None
    path.write_bytes(content)
    report = repair(path, folder / "saved.tar")
    if report.problem:
        assert place >= index.start[-1]
        return
    hit = (index.offset <= place) & (place < index.offset + index.length)
    assert report.lost == tuple(key for key, lost in zip(index.keys, hit, strict=True) if lost)
    assert rows_of_new(folder / "saved.tar") == [row for row, lost in zip(intact, hit, strict=True) if not lost]


EDITS = st.tuples(st.integers(0, 2**31), st.integers(0, 3_000), st.binary(max_size=1_500))


@pytest.mark.parametrize("make", OURS)
@settings(max_examples=60, deadline=None)
@given(edits=st.lists(EDITS, min_size=1, max_size=4))
def test_whatever_happens_what_is_saved_is_intact(tmp_path_factory, make, edits):
    """Any stretches of the file are replaced by any others, shorter or longer."""
    folder = tmp_path_factory.getbasetemp()
    path, new = make(folder / "edited.tar"), folder / "intact.tar"
    intact, content = rows_of(path), path.read_bytes()
    keys = {row[0] for row in intact}
    for place, removed, added in edits:
        start = place % (len(content) + 1)
        content = content[:start] + added + content[start + removed :]
    path.write_bytes(content)
    new.unlink(missing_ok=True)
    report = repair(path, new)
    saved = rows_of_new(new) if new.exists() else []
    assert report.kept == len(saved)
    assert {row[0] for row in saved} | set(report.lost) <= keys
    assert report.kept + len(report.lost) in (0, IMAGES)
    assert [row for row in saved if row not in intact] == []


@pytest.mark.parametrize("edit", ["lost byte", "added byte"])
@pytest.mark.parametrize("make", OURS)
def test_one_byte_costs_the_sample_that_it_is_in_and_no_other(tmp_path, make, edit):
    """Every header behind it is shifted, and some have a right checksum even so: '00003.cls' reads as '0003.cls'."""
    path, new = make(tmp_path / "a.tar"), tmp_path / "b.tar"
    intact, content = rows_of(path), path.read_bytes()
    for number, member in enumerate(members(content)[: 2 * IMAGES]):
        for place in member[1], member[2] - 1:
            behind = content[place + 1 :] if edit == "lost byte" else b"x" + content[place:]
            path.write_bytes(content[:place] + behind)
            report = repair(path, new)
            key = intact[number // 2][0]
            assert [row for row in intact if row[0] != key] == [row for row in rows_of_new(new) if row[0] != key]
            assert set(report.lost) <= {key}
            assert report.kept + len(report.lost) == IMAGES


def test_an_intact_shard_is_written_again_to_the_byte(tmp_path):
    path = ours_jpg(tmp_path / "a.tar")
    repair(path, tmp_path / "b.tar")
    assert (tmp_path / "b.tar").read_bytes() == path.read_bytes()


def test_lost_samples_are_named(tmp_path):
    path = ours_jpg(tmp_path / "a.tar")
    content = path.read_bytes()
    for number in 2, 9:
        content = flipped(content, members(content)[2 * number][1] + 200)
    path.write_bytes(content)
    report = repair(path, tmp_path / "b.tar")
    assert report.lost == ("00002", "00009")
    assert report.lines() == [f"{path}: 10 samples saved in {tmp_path}/b.tar, 2 lost", "  lost: 00002, 00009"]


def test_flipped_pixels_behind_a_lost_block_are_still_found_by_checksum(tmp_path):
    """The footer's offsets are of no use any more, but the index itself is intact and knows every sample."""
    path = write_ours(tmp_path / "a.tar", IMAGES, "ppm", label=lambda number: number)
    intact, content = rows_of(path), path.read_bytes()
    content = flipped(content, members(content)[16][1] + 1000)
    path.write_bytes(DAMAGES["lost block"](content))
    report = repair(path, tmp_path / "b.tar")
    assert report.lost == ("00005", "00008")
    assert rows_of_new(tmp_path / "b.tar") == [row for row in intact if row[0] not in report.lost]


def test_images_that_cannot_be_decoded_are_not_saved(tmp_path):
    path = tmp_path / "a.tar"
    with ShardWriter(path) as shard:
        shard.add("good", "jpg", encoded(1, "jpg"))
        shard.add("bad", "jpg", b"no image")
    assert repair(path, tmp_path / "b.tar").lost == ("bad",)
    assert [row[0] for row in rows_of_new(tmp_path / "b.tar")] == ["good"]


def test_sparse_members_are_refused_by_name(tmp_path):
    (tmp_path / "a.jpg").write_bytes(bytes(2**20) + encoded(1, "jpg"))
    (tmp_path / "b.jpg").write_bytes(encoded(2, "jpg"))
    os.truncate(tmp_path / "a.jpg", 2**22)
    command = ["tar", "cf", tmp_path / "a.tar", "--sparse", "-C", tmp_path, "a.jpg", "b.jpg"]
    subprocess.run(command, check=True)
    (problem,) = check_shard(ShardJob(name=str(tmp_path / "a.tar")), lambda _: None).problems
    assert problem.what.startswith("'a.jpg' at byte 0 is sparse; write this tar again without --sparse")


def test_remote_shards_are_saved_too(tmp_path):
    path = ours_jpg(tmp_path / "a.tar")
    intact = rows_of(path)
    for damage, lost in ("lost block", 1), ("flipped start of an image", 1):
        with HttpServer({"a.tar": DAMAGES[damage](path.read_bytes())}) as server:
            remote = Remote(timeout=LIMIT, retries=0)
            url = server.url("a.tar?key=secret")
            report = repair(url, tmp_path / "b.tar", remote=remote, stat=remote.stat(url))
        assert report.kept == IMAGES - lost
        assert report.name == server.url("a.tar")
        assert [row for row in intact if row in rows_of_new(tmp_path / "b.tar")] == rows_of_new(tmp_path / "b.tar")


def test_a_disk_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    path = ours_jpg(tmp_path / "a.tar")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        repair(path, tmp_path / "file" / "b.tar")


def test_what_appears_meanwhile_is_not_replaced(tmp_path):
    path, new = write_ours(tmp_path / "a.tar", 3), tmp_path / "new.tar"

    def tick(_):
        new.write_bytes(b"mine")

    with pytest.raises(UserError, match=rf"^{new}: cannot be written \(File exists\)$"):
        repair_shard((ShardJob(name=str(path)), new), tick)
    assert new.read_bytes() == b"mine"
