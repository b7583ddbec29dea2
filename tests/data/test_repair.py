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
from support.shards import by_index, encoded, write_ours, write_tar
from support.waiting import LIMIT

from dcgan_dist.data.checking.access import Job
from dcgan_dist.data.checking.repair import RepairJob, repair_shard
from dcgan_dist.data.checking.verify import check_shard
from dcgan_dist.data.foreign import walk
from dcgan_dist.data.index import END_MARK, ShardWriter, read_index
from dcgan_dist.data.remote.client import Remote
from dcgan_dist.errors import UserError


def repair(path, new, **settings):
    if Path(new).is_file():
        Path(new).unlink()
    return repair_shard(RepairJob(job=Job(name=str(path), **settings), path=Path(new)), lambda _: None)


def rows_of(path):
    """Key, suffix, bytes and label of every sample of a whole shard."""
    return by_index(read_index(path) or walk(path))


def rows_of_new(path):
    """The same of a shard that was saved, which is whole and one of ours."""
    report = check_shard(Job(name=str(path), deep=True), lambda _: None)
    assert report.problems == ()
    assert report.checked
    return rows_of(path)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_exactly_the_undamaged_samples_are_saved(tmp_path, make, damage):
    path, new = make(tmp_path / "a.tar"), tmp_path / "new" / "a.tar"
    whole, content = rows_of(path), path.read_bytes()
    damaged = DAMAGES[damage](content)
    undamaged = [row for row, sample in zip(whole, damages.images(content), strict=True) if sample in damaged]
    if make is not foreign and len(damaged) == len(content):  # the index knows all but the images
        places = [slice(*place[1:]) for place in members(content)[::2]]
        undamaged = [row for row, place in zip(whole, places, strict=False) if content[place] == damaged[place]]
    path.write_bytes(damaged)
    report = repair(path, new)
    assert report.kept == len(undamaged)
    assert path.read_bytes() == damaged
    if undamaged:
        assert rows_of_new(new) == undamaged
        assert report.path == str(new)
    else:
        assert not new.exists()
    kept = {row[0] for row in undamaged}
    assert not kept & set(report.lost)
    assert set(report.lost) <= {row[0] for row in whole}


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("damage", NOTHING_LEFT)
def test_nothing_comes_of_nothing(tmp_path, make, damage):
    path = make(tmp_path / "a.tar")
    path.write_bytes(NOTHING_LEFT[damage](path.read_bytes()) if damage != "gzip" else b"\x1f\x8b" + os.urandom(9000))
    report = repair(path, tmp_path / "new" / "a.tar")
    assert (report.kept, report.path, report.lost) == (0, None, ())
    assert report.lines() == [f"{path}: there is nothing to save"]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("suffix", ["jpg", "ppm", "png"])
