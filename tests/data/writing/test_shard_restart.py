"""A writer that was killed resumes: nothing is lost, shown too early, or done twice."""

import errno
import fcntl
import json
import signal
import subprocess
import sys
from contextlib import ExitStack

import psutil
import pytest
from support.disk import no_file_larger_than
from support.folders import contents, make_pictures
from support.launching import ROOT, environment
from support.locks import before_next_flock
from support.processes import children
from support.shards import by_webdataset
from support.waiting import LIMIT, until

from dcgan_dist.data.shards.manifest import load_manifest
from dcgan_dist.data.sources import find_source
from dcgan_dist.data.system.storage import move_to_free
from dcgan_dist.data.writing.packing import Packing
from dcgan_dist.data.writing.staging import locked_out
from dcgan_dist.data.writing.writer import Callbacks, merge_shards, write_shards
from dcgan_dist.errors import UsageError, UserError

KILLER = ROOT / "tests/support/shard_killer.py"


@pytest.fixture
def pictures(tmp_path):
    return make_pictures(tmp_path / "in")


def pack(folder, out, say=lambda line: None, packed=lambda done, total: None, **options):
    packing = Packing(**{"size": 12, "shard_size": 6, "processes": 1, **options})
    return write_shards(find_source(str(folder)), out, packing, Callbacks(say=say, packed=packed))


