"""Files that appear whole or not at all, also on a disk that is full or may not be written."""

import fcntl
import os
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.disk import no_file_larger_than
from support.locks import before_next_flock
from support.shards import write_ours

from dcgan_dist.data.system.locks import lock, locked
from dcgan_dist.data.system.storage import atomic_file, cache_folder, temporary_path, write_atomically
from dcgan_dist.errors import UserError


def test_a_file_is_written_into_folders_that_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    for content in (b"old" * 999, b"new"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with (
        no_file_larger_than(10_000),
        pytest.raises(UserError, match=rf"^{path}: cannot be written \(File too large\)$"),
    ):
        write_atomically(path, bytes(20_000))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("after", [0, 5_000, 20_000])
def test_a_shard_on_a_full_disk_leaves_nothing(tmp_path, after):
    """Whether the bytes fail to be written at once, later, or at the very end."""
    with no_file_larger_than(after), pytest.raises(OSError, match="File too large"):
        write_ours(tmp_path / "shard.tar", 5)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/sub/x: cannot be written \(Not a directory\)$"):
        write_atomically(tmp_path / "file" / "sub" / "x", b"data")


def test_the_cache_folder_is_where_the_system_keeps_such_things(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "dcgan_dist"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in (lambda: monkeypatch.setenv("XDG_CACHE_HOME", ""), lambda: monkeypatch.delenv("XDG_CACHE_HOME")):
        unset()
        assert cache_folder() == tmp_path / ".cache" / "dcgan_dist"


@pytest.mark.parametrize("replaced", [True, False], ids=["another has a new one", "nobody has it"])
def test_a_lock_whose_file_was_removed_meanwhile_excludes_no_one(tmp_path, monkeypatch, replaced):
    path = tmp_path / "lock"
    with ExitStack() as stack:
        first = lock(path, fcntl.LOCK_EX)

        def ends():
            path.unlink()
            os.close(first)
            if replaced:
                assert stack.enter_context(locked(path, wait=False))

        before_next_flock(monkeypatch, ends)
        with locked(path, wait=False) as mine:
            assert mine is not replaced
            if mine:  # of the file that is there
                with locked(path, wait=False) as another:
                    assert not another


def test_a_private_file_is_the_owners_alone_from_its_first_moment(tmp_path):
    path = tmp_path / "config.yaml"
    write_atomically(path, b"for all")
    temporary_path(path).touch(0o644)  # left by a killed process of this number
    with atomic_file(path, 0o600) as file, temporary_path(path).open("rb") as other:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
        assert os.path.sameopenfile(file.fileno(), other.fileno())
    write_atomically(path, b"for me", private=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_atomically(path, b"for all")
    assert stat.S_IMODE(path.stat().st_mode) & 0o044


def test_a_user_without_a_home_is_one_line(monkeypatch):
    """As in a container that gives its process any number for a user."""

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(UserError, match="no home folder; set HOME or XDG_CACHE_HOME"):
        cache_folder()
