"""What a run's folder holds from earlier attempts is never taken for nothing, and never lost."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from support.shards import write_ours
from support.training import TINY

from dcgan_dist import train
from dcgan_dist.run import start as starting
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.lease import Lease
from dcgan_dist.run.session import Session

OPTIONS = [*TINY, "--images", "48", "--log.samples_every", "16", "--checkpoint.every", "16"]

pytestmark = pytest.mark.usefixtures("as_before")


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.fixture
def start(capsys, tmp_path, folder):
    """Runs the command in this process; returns the exit code, standard output and standard error."""
    shard = write_ours(tmp_path / "a.tar", 12)

    def start(*options: object) -> tuple[int, str, str]:
        argv = [*OPTIONS, "--run_dir", str(folder.root), "--data.shards", str(shard), *map(str, options)]
        code = train.main(argv)
        return code, *capsys.readouterr()

    return start


@pytest.fixture
def complete(start):
    """A run that is done."""
    assert start()[0] == 0


class Killed(BaseException):
    """Nothing in the program catches it."""


def killed_before_its_first_checkpoint(start, *options: object) -> None:
    def end(_session, anyway=False):
        raise Killed(f"killed {anyway}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "save", end)
        with pytest.raises(Killed):
            start("--checkpoint.every", 24, *options)


def stopped_while_data_are_opened(start, meanwhile=lambda: None) -> tuple[int, str, str]:
    def open_data(_config, _say, heed):
        meanwhile()
        os.kill(os.getpid(), signal.SIGTERM)
        heed()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starting, "open_data", open_data)
        return start()


def contents(root: Path) -> dict[str, bytes]:
    own = ("owner.json", ".owner.lock")
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name not in own}


def reports(path: Path) -> list[int]:
    return [json.loads(line)["images"] for line in path.read_text().splitlines()]


def remove(folder):
    shutil.rmtree(folder.checkpoints)


def empty(folder):
    remove(folder)
    folder.checkpoints.mkdir()


def only_leftovers(folder):
    empty(folder)
    (folder.checkpoints / "latest").write_text("000000048")
    (folder.checkpoints / ".tmp-1-000000048").mkdir()


def no_reports(folder):
    remove(folder)
    folder.metrics.unlink()


@pytest.mark.usefixtures("complete")
@pytest.mark.parametrize("lose", [remove, empty, only_leftovers, no_reports])
@pytest.mark.parametrize("options", [[], ["--dry_run"]])
def test_a_run_that_lost_its_checkpoints_is_not_begun_again(start, folder, lose, options):
    lose(folder)
    before = contents(folder.root)
    code, _, err = start(*options)
    assert code == 1
    assert err.startswith(f"error: --run_dir {folder.root}: training has saved checkpoints here (")
    assert f"{folder.checkpoints} holds none" in err
    assert err.count("\n") == 1
    assert contents(folder.root) == before


@pytest.mark.usefixtures("complete")
def test_a_warm_start_that_lost_its_own_checkpoints_does_not_start_there_again(start, folder, tmp_path):
    warm = ["--run_dir", tmp_path / "warm", "--resume", folder.checkpoints / "000000048", "--images", 80]
    assert start(*warm)[0] == 0
    shutil.rmtree(tmp_path / "warm" / "checkpoints")
    code, _, err = start(*warm)
    assert (code, "training has saved checkpoints here" in err) == (1, True)


@pytest.mark.usefixtures("complete")
def test_checkpoints_that_cannot_be_listed_are_none_that_are_missing(start, folder, monkeypatch):
    """As of another user; also where nothing else says that there were any."""
    folder.first_checkpoint.unlink()
    folder.done.unlink()
    iterdir = Path.iterdir

    def refuse(path):
        if path == folder.checkpoints:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    code, _, err = start()
    assert (code, err) == (1, f"error: {folder.checkpoints}: cannot be read (Permission denied)\n")


@pytest.mark.usefixtures("complete")
def test_never_begins_and_keeps_what_was_there(start, folder):
    remove(folder)
    before = contents(folder.root)
    code, out, _ = start("--resume", "never")
    kept = folder.earlier / "1"
    assert code == 0
    line = f"no checkpoint of {folder.root} is used; the reports and samples of earlier attempts are kept in {kept}\n"
    assert line in out
    assert contents(kept) == {name: data for name, data in before.items() if name not in ("DONE", "log.txt")}
    assert reports(folder.metrics) == [8, 16, 24, 32, 40, 48]
    assert folder.first_checkpoint.read_text() == "16\n"


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again_and_loses_nothing(start, folder):
    """By the same command, for SLURM puts a job back into the queue without asking anybody."""
    killed_before_its_first_checkpoint(start)
    first = contents(folder.root)
    assert reports(folder.metrics) == [8, 16, 24]
    first.pop("log.txt")  # which continues over all attempts
    shown = {"attempts.jsonl", "real.png"}
    assert set(first) == {"metrics.jsonl", "samples/000000016.png", "config.yaml", "environment.json"} | shown
    killed_before_its_first_checkpoint(start)
    assert contents(folder.earlier / "1") == first
    assert "no checkpoint of" in start()[1]
    assert [path.name for path in sorted(folder.earlier.iterdir())] == ["1", "2"]
    assert reports(folder.earlier / "2" / "metrics.jsonl") == [8, 16, 24]
    assert reports(folder.metrics) == [8, 16, 24, 32, 40, 48]
    assert "kept in" not in start("--images", 56)[1]


def test_a_run_that_failed_before_it_reported_leaves_nothing_to_keep(start, folder):
    killed_before_its_first_checkpoint(start, "--log.every", 999, "--log.samples_every", 999)
    assert "kept in" not in start()[1]
    assert not folder.earlier.exists()


@pytest.mark.parametrize("moves", range(4))
def test_what_is_put_aside_is_never_left_in_part(tmp_path, monkeypatch, moves):
    """Killed after some moves, and begun again: nothing of the earlier attempt is taken for the new one's."""
    folder, rename, done = RunFolder(tmp_path), Path.rename, []
    folder.samples.mkdir()
    folder.tensorboard.mkdir()
    for path in (folder.metrics, folder.samples / "8.png", folder.tensorboard / "events", tmp_path / "wandb_id"):
        path.write_text("{}\n")

    def some(path, target):
        if len(done) == moves:
            raise Killed
        done.append(path)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", some)
        with pytest.raises(Killed):
            folder.put_aside(print)
    folder.put_aside(print)
    assert [path.name for path in tmp_path.iterdir()] == ["earlier"]
    assert len([path for path in folder.earlier.rglob("*") if path.is_file()]) == 4


