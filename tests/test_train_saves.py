"""Saves of complete runs: what is on disk when a run reports its end, full disks, and two jobs with one folder."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from support.disk import no_file_larger_than
from support.shards import write_ours
from support.training import TINY
from support.waiting import LIMIT

from dcgan_dist import train
from dcgan_dist.parallel.agreement import Requests
from dcgan_dist.run import checkpoint, lease
from dcgan_dist.run.divergence import Recovery
from dcgan_dist.run.jsonl import MetricsFile
from dcgan_dist.run.lease import Owner
from dcgan_dist.run.saving import Saver
from dcgan_dist.run.session import Session

pytestmark = pytest.mark.usefixtures("as_before")


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def arguments(tmp_path, run_dir):
    shard = write_ours(tmp_path / "a.tar", 12)
    return [*TINY, "--images", "48", "--checkpoint.every", "8", "--run_dir", str(run_dir), "--data.shards", str(shard)]


@pytest.fixture
def start(capsys, arguments):
    """Runs the command in this process; returns the exit code, standard output and standard error."""

    def start(*options: object) -> tuple[int, str, str]:
        code = train.main([*arguments, *map(str, options)])
        return code, *capsys.readouterr()

    return start


def largest(path: Path) -> int:
    return max(file.stat().st_size for file in path.iterdir())


@pytest.mark.parametrize("blocking", ["", "--checkpoint.blocking"])
def test_a_run_reports_that_it_is_done_when_all_is_on_disk(start, run_dir, monkeypatch, blocking):
    done: list[bool] = []
    sync = checkpoint.sync_folder
    monkeypatch.setattr(
        checkpoint, "sync_folder", lambda folder: (sync(folder), done.append((run_dir / "DONE").exists()))
    )
    assert start(*blocking.split())[0] == 0
    assert set(done) == {False}
    assert (run_dir / "DONE").exists()
    newest = checkpoint.all_checkpoints(run_dir / "checkpoints")[-1]
    assert (newest.name, checkpoint.verify(newest)) == ("000000048", None)


def test_the_seconds_of_a_save_are_in_the_reports(start, run_dir):
    assert start("--checkpoint.every", 24, "--checkpoint.blocking")[0] == 0
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    named = {
        name: [row["images"] for row in rows if name in row] for name in ("time/save_seconds", "save/write_seconds")
    }
    assert list(named.values()) == [[32], [32]]  # of the save at 24; the one at 48 is after the last report


def test_a_disk_that_is_full_for_a_while_does_not_end_the_run(start, run_dir, monkeypatch):
    """The saves at 16 and 24 fail, and those before and after do not."""
    assert start("--images", 8)[0] == 0
    limit = largest(run_dir / "checkpoints" / "000000008") - 1
    saves: list[int] = []
    true = checkpoint.save

    def save(folder, images, *others):
        saves.append(images)
        if images in (16, 24):
            with no_file_larger_than(limit):
                return true(folder, images, *others)
        return true(folder, images, *others)

    monkeypatch.setattr(checkpoint, "save", save)
    code, printed, errors = start("--checkpoint.blocking")
    assert (code, errors) == (0, "")
    assert saves == [16, 24, 32, 40, 48]
    warnings = [line for line in printed.splitlines() if "WARNING" in line]
    assert [line.rpartition(" (")[2] for line in warnings] == ["failure 1 of 3)", "failure 2 of 3)"]
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["000000032", "000000040", "000000048", "latest"]


def test_reports_and_pictures_wait_for_a_disk_that_is_full_for_a_while(start, run_dir, monkeypatch):
    """No line of metrics.jsonl is lost, and no checkpoint is there without the lines before it."""
    metrics = run_dir / "metrics.jsonl"
    assert start("--images", 8)[0] == 0
    with metrics.open("a") as file:  # a long run's: larger than the other files that an attempt begins with
        file.write(json.dumps({"images": 8, "text": "x" * 300_000}) + "\n")
    limit = metrics.stat().st_size + 10  # the first bytes of a line fit
    true, refused = os.write, []

    def write(descriptor, data):
        if len(refused) == 2:  # the report at 16, and the save at 16
            return true(descriptor, data)
        try:
            with no_file_larger_than(limit):
                return true(descriptor, data)
        except OSError as error:
            refused.append(error)
            raise

    monkeypatch.setattr(os, "write", write)
    code, printed, errors = start("--images", 32, "--checkpoint.every", 16)
    assert (code, errors) == (0, "")
    assert [json.loads(line)["images"] for line in metrics.read_text().splitlines()] == [8, 8, 16, 24, 32]
    assert f"WARNING: {metrics}: cannot be written (File too large); the run goes on" in printed
    assert not (run_dir / "checkpoints" / "000000016").exists()
    assert (
        "without it no checkpoint is saved; the run goes on and tries again at the next save (failure 1 of 3)"
        in printed
    )


def test_a_disk_that_stays_full_ends_the_run(start, run_dir):
    assert start("--images", 8)[0] == 0
    with no_file_larger_than(largest(run_dir / "checkpoints" / "000000008") - 1):
        code, printed, errors = start("--images", 800, "--log.samples_every", 8000)
    assert (code, errors.count("\n")) == (1, 1)
    assert errors.startswith(f"error: {run_dir / 'checkpoints' / '000000032'}: the checkpoint could not be saved (File")
    assert printed.count("WARNING") == 2
    assert not (run_dir / "DONE").exists()
    assert [path.name for path in checkpoint.all_checkpoints(run_dir / "checkpoints")] == ["000000008"]


def test_the_last_save_must_not_fail(start, run_dir):
    assert start("--images", 8)[0] == 0
    with no_file_larger_than(largest(run_dir / "checkpoints" / "000000008") - 1):
        code, _, errors = start("--images", 16, "--checkpoint.most_failures", 9)
    assert code == 1
    assert "000000016: the checkpoint could not be saved" in errors
    assert not (run_dir / "DONE").exists()


def test_a_second_job_on_the_same_folder_is_refused_and_the_first_goes_on(arguments, start, run_dir, monkeypatch):
    monkeypatch.setattr(lease, "GRACE", 0.2)
    options = [*arguments, "--images", "1000000", "--log.samples_every", "100000000"]
    first = subprocess.Popen(
        [sys.executable, "-m", "dcgan_dist.train", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert first.stdout is not None
        while not (run_dir / "checkpoints" / "latest").exists():
            assert first.stdout.readline(), first.communicate()
        before = {path: path.read_bytes() for path in (run_dir / "config.yaml", run_dir / "owner.json")}
        code, _, errors = start("--images", 56)
        assert (code, errors.count("\n")) == (2, 1)
        assert errors.startswith(f"error: --run_dir {run_dir}: another job is training here (host ")
        assert f", pid {first.pid}, since 20" in errors
        assert {path: path.read_bytes() for path in before} == before
        first.send_signal(signal.SIGTERM)
        _, errors = first.communicate(timeout=LIMIT)
        assert (first.returncode, errors) == (75, "")
    finally:
        first.kill()
        first.communicate()
    stopped = int((run_dir / "PREEMPTED").read_text().split()[0])
    assert (run_dir / "checkpoints" / "latest").read_text() == f"{stopped:09d}"
    assert start("--images", stopped + 8)[0] == 0
    assert json.loads((run_dir / "owner.json").read_text())["attempt"] == 2


NEWER = Owner(attempt=7, host="node9", pid=5, slurm_job="77", slurm_restart="1", since="now")


def take_over(run_dir: Path) -> None:
    """As by an attempt that has begun on another node, while this one was cut off, and comes back."""
    (run_dir / "new").write_text(json.dumps(asdict(NEWER)))
    (run_dir / "new").replace(run_dir / "owner.json")


def ended_for_the_newer(run_dir: Path) -> tuple[int, str]:
    """Exit code, and the words on standard error."""
    return 1, (
        f"error: {run_dir}: a newer attempt of this run has taken over (attempt 7: {NEWER}); this one, attempt 1, "
        "writes nothing more and ends\n"
    )


def test_an_attempt_that_another_has_followed_reports_nothing_at_its_end(start, run_dir, monkeypatch):
    write = checkpoint._write_files

    def written(*given) -> None:
        write(*given)
        if (run_dir / "checkpoints" / "000000016").exists():
            take_over(run_dir)

    monkeypatch.setattr(checkpoint, "_write_files", written)
    code, _, errors = start()
    assert (code, errors) == ended_for_the_newer(run_dir)
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["000000008", "000000016", "latest"]
    assert not (run_dir / "DONE").exists()
    assert json.loads((run_dir / "owner.json").read_text()) == asdict(NEWER)


def test_an_attempt_that_another_has_followed_removes_nothing(start, run_dir, monkeypatch):
    """Going back, it would remove what the newer one has saved."""

    def fault(recovery: Recovery) -> str | None:
        if recovery.state.images < 24:
            return None
        recovery.saver.wait()
        take_over(run_dir)
        return "something"

    monkeypatch.setattr(Recovery, "_fault", fault)
    monkeypatch.setattr(checkpoint, "verify", lambda path: None if path.name == "000000008" else "damaged")
    code, _, errors = start("--divergence.policy", "rollback")
    assert (code, errors) == ended_for_the_newer(run_dir)
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["000000000", "000000008", "000000016", "latest"]
    assert (run_dir / "checkpoints" / "latest").read_text() == "000000016"


def test_the_reports_are_on_disk_before_the_checkpoint_that_relies_on_them(start, run_dir, monkeypatch):
    order: list[str] = []
    sync, begin = MetricsFile.sync, Saver._begin

    def synced(metrics: MetricsFile) -> None:
        sync(metrics)
        order.append(f"reports to {json.loads(metrics.path.read_text().splitlines()[-1])['images']}")

    def begun(saver: Saver, images: int, *rest) -> None:
        order.append(f"checkpoint of {images}")
        begin(saver, images, *rest)

    monkeypatch.setattr(MetricsFile, "sync", synced)
    monkeypatch.setattr(Saver, "_begin", begun)
    assert start("--images", 16)[0] == 0
    assert order == ["reports to 8", "checkpoint of 8", "reports to 16", "checkpoint of 16"]


def stale(*_: object) -> None:
    raise OSError(errno.ESTALE, "Stale file handle")


def test_a_disk_that_does_not_answer_while_old_ones_are_removed_ends_nothing(start, run_dir, monkeypatch):
    really, met = checkpoint._prune, []

    def prune(folder: Path, images: int, keep: int, lease: lease.Lease) -> None:
        met.append(images)
        if images in (24, 32):
            stale()
        really(folder, images, keep, lease)

    monkeypatch.setattr(checkpoint, "_prune", prune)
    code, out, errors = start("--checkpoint.keep", 2, "--images", 40)
    assert (code, errors, "WARNING" in out) == (0, "", False)
    assert met == [8, 16, 24, 32, 40]
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["000000032", "000000040", "latest"]  # removed by the next save


def test_a_disk_that_does_not_answer_while_a_run_goes_back_is_one_line(start, run_dir, monkeypatch):
    monkeypatch.setattr(Recovery, "_fault", lambda mine: "something" if mine.state.images == 24 else None)
    monkeypatch.setattr("dcgan_dist.run.divergence.write_atomically", stale)
    code, _, errors = start("--divergence.policy", "rollback", "--log.every", 24)
    checkpoints = run_dir / "checkpoints"
    assert (code, errors) == (1, f"error: {checkpoints}: cannot go back there (Stale file handle)\n")
    assert all(checkpoint.verify(path) is None for path in checkpoint.all_checkpoints(checkpoints))
    assert checkpoint.find_newest(checkpoints, pytest.fail) == checkpoints / "000000016"


@pytest.mark.parametrize("due", ["--log.every 8", "--log.samples_every 8 --log.every 1000"])
def test_an_attempt_that_another_has_followed_reports_nothing_more(due, start, run_dir, monkeypatch):
    agreed = Session.agreed

    def taken_over(session: Session) -> Requests:
        if session.state.images == 24:
            take_over(run_dir)
        return agreed(session)

    monkeypatch.setattr(Session, "agreed", taken_over)
    code, _, errors = start("--checkpoint.every", 1000, *due.split())
    assert (code, errors) == ended_for_the_newer(run_dir)
    metrics, samples = run_dir / "metrics.jsonl", run_dir / "samples"
    reported = [json.loads(line)["images"] for line in metrics.read_text().splitlines()] if metrics.exists() else []
    assert reported == ([8, 16] if "1000" not in due else [])
    assert len(list(samples.iterdir())) == (2 if "samples" in due else 0)


def test_a_disk_that_does_not_answer_a_report_for_a_moment_ends_nothing(start, monkeypatch):
    really, met = lease.Lease._read, []

    def read(mine: lease.Lease) -> Owner | None:
        if mine.owner is not None and len(met) < 2:
            met.append(1)
            raise OSError(errno.ESTALE, "Stale file handle")
        return really(mine)

    monkeypatch.setattr(lease.Lease, "_read", read)
    assert start("--checkpoint.every", 1000)[0] == 0
    assert len(met) == 2


def test_a_checkpoint_that_is_asked_for_and_cannot_be_written_ends_nothing(start, run_dir):
    """Tried once: it does not use up the failures that a run may have."""
    run_dir.mkdir()
    (run_dir / "SAVE").touch()
    with no_file_larger_than(4000):
        code, out, _ = start("--checkpoint.every", 1000, "--log.every", 1000, "--log.samples_every", 1000)
    assert out.count("not saved, although") == 1, out
    assert code == 1  # the last save of an attempt must succeed
    assert "failure 1 of 3" in out
    assert (run_dir / "SAVE").exists()


def test_a_gpu_without_memory_is_one_line(start, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(train, "training_step", full)
    code, _, errors = start()
    assert (code, errors.count("\n")) == (1, 1)
    assert errors.startswith("error: out of memory, threads or processes (OutOfMemoryError CUDA out of memory. Tried")