def damage(path, place):
    """Flips a byte."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "over an old set"])
def test_killed_before_any_change_of_the_disk(pictures, tmp_path, overwrite):
    pack(pictures, tmp_path / "new")
    arguments = [pictures, tmp_path / "work"]
    (tmp_path / "work").mkdir()
    old = {}
    if overwrite:
        pack(pictures, tmp_path / "old", shard_size=4, seed=1, skip_bad=True)
        arguments.append(tmp_path / "old")
    done = subprocess.run(
        [sys.executable, KILLER, *arguments], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    attempts = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(attempts) > 30
    new = attempts[-1]["after"]
    old = attempts[0]["shown"]
    assert new.keys() == contents(tmp_path / "new").keys()
    assert (old.keys() == contents(tmp_path / "old").keys()) if overwrite else old == {}
    for attempt in attempts:
        assert attempt["after"] == new
        assert attempt["left"] == []
        assert attempt["kept"]
        if "manifest.json" in attempt["shown"]:
            assert attempt["shown"] in (old, new)
    # each of the three shards was complete before some of the kills, and was not packed again
    assert {attempt["finished"] for attempt in attempts} == {0, 1, 2, 3}
    assert {attempt["wrote"] for attempt in attempts} == {18, 12, 6, 0}


def test_several_processes_killed_while_they_pack(pictures, tmp_path):
    make_pictures(pictures, 300)
    options = ["--size", "32", "--shard_size", "10", "--processes", "2"]
    command = [sys.executable, "-m", "dcgan_dist", "shard", str(pictures), str(tmp_path / "out"), *options]
    with subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        until(lambda: any((tmp_path / "out").rglob("*.receipt")))
        workers = children("spawn_main", process.pid)
        process.kill()
    assert psutil.wait_procs(workers, timeout=LIMIT)[1] == []  # what they are writing is complete or not there
    assert process.returncode == -signal.SIGKILL
    assert not list((tmp_path / "out").glob("*"))[1:]  # .partial alone
    finished = {path.with_suffix(".tar").stat().st_ino for path in (tmp_path / "out").rglob("*.receipt")}
    assert finished
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"resuming: {len(finished)} of 30 shards are complete" in done.stderr
    assert finished <= {path.stat().st_ino for path in (tmp_path / "out").glob("*.tar")}
    pack(pictures, tmp_path / "undisturbed", size=32, shard_size=10)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


class StopError(Exception):
    """As if the power went off, but for what a killed process does not do either."""


def stop_after(images):
    def packed(done, total):
        if done > images:
            raise StopError

    return packed


def test_another_plan_starts_from_the_beginning_and_reports_it(pictures, tmp_path):
    out, lines = tmp_path / "out", []
    with pytest.raises(StopError):
        pack(pictures, out, packed=stop_after(12))
    pack(pictures, out, lines.append, seed=1)
    assert lines[1:] == [f"{out}: holds unfinished shards of other images, options or versions; they are removed"]
    pack(pictures, tmp_path / "undisturbed", seed=1)
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_another_list_of_images_is_another_plan(pictures, tmp_path):
    out, lines = tmp_path / "out", []
    with pytest.raises(StopError):
        pack(pictures, out, packed=stop_after(12))
    make_pictures(pictures, 19)
    assert pack(pictures, out, lines.append).written == 19
    assert len(lines[1:]) == 1


@pytest.mark.parametrize(
    "hurt",
    [
        lambda shard: shard.write_bytes(shard.read_bytes()[:-512]),
        lambda shard: damage(shard, -1700),
        lambda shard: shard.unlink(),
        lambda shard: shard.with_suffix(".receipt").unlink(),
        lambda shard: shard.with_suffix(".receipt").write_bytes(b"receipt"),
        lambda shard: damage(shard.with_suffix(".receipt"), 0),
    ],
    ids=["cut", "damaged index", "gone", "no receipt", "no such receipt", "damaged receipt"],
)
def test_a_shard_that_does_not_verify_is_written_again(pictures, tmp_path, hurt):
    out, lines = tmp_path / "out", []
    with pytest.raises(StopError):
        pack(pictures, out, packed=stop_after(12))
    hurt(next(out.rglob("0000000.tar")))
    assert pack(pictures, out, lines.append).written == 12
    assert lines[1:] == ["resuming: 1 of 3 shards are complete"]
    pack(pictures, tmp_path / "undisturbed")
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_the_number_of_done_images_begins_with_the_kept_ones(pictures, tmp_path):
    out, seen = tmp_path / "out", []
    with pytest.raises(StopError):
        pack(pictures, out, packed=stop_after(12))
    pack(pictures, out, packed=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 18) for done in range(12, 19)]


def test_a_bad_image_does_not_cost_what_is_done(pictures, tmp_path):
    """With shuffling off, the bad image is in the last shard."""
    out = tmp_path / "out"
    bad = sorted(pictures.rglob("*.*"))[-1]
    good = bad.read_bytes()
    bad.write_bytes(good[:20])
    with pytest.raises(UserError, match="--skip_bad leaves such images out"):
        pack(pictures, out, shuffle=False)
    assert pack(pictures, out, shuffle=False, skip_bad=True).written == 6
    assert (out / "bad.txt").read_text().startswith(f"{bad}: ")

    with pytest.raises(StopError):
        pack(pictures, tmp_path / "strict", shuffle=False, skip_bad=True, packed=stop_after(17))
    with pytest.raises(UserError, match="--skip_bad leaves such images out"):
        pack(pictures, tmp_path / "strict", shuffle=False)
    bad.write_bytes(good)
    assert pack(pictures, tmp_path / "strict", shuffle=False).written == 6
    assert not (tmp_path / "strict/bad.txt").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_keeps_the_old_set(pictures, tmp_path, processes):
    out = tmp_path / "out"
    pack(pictures, out)
    before = contents(out)
    with no_file_larger_than(5_000), pytest.raises(UserError) as refused:  # what processes share takes a page
        pack(pictures, out, overwrite=True, seed=1, processes=processes)
    assert str(refused.value) == f"{out}: cannot be written (File too large)"
    assert contents(out) == before


def test_two_commands_at_once_are_refused(pictures, tmp_path):
    out = tmp_path / "out"

    def second(done, total):
        if done == 3:
            with pytest.raises(UserError, match="out: another command is writing shards there; wait"):
                pack(pictures, out, seed=1)

    pack(pictures, out, packed=second)
    pack(pictures, tmp_path / "undisturbed")
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_a_command_that_ends_does_not_let_two_others_in(tmp_path, monkeypatch):
    """The first removes the lock file with all that it made, when the second has opened it and not yet locked it."""
    out = tmp_path / "out"
    with ExitStack() as first, ExitStack() as third:
        first.enter_context(locked_out(out, shared=False))

        def the_first_ends_and_a_third_begins():
            first.close()
            third.enter_context(locked_out(out, shared=False))

        before_next_flock(monkeypatch, the_first_ends_and_a_third_begins)
        with pytest.raises(UserError, match="another command is writing shards there"), locked_out(out, shared=False):
            pass
    assert not (out / ".partial").exists()


def test_a_part_that_ends_leaves_the_lock_to_the_others(tmp_path):
    out = tmp_path / "out"
    with ExitStack() as stack:
        stack.enter_context(locked_out(out, shared=True))
        with locked_out(out, shared=True):
            pass
        with pytest.raises(UserError, match="another command is writing shards there"), locked_out(out, shared=False):
            pass
    assert not (out / ".partial").exists()


def test_a_disk_without_locks(pictures, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    pack(pictures, tmp_path / "out")
    assert not (tmp_path / "out" / ".partial").exists()


def test_a_complete_set_is_not_written_again(pictures, tmp_path):
    pack(pictures, tmp_path / "out")
    with pytest.raises(UsageError, match=r"holds 3 \.tar files already"):
        pack(pictures, tmp_path / "out")


def interrupt(patch):
    """The disk goes away when all shards are in their places, before the manifest is."""

    def move(source, path):
        if path.name == "manifest.json":
            raise StopError
        move_to_free(source, path)

    patch.setattr("dcgan_dist.data.writing.publish.move_to_free", move)


def test_half_moved_shards_of_another_plan_are_not_taken_for_ours(pictures, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt(patch)
        with pytest.raises(StopError):
            pack(pictures, out)
    assert len(list(out.glob("*.tar"))) == 3
    with pytest.raises(UserError, match=r"complete it by dcgan-dist shard --merge .*out --overwrite"):
        pack(pictures, out, seed=1)
    pack(pictures, out)
    pack(pictures, tmp_path / "undisturbed")
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_shards_that_replace_their_own_source_are_not_lost(pictures, tmp_path, monkeypatch):
    out = tmp_path / "out"
    pack(pictures, out, store="png")
    images = {sample["__key__"]: sample["png"] for sample in by_webdataset(*sorted(out.glob("*.tar")))}
    with monkeypatch.context() as patch:
        interrupt(patch)
        with pytest.raises(StopError):
            pack(out, out, size=None, store="keep", shard_size=5, overwrite=True)
    with pytest.raises(UserError, match=r"complete it by dcgan-dist shard --merge .*out --overwrite"):
        pack(out, out, size=None, store="keep", shard_size=5, overwrite=True)
    assert merge_shards(out, overwrite=True).samples == 18
    again = {sample["__key__"]: sample["png"] for sample in by_webdataset(*sorted(out.glob("*.tar")))}
    assert len(list(out.glob("*.tar"))) == 4
    assert again == images


def test_another_option_of_a_data_set_is_another_plan(tmp_path):
    sources = ["torchvision:FakeData?size=9&image_size=(3,12,12)" + more for more in ("", "&random_offset=99")]
    with pytest.raises(StopError):
        pack(sources[0], tmp_path / "out", packed=stop_after(8))
    pack(sources[1], tmp_path / "out")
    pack(sources[1], tmp_path / "undisturbed")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_shards_of_shards_keep_the_classes(pictures, tmp_path):
    pack(pictures, tmp_path / "first")
    pack(tmp_path / "first", tmp_path / "second", shard_size=5, seed=1)
    first, second = (load_manifest(tmp_path / name / "manifest.json").classes for name in ("first", "second"))
    assert [(entry.name, entry.samples) for entry in first] == [("cat", 6), ("dog", 6), ("newt", 6)]
    assert second == first