@pytest.mark.parametrize("place", ["mount point", "link"])
def test_samples_that_must_stay_where_they_are_are_put_aside_one_by_one(place, tmp_path, monkeypatch):
    """A relative link would lead nowhere from another folder, and a mount point cannot be moved."""
    folder, rename, disk = RunFolder(tmp_path / "r"), Path.rename, tmp_path / "disk"
    folder.root.mkdir()
    disk.mkdir()
    folder.samples.symlink_to("../disk") if place == "link" else folder.samples.mkdir()
    for path in (folder.metrics, folder.samples / "8.png", folder.samples / "16.png"):
        path.write_text(f"{path.name}\n")

    def busy(path, target):
        if path == folder.samples:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", busy)
    folder.put_aside(print)
    assert list(folder.samples.iterdir()) == []
    assert folder.samples.is_symlink() == (place == "link")
    assert contents(folder.earlier / "1") == {
        name: f"{Path(name).name}\n".encode() for name in ("metrics.jsonl", "samples/8.png", "samples/16.png")
    }


@pytest.mark.usefixtures("complete")
def test_a_newest_checkpoint_on_another_disk_is_gone_on_from(start, folder, tmp_path):
    path = folder.checkpoints / "000000048"
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    assert "kept in" not in start("--images", 56)[1]
    assert reports(folder.metrics) == [8, 16, 24, 32, 40, 48, 56]


