"""A cache folder that several users share, as far as its permissions let them; and a disk that was full for a while."""

import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from support.ranks import run_ranks

from dcgan_dist.data.remote import quota as module
from dcgan_dist.data.remote.cache import CachedShard
from dcgan_dist.data.remote.quota import Quota
from dcgan_dist.data.shards import files
from dcgan_dist.data.system.locks import locked
from dcgan_dist.run.lease import Lease

MODES = [(0o755, 0o644), (0o775, 0o664), (0o777, 0o666), (0o1777, 0o666), (0o2770, 0o660), (0o700, 0o600)]
NAME, OTHER = (f"{number:032x}-a.tar" for number in range(2))
NOBODY = 65534


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def never(_name: str) -> None:
    """When an entry is read next."""


def put(quota: Quota, name: str, size: int = 10) -> bool:
    """Makes an entry; whether the quota allowed it."""
    made = quota.reserve(name, size, never)
    if made is None:
        return False
    os.write(made.descriptor, bytes(size))
    made.publish()
    made.close()
    return True


@pytest.fixture(params=[0o022, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(("of_folder", "of_files"), MODES)
def test_who_may_write_in_the_folder_may_lock_and_read_what_is_there(tmp_path, of_folder, of_files):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(of_folder)
    quota = Quota(folder, 100)
    made = quota.reserve(OTHER, 10, never)
    assert made is not None
    assert put(quota, NAME)
    assert {path.name: mode(path) for path in folder.iterdir()} == dict.fromkeys(
        [".lock", f".{OTHER}.tmp", NAME], of_files
    )
    made.close()
    lease = Lease(folder)
    lease.take()
    lease.release()
    assert mode(folder / ".owner.lock") == of_files


def test_a_lock_that_may_only_be_read_locks(tmp_path, monkeypatch):
    """One that an older version made for another user."""
    (tmp_path / ".lock").touch()
    real = os.open

    def refuse(path, flags, *args, **named):
        if str(path).endswith(".lock") and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", path)
        return real(path, flags, *args, **named)

    monkeypatch.setattr(os, "open", refuse)
    with locked(tmp_path / ".lock") as mine, (tmp_path / ".lock").open() as other:
        assert mine
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(("of_folder", "goes"), [(0o777, True), (0o1777, False)])
def test_what_another_user_alone_may_remove_stays(tmp_path, monkeypatch, of_folder, goes):
    """It counts towards the limit; this user owns neither file nor folder."""
    tmp_path.chmod(of_folder)
    quota = Quota(tmp_path, 15)
    assert put(quota, NAME)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert put(quota, OTHER) == goes
    assert (tmp_path / NAME).exists() != goes


def as_nobody(folder: str) -> list[object]:
    """What another user can do with a cache that root has begun."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.umask(0o077)
    quota, found = Quota(Path(folder), 25), []
    CachedShard(Path(folder) / NAME).close()
    for name, size in ((OTHER, 10), ("f" * 32 + "-b.tar", 20)):
        try:
            found.append(put(quota, name, size))
        except PermissionError as error:
            found.append(error.strerror)
    return found


REAL_USERS = [(0o1777, [True, False]), (0o777, [True, True]), (0o755, ["Permission denied"] * 2)]


@pytest.mark.dist
@pytest.mark.parametrize(("of_folder", "found"), REAL_USERS if os.geteuid() == 0 else [])
def test_a_second_user_uses_what_the_first_has_begun(of_folder, found):
    """In a folder like /tmp the first entry stays, and is removed where any user may; both do not fit."""
    folder = Path(tempfile.mkdtemp())  # which, unlike those of pytest, others can reach
    try:
        folder.chmod(of_folder)
        before = os.umask(0o077)
        assert put(Quota(folder, 25), NAME)
        dead = Quota(folder, 25).reserve("e" * 32 + "-dead.tar", 5, never)
        os.umask(before)
        assert dead is not None
        os.close(dead.descriptor)  # as if its maker was killed
        assert run_ranks(1, as_nobody, str(folder)) == [found]
    finally:
        shutil.rmtree(folder)


def test_a_disk_that_was_full_is_tried_again(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    quota = Quota(tmp_path, 100)
    assert put(quota, NAME)
    quota.shrink()
    assert quota.limit == 10
    assert not put(quota, OTHER, 11)
    now[0] += module.FULL_FOR
    assert quota.limit == 100
    assert put(quota, OTHER, 11)


def test_mounts_that_could_not_be_read_once_are_read_again(monkeypatch):
    read, failures = Path.read_text, [OSError(24, "Too many open files")]

    def once(path, *args, **named):
        if failures and path.name == "mountinfo":
            raise failures.pop()
        if path.name == "mountinfo":
            return "1 1 8:1 / / rw - nfs4 server:/ rw\n"
        return read(path, *args, **named)

    monkeypatch.setattr(Path, "read_text", once)
    files._on_network.cache_clear()
    assert [files.on_network(os.makedev(8, 1)) for _ in range(2)] == [False, True]
    files._on_network.cache_clear()
