"""Packing removes and replaces only what an earlier packing wrote, at any moment."""

import json
import os
from pathlib import Path

import pytest
from support.folders import contents, make_pictures

from dcgan_dist.commands import shard
from dcgan_dist.data.sources import FolderSource, find_source
from dcgan_dist.data.system.storage import move_to_free
from dcgan_dist.data.writing import publish
from dcgan_dist.data.writing.packing import Packing, Part
from dcgan_dist.data.writing.writer import Callbacks, merge_shards, write_shards
from dcgan_dist.errors import UsageError, UserError

MINE = b"not to be lost"


@pytest.fixture
def pictures(tmp_path):
    return make_pictures(tmp_path / "in")


def pack(folder, out, packed=lambda done, total: None, part=None, **options):
    packing = Packing(**{"size": 12, "shard_size": 6, "processes": 1, **options})
    return write_shards(find_source(str(folder)), out, packing, Callbacks(packed=packed), part)


def put(out, *names):
    for name in names:
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(MINE)


def put_while_packing(out, *names):
    return lambda done, total: put(out, *names) if done == total else None


def assert_new_set(out, folder, tmp_path, **options):
    pack(folder, tmp_path / "undisturbed", **options)
    wanted = contents(tmp_path / "undisturbed")
    assert {name: data for name, data in contents(out).items() if data != MINE} == wanted


OTHERS = [
    "backup.tar",
    "notes.txt",
    "shard-1.tar",
    ".partial/notes.txt",
    ".partial/mine/x.tar",
]


@pytest.mark.parametrize("form", ["folder", "a link", "shards", "a part"])
def test_shards_are_not_packed_into_their_own_places(pictures, tmp_path, form):
    """Smaller images would take the places of the only ones."""
    out, part = tmp_path / "out", Part(1, 2) if form == "a part" else None
    pack(pictures, out)
    (tmp_path / "link").symlink_to(out)
    source = {"a link": tmp_path / "link", "shards": f"{out}/shard-0000{{0,1}}.tar"}.get(form, out)
    before = contents(out)
    with pytest.raises(UsageError, match=r"out: holds shard-00000\.tar, whose images would be replaced; choose"):
        pack(source, out, part=part, size=8, overwrite=True)
    assert contents(out) == before
    pack(source, tmp_path / "smaller", size=8)


@pytest.mark.parametrize("merged", [False, True])
def test_overwrite_leaves_all_but_the_earlier_set(pictures, tmp_path, merged):
    out = tmp_path / "out"
    pack(pictures, out, shard_size=4)
    put(out, *OTHERS)
    if merged:
        pack(pictures, out, part=Part(1, 1), overwrite=True, seed=1)
        summary = merge_shards(out, overwrite=True)
    else:
        summary = pack(pictures, out, overwrite=True, seed=1)
    assert summary.others == 2
    assert {name: (out / name).read_bytes() for name in OTHERS} == dict.fromkeys(OTHERS, MINE)
    assert_new_set(out, pictures, tmp_path, seed=1)


def test_the_lists_of_an_earlier_set_are_its_own(pictures, tmp_path):
    out = tmp_path / "out"
    (pictures / "cat" / "copy.png").write_bytes(next((pictures / "cat").glob("*.*")).read_bytes())
    (pictures / "cat" / "bad.png").write_bytes(b"")
    pack(pictures, out, skip_bad=True)
    assert {"bad.txt", "duplicates.txt"} <= contents(out).keys()
    for name in "copy.png", "bad.png":
        (pictures / "cat" / name).unlink()
    pack(pictures, out, overwrite=True)
    assert_new_set(out, pictures, tmp_path)


@pytest.mark.parametrize("name", ["shard-00007.tar", "shard-1000000.tar", "manifest.json", "sizes.json", "bad.txt"])
@pytest.mark.parametrize("earlier", [False, True], ids=["no earlier set", "an earlier set"])
def test_a_name_that_is_taken_is_refused(pictures, tmp_path, name, earlier):
    out = tmp_path / "out"
    if earlier:
        pack(pictures, out)
    put(out, name)
    before = contents(out)
    if (name, earlier) != ("sizes.json", True):
        why = "does not say what may be replaced .*out/manifest.json: is not a manifest of shards .*; move it and the"
        why = why if name == "manifest.json" else "no manifest.json of earlier shards names, so"
        with pytest.raises(UsageError, match=rf"out: holds {name}, which {why}"):
            pack(pictures, out, overwrite=True)
    with pytest.raises(UsageError, match=r"out: holds .* already; choose another folder or add --overwrite"):
        pack(pictures, out)
    assert contents(out) == before