@pytest.mark.parametrize("damage", OF_THE_INDEX)
def test_a_lost_index_loses_no_sample(tmp_path, suffix, damage):
    path = write_ours(tmp_path / "a.tar", IMAGES, suffix, label=lambda number: number)
    whole = rows_of(path)
    path.write_bytes(OF_THE_INDEX[damage](path.read_bytes()))
    report = repair(path, tmp_path / "new.tar")
    assert (report.kept, report.lost) == (IMAGES, ())
    assert report.unnamed == 0 or damage not in ("cut in the end mark", "half an end mark")
    assert rows_of_new(tmp_path / "new.tar") == whole


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_costs_the_image_that_it_is_in_and_no_other(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    path = write_ours(folder / "flipped.tar", 4, data.draw(st.sampled_from(["jpg", "ppm"])), size=16, label=int)
    whole, content = rows_of(path), bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    index = read_index(path)
    assert index is not None
    path.write_bytes(content)
    report = repair(path, folder / "saved.tar")
    hit = (index.offset <= place) & (place < index.offset + index.length)
    assert report.lost == tuple(key for key, lost in zip(index.keys, hit, strict=True) if lost)
    assert rows_of_new(folder / "saved.tar") == [row for row, lost in zip(whole, hit, strict=True) if not lost]


EDITS = st.tuples(st.integers(0, 2**31), st.integers(0, 3_000), st.binary(max_size=1_500))


@pytest.mark.parametrize("make", MAKERS)
@settings(max_examples=60, deadline=None)
@given(edits=st.lists(EDITS, min_size=1, max_size=4))
def test_whatever_happens_what_is_saved_is_whole(tmp_path_factory, make, edits):
    """Any stretches of the file are replaced by any others, shorter or longer."""
    folder = tmp_path_factory.getbasetemp()
    path, new = make(folder / "edited.tar"), folder / "whole.tar"
    whole, content = rows_of(path), path.read_bytes()
    keys, index = {row[0] for row in whole}, content[members(content)[-1][0] : -len(END_MARK)]
    for place, removed, added in edits:
        start = place % (len(content) + 1)
        content = content[:start] + added + content[start + removed :]
    path.write_bytes(content)
    new.unlink(missing_ok=True)
    report = repair(path, new)
    saved = rows_of_new(new) if new.exists() else []
    assert report.kept == len(saved)
    if make is not foreign:
        assert {row[0] for row in saved} | set(report.lost) <= keys
        assert report.kept + len(report.lost) <= IMAGES
        if index in content:
            assert [row for row in saved if row not in whole] == []


@pytest.mark.parametrize("edit", ["lost byte", "added byte"])
@pytest.mark.parametrize("make", MAKERS)
def test_one_byte_costs_the_sample_that_it_is_in_and_no_other(tmp_path, make, edit):
    """Every header behind it is shifted, and some have a right checksum even so: '00003.cls' reads as '0003.cls'."""
    path, new = make(tmp_path / "a.tar"), tmp_path / "b.tar"
    whole, content = rows_of(path), path.read_bytes()
    for number, member in enumerate(members(content)[: 2 * IMAGES]):
        for place in member[1], member[2] - 1:
            behind = content[place + 1 :] if edit == "lost byte" else b"x" + content[place:]
            path.write_bytes(content[:place] + behind)
            report = repair(path, new)
            key = whole[number // 2][0]
            assert [row for row in whole if row[0] != key] == [row for row in rows_of_new(new) if row[0] != key]
            assert set(report.lost) <= {key}
            assert report.kept + len(report.lost) == IMAGES


def test_unlabelled_images_stay_unlabelled(tmp_path):
    path = write_ours(tmp_path / "a.tar", IMAGES, "png")
    whole = rows_of(path)
    path.write_bytes(path.read_bytes()[:-1500])
    assert repair(path, tmp_path / "new.tar").kept == IMAGES
    assert rows_of_new(tmp_path / "new.tar") == whole


def test_a_whole_shard_is_written_again_to_the_byte(tmp_path):
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


def test_flipped_pixels_behind_a_lost_block_are_still_told_by_checksum(tmp_path):
    """The footer's offsets are of no use any more, but the index itself is whole and knows every sample."""
    path = write_ours(tmp_path / "a.tar", IMAGES, "ppm", label=lambda number: number)
    whole, content = rows_of(path), path.read_bytes()
    content = flipped(content, members(content)[16][1] + 1000)
    path.write_bytes(DAMAGES["lost block"](content))
    report = repair(path, tmp_path / "b.tar")
    assert report.lost == ("00005", "00008")
    assert rows_of_new(tmp_path / "b.tar") == [row for row in whole if row[0] not in report.lost]


def test_a_lost_label_behind_a_lost_block_is_known_to_the_index(tmp_path):
    path = ours_jpg(tmp_path / "a.tar")
    whole, content = rows_of(path), path.read_bytes()
    content = flipped(content, members(content)[17][0] + 4)
    path.write_bytes(DAMAGES["lost block"](content))
    assert repair(path, tmp_path / "b.tar").lost == ("00005",)
    assert rows_of_new(tmp_path / "b.tar") == [row for row in whole if row[0] != "00005"]


def test_images_that_cannot_be_decoded_are_not_saved(tmp_path):
    path = tmp_path / "a.tar"
    with ShardWriter(path) as shard:
        shard.add("good", "jpg", encoded(1, "jpg"))
        shard.add("bad", "jpg", b"no image")
    assert repair(path, tmp_path / "b.tar").lost == ("bad",)
    assert [row[0] for row in rows_of_new(tmp_path / "b.tar")] == ["good"]


def test_an_image_without_its_label_is_lost_only_where_others_have_one(tmp_path):
    unlabelled = [(f"{number}.png", encoded(number, "png")) for number in range(4)]
    path = write_tar(tmp_path / "a.tar", unlabelled)
    path.write_bytes(path.read_bytes()[: members_of(path)[3][0]])
    assert (repair(path, tmp_path / "b.tar").kept, repair(path, tmp_path / "b.tar").lost) == (3, ())
    path = write_tar(tmp_path / "a.tar", [unlabelled[0], ("0.cls", b"3"), *unlabelled[1:]])
    path.write_bytes(path.read_bytes()[: members_of(path)[4][0]])
    assert repair(path, tmp_path / "b.tar").lost == ("2",)
    assert [(row[0], row[3]) for row in rows_of_new(tmp_path / "b.tar")] == [("0", 3), ("1", -1)]


def members_of(path):
    return members(path.read_bytes())


def test_sparse_members_are_refused_by_name(tmp_path):
    (tmp_path / "a.jpg").write_bytes(bytes(2**20) + encoded(1, "jpg"))
    (tmp_path / "b.jpg").write_bytes(encoded(2, "jpg"))
    os.truncate(tmp_path / "a.jpg", 2**22)
    command = ["tar", "cf", tmp_path / "a.tar", "--sparse", "-C", tmp_path, "a.jpg", "b.jpg"]
    subprocess.run(command, check=True)
    (problem,) = check_shard(Job(name=str(tmp_path / "a.tar")), lambda _: None).problems
    assert (problem.key, problem.what) == ("a.jpg", "is sparse; write this tar again without --sparse")
    report = repair(tmp_path / "a.tar", tmp_path / "b.tar")
    assert (report.kept, report.lost) == (1, ("a",))


def test_repeated_keys_of_other_programs(tmp_path):
    """The same image again is one image; another image of the same name gets a name of its own."""
    rows = [("a.jpg", encoded(1, "jpg")), ("b.jpg", encoded(2, "jpg")), ("a.jpg", encoded(3, "jpg"))]
    path = write_tar(tmp_path / "a.tar", [*rows, ("b.jpg", encoded(2, "jpg"))])
    report = repair(path, tmp_path / "b.tar")
    assert (report.kept, report.lost) == (3, ())
    found = [(row[0], row[2]) for row in rows_of_new(tmp_path / "b.tar")]
    assert found == [("a", encoded(1, "jpg")), ("b", encoded(2, "jpg")), ("a-2", encoded(3, "jpg"))]


def test_other_members_are_left_out_and_named(tmp_path):
    rows = [(f"{n}.{suffix}", data) for n in range(3) for suffix, data in [("jpg", encoded(n, "jpg")), ("json", b"{}")]]
    path = write_tar(tmp_path / "a.tar", rows)
    path.write_bytes(flipped(path.read_bytes(), 3))
    report = repair(path, tmp_path / "b.tar")
    assert (report.kept, report.lost, report.left_out) == (2, ("0",), {"json": 2})
    assert "  left out, for these shards hold images and labels alone: 2 .json" in report.lines()
    assert "damaged bytes may have held others" in "\n".join(report.lines())


def test_remote_shards_are_saved_too(tmp_path):
    path = ours_jpg(tmp_path / "a.tar")
    whole = rows_of(path)
    for damage, lost in ("cut in a header", 7), ("flipped start of an image", 1):
        with HttpServer({"a.tar": DAMAGES[damage](path.read_bytes())}) as server:
            remote = Remote(timeout=LIMIT, retries=0)
            url = server.url("a.tar?key=secret")
            report = repair(url, tmp_path / "b.tar", remote=remote, stat=remote.stat(url))
        assert report.kept == IMAGES - lost
        assert report.name == server.url("a.tar")
        assert [row for row in whole if row in rows_of_new(tmp_path / "b.tar")] == rows_of_new(tmp_path / "b.tar")


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
        repair_shard(RepairJob(job=Job(name=str(path)), path=new), tick)
    assert new.read_bytes() == b"mine"


def test_a_shard_whose_images_are_unclear_stops_no_other(tmp_path):
    content = [(f"{key}.{side}.jpg", encoded(1)) for key in "ab" for side in "lr"]
    path = write_tar(tmp_path / "a.tar", content)
    path.write_bytes(path.read_bytes()[:-1024])
    report = repair(path, tmp_path / "new" / "a.tar")
    assert (report.kept, report.path) == (0, None)
    (line,) = report.lines()
    assert line.startswith(f"{path}: not repaired: several images in each sample, as in b.l.jpg and b.r.jpg")
    assert not list(tmp_path.glob("new/*"))
