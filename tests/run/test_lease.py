"""One job at a time on a run's folder: real processes, hosts that are only names, an attempt that is too late."""

import errno
import fcntl
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from support.locks import before_next_flock

from dcgan_dist.config.run_groups import CheckpointConfig
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.run import checkpoint, lease
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.lease import Lease, Owner
from dcgan_dist.run.saving import Saver

BEAT = 0.05  # seconds
HOLDER = """
import errno, fcntl, socket, sys
from pathlib import Path
from dcgan_dist.run.lease import Lease

def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")

root, host, locks, beat = sys.argv[1:]
if host:
    socket.gethostname = lambda: host
if locks == "no locks":
    fcntl.lockf = no_locks
lease = Lease(Path(root), beat=float(beat))
lease.take()
print("held", flush=True)
sys.stdin.read()
lease.release()
"""


@contextmanager
def holder(root: Path, host: str = "", locks: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that has the run, until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root), host, locks, str(BEAT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def die(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


@pytest.fixture
def said():
    return []


@pytest.fixture
def lease_of(tmp_path, said, monkeypatch) -> Iterator[Callable[..., Lease]]:
    monkeypatch.setattr(lease, "GRACE", 0.2)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    made: list[Lease] = []

    def make(patience: float = 60.0) -> Lease:
        made.append(Lease(tmp_path, said.append, beat=BEAT, patience=patience))
        return made[-1]

    yield make
    for one in made:
        one.release()


def on_disk(root: Path) -> dict:
    return json.loads((root / "owner.json").read_text())


def write_owner(root: Path, **changes: object) -> Owner:
    fixed = {"attempt": 4, "host": "node7", "pid": 11, "slurm_job": "77", "slurm_restart": "2", "since": "then"}
    owner = Owner(**(fixed | changes))  # type: ignore[arg-type]
    (root / "new").write_text(json.dumps(asdict(owner)))
    (root / "new").replace(root / "owner.json")
    return owner


def test_each_attempt_has_the_next_number(lease_of, tmp_path, said):
    for attempt in (1, 2, 3):
        mine = lease_of()
        assert mine.attempt == 0
        mine.take()
        mine.take()  # it has it
        assert mine.attempt == on_disk(tmp_path)["attempt"] == attempt
        assert (on_disk(tmp_path)["host"], on_disk(tmp_path)["pid"]) == (socket.gethostname(), os.getpid())
        assert on_disk(tmp_path)["ended"] is False
        mine.release()
        assert on_disk(tmp_path)["ended"] is True
    assert said == []


def test_a_run_without_a_folder_is_taken_when_it_is_known_to_be_new(tmp_path, said):
    mine = Lease(tmp_path / "run", said.append)
    mine.take()
    assert not (tmp_path / "run").exists()
    mine.take(new=True)
    assert on_disk(tmp_path / "run")["attempt"] == 1
    mine.release()


def test_a_run_that_somebody_began_and_ended_meanwhile_is_not_begun_again(tmp_path, said):
    late = Lease(tmp_path / "run", said.append)
    late.take()  # there is none yet
    other = Lease(tmp_path / "run", said.append)
    other.take(new=True)
    other.release()
    with pytest.raises(UsageError, match="another job is training here"):
        late.take(new=True)


def test_a_second_job_is_refused_and_reported_who_has_the_run(lease_of, tmp_path, said):
    with holder(tmp_path) as other:
        with pytest.raises(UsageError) as error:
            lease_of().take()
        assert str(error.value) == (
            f"--run_dir {tmp_path}: another job is training here (host {socket.gethostname()}, pid {other.pid}, since "
            f"{on_disk(tmp_path)['since']}); wait for its end, stop it by `touch {tmp_path / 'STOP'}`, or name another "
            "--run_dir"
        )
        assert (on_disk(tmp_path)["pid"], on_disk(tmp_path)["ended"]) == (other.pid, False)  # as it was
        other.communicate("")
        mine = lease_of()
        mine.take()  # after its orderly end
    assert (mine.attempt, said) == (2, [])


def test_a_run_that_another_job_made_again_before_the_lock_is_not_taken(lease_of, tmp_path, monkeypatch):
    with ExitStack() as stack:

        def made_again():
            for path in tmp_path.iterdir():
                path.unlink()
            stack.enter_context(holder(tmp_path))

        lease_of().take()  # which leaves files to be removed
        before_next_flock(monkeypatch, made_again, "lockf")
        with pytest.raises(UsageError, match="another job is training here"):
            lease_of().take()
        assert on_disk(tmp_path)["attempt"] == 1


def other(lease: Lease) -> UsageError | None:
    """What it is refused for without taking anything."""
    try:
        lease.refuse_other()
    except UsageError as error:
        return error
    return None


def test_who_only_looks_sees_what_who_takes_would_be_refused_for(lease_of, tmp_path):
    assert other(lease_of()) is None
    with holder(tmp_path) as owner:
        assert f"pid {owner.pid}, since " in str(other(lease_of()))
        owner.communicate("")
        before = on_disk(tmp_path)
        assert other(lease_of()) is None  # it has ended
        assert on_disk(tmp_path) == before
    with holder(tmp_path) as owner:
        assert other(lease_of()) is not None  # the looks of before have taken nothing
        die(owner)
        assert other(lease_of()) is None
    (tmp_path / "owner.json").unlink()
    with holder(tmp_path, host="node7", locks="no locks") as owner:
        assert f" (host node7, pid {owner.pid}, since " in str(other(lease_of()))
        die(owner)
        assert other(lease_of(patience=10 * BEAT)) is None


def test_the_next_attempt_of_the_same_slurm_job_sees_nobody(lease_of, tmp_path, monkeypatch):
    write_owner(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert other(lease_of()) is None


def test_a_dead_owner_on_this_host_is_followed_at_once(lease_of, tmp_path, said):
    with holder(tmp_path) as other:
        die(other)
        mine = lease_of()
        mine.take()
    assert (mine.attempt, said) == (2, [])


def without_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def test_where_there_are_no_locks_the_heartbeat_decides(lease_of, tmp_path, said, monkeypatch):
    monkeypatch.setattr(fcntl, "lockf", without_locks)
    with holder(tmp_path, locks="no locks") as other:
        with pytest.raises(UsageError, match=f"pid {other.pid}"):
            lease_of().take()
        assert len(said) == 1
        die(other)
        mine = lease_of()
        mine.take()
    assert (mine.attempt, len(said)) == (2, 1)


def test_an_owner_on_another_host_is_watched(lease_of, tmp_path, said):
    """Locks need not reach it, so that the lock is free says nothing."""
    with holder(tmp_path, host="node7", locks="no locks") as other:
        with pytest.raises(UsageError, match=f"host node7, pid {other.pid}, since "):
            lease_of().take()
        assert said == [
            f"the run's last owner (host node7, pid {other.pid}, since {on_disk(tmp_path)['since']}) has not recorded "
            "its end; waiting up to 60 s for a heartbeat"
        ]
        die(other)
        mine = lease_of(patience=10 * BEAT)
        mine.take()
    assert mine.attempt == 2


def test_the_next_attempt_of_the_same_slurm_job_need_not_wait(lease_of, tmp_path, said, monkeypatch):
    before = write_owner(tmp_path)
    assert str(before) == "host node7, pid 11, SLURM job 77 (restart 2), since then"
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    mine = lease_of()
    mine.take()
    assert (mine.attempt, said) == (5, [])
    assert (on_disk(tmp_path)["slurm_job"], on_disk(tmp_path)["slurm_restart"]) == ("77", "3")
    assert '"slurm_job": "77"' in (tmp_path / "owner.json").read_text()  # so slurm/train.sh looks for it


@pytest.mark.parametrize("text", ["", "{", "[]", '{"attempt": 3}', '{"name": "app"}'])
def test_a_file_that_says_nothing_is_no_owner(lease_of, tmp_path, text):
    (tmp_path / "owner.json").write_text(text)
    mine = lease_of()
    mine.take()
    assert mine.attempt == 1


def test_a_folder_that_cannot_be_written_is_one_line():
    with pytest.raises(UsageError, match=r"^--run_dir /proc/self: cannot be written \([^\n]+\)$"):
        Lease(Path("/proc/self")).take()


# ---- an attempt that was taken for dead


def saver(mine: Lease, root: Path) -> Saver:
    return Saver(RunFolder(root), CheckpointConfig(keep=2), mine, print, torch.device("cpu"))


def save(one: Saver, images: int) -> None:
    one.save(images, {"netg": {"weight": torch.ones(3)}}, {"images": images})


# after which call of which function of the module
LATE = {
    "begun": ("_away", 1),
    "leftovers removed": ("_remove_leftovers", 1),
    "first file written": ("_write", 1),
    "all files on disk": ("_write_files", 1),
    "rename synced": ("sync_folder", 2),
    "latest replaced": ("sync_folder", 3),
}


@pytest.mark.parametrize("point", LATE)
def test_it_publishes_nothing_once_another_has_the_run(lease_of, tmp_path, monkeypatch, point):
    """Wherever in its save the other attempt takes over, and saves before the late one wakes up."""
    old, new = lease_of(), lease_of()
    old.take()
    late = saver(old, tmp_path)
    save(late, 100)
    late.check()
    checkpoints = tmp_path / "checkpoints"

    name, count = LATE[point]
    function, calls = getattr(checkpoint, name), itertools.count(1)

    def take_over(*given):
        result = function(*given)
        if next(calls) == count:
            monkeypatch.setattr(checkpoint, name, function)
            new.take()
            successor = saver(new, tmp_path)
            save(successor, 150)
            successor.finish()
        return result

    late._collect()
    monkeypatch.setattr(checkpoint, name, take_over)
    save(late, 200)
    with pytest.raises(UserError) as error:
        late.finish()
    assert str(error.value) == (
        f"{tmp_path}: a newer attempt of this run has taken over (attempt 2: {new.owner}); this one, attempt 1, writes "
        "nothing more and ends"
    )
    late.close()
    published = {path.name for path in checkpoints.iterdir()} - {"000000100", "000000150", "latest"}
    assert published == ({"000000200"} if point in ("rename synced", "latest replaced") else set())
    assert (checkpoints / "latest").read_text() == "000000150"
    for name in ("000000100", "000000150"):  # nor does it remove what is one too many beside its own
        assert checkpoint.verify(checkpoints / name) is None
    old.release()
    assert (on_disk(tmp_path)["attempt"], on_disk(tmp_path)["ended"]) == (2, False)  # not the late one's to end


def test_it_leaves_alone_what_the_other_is_writing(lease_of, tmp_path):
    old = lease_of()
    old.take()
    half = tmp_path / "checkpoints" / ".tmp-2-000000150"
    half.mkdir(parents=True)
    late = saver(old, tmp_path)
    save(late, 100)
    late.finish()
    assert half.exists()


def test_it_gives_no_heartbeat_in_the_name_of_the_next(lease_of, tmp_path):
    """Else a next owner that died would never be followed."""
    old = lease_of()
    old.take()
    first = old._pulse()
    while old._pulse() == first:
        time.sleep(BEAT / 10)
    write_owner(tmp_path, slurm_job=None)
    mine = lease_of(patience=10 * BEAT)
    mine.take()
    assert mine.attempt == 5