def test_the_manifest_of_another_version_is_refused_with_that(pictures, tmp_path):
    out = tmp_path / "out"
    pack(pictures, out)
    (out / "manifest.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(UsageError, match=r"out: holds manifest\.json, which .*has version 99, this program reads"):
        pack(pictures, out, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_while_packing_stays(pictures, tmp_path, overwrite):
    out = tmp_path / "out"
    if overwrite:
        pack(pictures, out, shard_size=4)
    summary = pack(pictures, out, put_while_packing(out, "mine.tar", "shard-00009.tar"), seed=1, overwrite=overwrite)
    assert summary.others == 2
    assert (out / "mine.tar").read_bytes() == (out / "shard-00009.tar").read_bytes() == MINE
    assert_new_set(out, pictures, tmp_path, seed=1)


@pytest.mark.parametrize("name", ["shard-00001.tar", "sizes.json", "manifest.json"])
@pytest.mark.parametrize("late", [False, True], ids=["while packing", "while publishing"])
def test_what_appears_in_a_place_of_the_set_is_not_replaced(pictures, tmp_path, monkeypatch, name, late):
    out = tmp_path / "out"

    def move(source, path):
        if path.name == name:
            put(out, name)
        move_to_free(source, path)

    with monkeypatch.context() as patch:
        if late:
            patch.setattr(publish, "move_to_free", move)
        with pytest.raises(UserError, match=rf"out/{name}: is there by now, and was not .*; move it away, and run the"):
            pack(pictures, out, lambda *_: None if late else put_while_packing(out, name)(18, 18))
    assert (out / name).read_bytes() == MINE
    (out / name).unlink()
    assert pack(pictures, out).written == 0
    assert_new_set(out, pictures, tmp_path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_disk_without_hard_links(pictures, tmp_path, monkeypatch, overwrite):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    out = tmp_path / "out"
    if overwrite:
        pack(pictures, out, shard_size=4)
    monkeypatch.setattr(os, "link", refuse)
    replace = Path.replace

    for name in ("shard-00001.tar", "sizes.json", "manifest.json"):

        def killed(source, target, name=name):
            if target == out / name:
                raise StopError
            return replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            with pytest.raises(StopError):
                pack(pictures, out, seed=1, overwrite=overwrite)
        assert (out / name).read_bytes() == b""
    pack(pictures, out, seed=1, overwrite=overwrite)
    assert_new_set(out, pictures, tmp_path, seed=1)
    put(tmp_path, "a", "b")
    with pytest.raises(FileExistsError):
        move_to_free(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError):
        move_to_free(tmp_path / "a", tmp_path / "c")
    assert not (tmp_path / "c").exists()


class StopError(Exception):
    """As if the command was killed."""


@pytest.mark.parametrize("removed", range(6), ids=lambda count: f"{count} removed")
def test_an_interrupted_removal_continues_and_removes_nothing_else(pictures, tmp_path, monkeypatch, removed):
    """Files of an earlier set are removed once: what is put in their places afterwards stays."""
    out = tmp_path / "out"
    pack(pictures, out, shard_size=4)
    left = removed
    unlink = Path.unlink

    def stop(path, missing_ok=False):
        nonlocal left
        if path.parent == out:
            if not left:
                raise StopError
            left -= 1
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stop)
        with pytest.raises(StopError):
            pack(pictures, out, seed=1, overwrite=True)
    assert (out / "manifest.json").exists() == (removed == 0)
    with monkeypatch.context() as patch:

        def killed(*_):
            raise StopError

        patch.setattr(publish, "move_to_free", killed)
        with pytest.raises(StopError):
            pack(pictures, out, seed=1, overwrite=True)
    put(out, "shard-00004.tar")
    with pytest.raises(UsageError, match=r"out: holds shard-00004\.tar, which no manifest\.json"):
        pack(pictures, out, seed=1, overwrite=True)
    assert (out / "shard-00004.tar").read_bytes() == MINE
    (out / "shard-00004.tar").rename(out / "mine.tar")
    assert pack(pictures, out, seed=1, overwrite=True).written == 0
    assert_new_set(out, pictures, tmp_path, seed=1)


def test_other_files_beside_unfinished_shards_stay(pictures, tmp_path):
    out = tmp_path / "out"
    names = [".partial/notes.txt", ".partial/mine/0000000.tar", ".partial/copies/mine.tar"]
    put(out, *names)
    pack(pictures, out)
    assert all((out / name).read_bytes() == MINE for name in names)
    assert sorted(path.name for path in (out / ".partial").iterdir()) == ["copies", "lock", "mine", "notes.txt"]


def test_another_command_does_not_remove_the_copies_of_a_source(pictures, tmp_path):
    """The lock is held while they are made."""
    out = tmp_path / "out"

    class Slow(FolderSource):
        def prepared(self, folder, report):
            with pytest.raises(UserError, match="another command is writing shards there"):
                pack(pictures, out)
            return self

    write_shards(Slow(pictures), out, Packing(size=12, shard_size=6, processes=1))


@pytest.mark.parametrize("command", [["in", "", "--size", "32", "--overwrite"], ["--merge", "", "--overwrite"]])
def test_an_empty_out_is_not_this_folder(pictures, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "mine.tar")
    with pytest.raises(UsageError, match=r"^OUT '': is empty"):
        shard.main(command)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "mine.tar"]
