"""Tars of others that are cut, sparse, linked or packed: read, or refused for what they are, and --skip_bad goes on."""

import bz2
import gzip
import lzma
import subprocess

import pytest
from support.shards import by_index, encoded, write_tar

from dcgan_dist.config import Config
from dcgan_dist.config.groups import DataConfig
from dcgan_dist.data.loading import open_data
from dcgan_dist.data.reading.stream import tar_images
from dcgan_dist.data.shards.foreign import walk
from dcgan_dist.data.shards.samples import MemberChoice
from dcgan_dist.data.sources import find_source
from dcgan_dist.data.writing.packing import Packing
from dcgan_dist.data.writing.writer import Callbacks, write_shards
from dcgan_dist.errors import UserError

IMAGES = [encoded(number, "png") for number in range(4)]
BLOCK = 512
HINT = r"cut, or written without an end; --data\.allow_cut \(--allow_cut of shard and inspect\)"


def whole(folder):
    return write_tar(folder / "x.tar", [(f"{number}.png", data) for number, data in enumerate(IMAGES)])


def end_of(path):
    """The byte behind the last member."""
    return sum(BLOCK + -(-len(data) // BLOCK) * BLOCK for data in IMAGES)


def shard(path, out, choice):
    lines: list[str] = []
    packing = Packing(size=16, processes=1, skip_bad=choice.skip_bad, shuffle=False)
    summary = write_shards(find_source(str(path), choice=choice), out, packing, Callbacks(say=lines.append))
    return summary.samples, lines


@pytest.fixture
def cut_by(tmp_path):
    def cut(count):
        path = whole(tmp_path)
        path.write_bytes(path.read_bytes()[: end_of(path) - count])
        return path

    return cut


@pytest.mark.parametrize("count", [0, 1, 511, 600])
def test_a_tar_without_an_end_is_taken_where_that_is_allowed(tmp_path, cut_by, count):
    path, allowed = cut_by(count), MemberChoice(allow_cut=True)
    for read in walk, lambda path: list(tar_images(str(path))):
        with pytest.raises(UserError, match=HINT):
            read(path)
    left = len(IMAGES) - (count > -len(IMAGES[-1]) % BLOCK)
    assert [data for _, _, data, _ in by_index(walk(path, allowed))] == IMAGES[:left]
    assert [data for _, data, *_ in tar_images(str(path), allowed)] == IMAGES[:left]
    images, lines = shard(path, tmp_path / "out", allowed)
    assert images == left
    passed = ["skipped: 1 other member (1 cut off at the end)"] * (left < len(IMAGES))
    assert lines == ["tars without an end mark, perhaps cut: 1; what is there is used (allow_cut)", *passed]


def test_training_takes_it_too(cut_by):
    lines: list[str] = []
    path = cut_by(600)
    corpus = open_data(Config(data=DataConfig(shards=(str(path),), allow_cut=True)), lines.append)
    assert not isinstance(corpus, list)
    assert corpus.size == 3
    assert "data: skipped: 1 other member (1 cut off at the end)" in lines


def test_damage_in_the_middle_is_no_cut(cut_by):
    path = cut_by(0)
    content = bytearray(path.read_bytes())
    content[BLOCK + -(-len(IMAGES[0]) // BLOCK) * BLOCK] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match="no tar header and no end mark at byte"):
        walk(path, MemberChoice(allow_cut=True))


def with_sparse_image(folder):
    (folder / "a.png").write_bytes(IMAGES[0])
    with (folder / "b.png").open("wb") as file:
        file.truncate(10**6)
        file.write(b"data")
    subprocess.run(["tar", "cfS", folder / "x.tar", "-C", folder, "a.png", "b.png"], check=True)
    return "sparse"


def with_a_name_twice(folder):
    write_tar(folder / "x.tar", [("a.png", IMAGES[0]), ("a.PNG", IMAGES[1])])
    return "a second member of this name"


def with_webdatasets_name(folder):
    write_tar(folder / "x.tar", [("a.png", IMAGES[0]), ("a.__key__", b"b")])
    return "webdataset has '__key__' for its own use"


@pytest.mark.parametrize("make", [with_sparse_image, with_a_name_twice, with_webdatasets_name])
def test_members_that_cannot_be_used_are_left_out_if_wanted(tmp_path, make):
    what, path = make(tmp_path), tmp_path / "x.tar"
    with pytest.raises(UserError, match=f"{what}.*, or leave such members out"):
        shard(path, tmp_path / "out", MemberChoice())
    images, lines = shard(path, tmp_path / "out", MemberChoice(skip_bad=True))
    assert images == 1
    assert lines[0] == f"skipped: 1 other member (1 {what})"


def test_links_are_counted(tmp_path):
    (tmp_path / "a.png").write_bytes(IMAGES[0])
    (tmp_path / "b.png").hardlink_to(tmp_path / "a.png")
    (tmp_path / "c.png").symlink_to("a.png")
    subprocess.run(["tar", "cf", tmp_path / "x.tar", "-C", tmp_path, "a.png", "b.png", "c.png"], check=True)
    images, lines = shard(tmp_path / "x.tar", tmp_path / "out", MemberChoice())
    assert images == 1
    assert lines == ["skipped: 2 other members (2 links (write the tar with --dereference --hard-dereference))"]


def test_a_line_break_in_a_name_is_read(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a\nb.png", IMAGES[0]), ("c.png", IMAGES[1])])
    assert [key for key, *_ in by_index(walk(path))] == ["a\\nb", "c"]
    assert shard(path, tmp_path / "out", MemberChoice())[0] == 2


def test_an_empty_tar_among_others(tmp_path):
    whole(tmp_path)
    write_tar(tmp_path / "y.tar", [])
    images, lines = shard(f"{tmp_path}/*.tar", tmp_path / "out", MemberChoice())
    assert (images, lines) == (4, [f"1 of 2 tars hold no image: {tmp_path}/y.tar"])


@pytest.mark.parametrize("name", ["x.tar.bz2", "x.tbz2", "x.tar.xz", "x.txz", "x.tgz"])
def test_packed_tars(tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pack = {"b": bz2.compress, "x": lzma.compress, "g": gzip.compress}[name.rpartition(".")[2].removeprefix("t")[0]]
    (tmp_path / name).write_bytes(pack(whole(tmp_path).read_bytes()))
    assert shard(tmp_path / name, tmp_path / "out", MemberChoice())[0] == 4
    corpus = open_data(Config(data=DataConfig(shards=(str(tmp_path / name),))), lambda _: None)
    assert not isinstance(corpus, list)
    assert corpus.size == 4