def test_a_run_that_was_stopped_while_it_was_prepared_starts_again(start, folder):
    """Its reports are of an attempt that was killed before its first checkpoint."""
    killed_before_its_first_checkpoint(start)
    code, out, _ = stopped_while_data_are_opened(start)
    assert (code, "stopped at 0 images, while the run was prepared (SIGTERM)" in out) == (75, True)
    assert folder.preempted.read_text() == "0\nSIGTERM\n"
    assert start()[0] == 0
    assert reports(folder.earlier / "1" / "metrics.jsonl") == [8, 16, 24]


@pytest.mark.usefixtures("complete")
def test_a_stop_during_the_preparations_does_not_hide_that_checkpoints_are_lost(start, folder):
    """The data are opened before checkpoints are searched for."""
    empty(folder)
    assert stopped_while_data_are_opened(start)[0] == 75
    assert folder.preempted.read_text() == "0\nSIGTERM\n"
    assert start()[0] == 1


def test_a_stop_is_not_marked_in_a_folder_that_another_job_took(start, folder):
    """When this one looked, there was no folder yet."""
    other = Lease(folder.root)
    try:
        code, _, err = stopped_while_data_are_opened(start, lambda: other.take(new=True))
        assert (code, "another job is training here" in err) == (2, True)
        assert not folder.preempted.exists()
    finally:
        other.release()


@pytest.mark.usefixtures("complete")
def test_a_stop_is_marked_before_the_next_job_is_let_in(start, folder, monkeypatch):
    release, marked = Lease.release, []

    def look(lease):
        marked.append(folder.preempted.exists())
        release(lease)

    monkeypatch.setattr(Lease, "release", look)
    assert stopped_while_data_are_opened(start)[0] == 75
    assert marked[0]


@pytest.mark.usefixtures("complete")
def test_an_old_run_that_goes_on_notes_its_checkpoint(start, folder):
    folder.first_checkpoint.unlink()
    assert start("--images", 56)[0] == 0
    assert folder.first_checkpoint.read_text() == "48\n"


@pytest.mark.usefixtures("complete")
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda metrics: metrics.unlink(), "holds no report, but the run had reported at 48"),
        (lambda metrics: metrics.write_text('{"images": 8}\n'), "ends at 8 images, but the run had reported at 48"),
        (lambda metrics: metrics.write_text(metrics.read_text()[:-9]), "ends at 40 images, but"),
    ],
)
def test_missing_reports_are_reported(start, folder, damage, words):
    damage(folder.metrics)
    code, out, _ = start("--images", 56)
    assert (code, out.count("WARNING")) == (0, 1)
    assert f"WARNING: {folder.metrics} {words}" in out


@pytest.mark.usefixtures("complete")
def test_reports_that_come_again_are_counted(start, folder):
    shutil.rmtree(folder.checkpoints / "000000048")
    code, out, _ = start()
    assert code == 0
    assert f"{folder.metrics}: 2 lines after 32 images dropped, because these reports are written again\n" in out
    assert "WARNING" not in out
    assert reports(folder.metrics) == [8, 16, 24, 32, 40, 48]


@pytest.mark.usefixtures("complete")
@pytest.mark.parametrize("name", ["samples", "checkpoints", "metrics.jsonl", "config.yaml", "environment.json", "DONE"])
@pytest.mark.parametrize("instead", ["other kind", "dangling link"])
def test_something_else_in_its_place_is_refused_by_its_name(start, folder, name, instead):
    path = folder.root / name
    was_folder = path.is_dir()
    path.rename(folder.root.parent / "moved")
    if instead == "dangling link":
        path.symlink_to(folder.root / "nowhere")
    elif was_folder:
        path.write_text("a file")
    else:
        path.mkdir()
    code, _, err = start()
    kind = "folder" if was_folder else "file"
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: --run_dir {folder.root}: {name} is no {kind}, or a link to one that is missing")


@pytest.mark.usefixtures("complete")
def test_reports_that_may_not_be_written_end_the_start(start, folder, monkeypatch):
    real = Path.open

    def refuse(path, *args, **named):
        if path == folder.metrics:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **named)

    monkeypatch.setattr(Path, "open", refuse)
    code, _, err = start()
    assert (code, err) == (1, f"error: {folder.metrics}: cannot be read and written (Permission denied)\n")
