"""The file RUN/STOP over several lives: each request stops exactly one of them."""

import os

import pytest

from dcgan_dist.errors import UsageError
from dcgan_dist.run.folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def test_a_request_from_before_the_first_life_is_kept(folder):
    folder.root.mkdir()
    folder.stop.touch()
    folder.prepare("", {})
    assert folder.stop.exists()


def test_a_request_does_not_make_a_foreign_folder_ours(folder):
    folder.root.mkdir()
    folder.stop.touch()
    (folder.root / "mine.txt").touch()
    with pytest.raises(UsageError, match="holds other files"):
        folder.prepare("", {})


@pytest.mark.parametrize("marker", ["preempted", "done"])
@pytest.mark.parametrize(("asked", "stays"), [(-10, False), (0, False), (10, True)])
def test_a_request_is_removed_once_a_life_has_ended_after_it(folder, marker, asked, stays):
    folder.prepare("", {})
    end = getattr(folder, marker)
    end.touch()
    folder.stop.touch()
    os.utime(end, (1_000, 1_000))
    os.utime(folder.stop, (1_000 + asked, 1_000 + asked))
    folder.prepare("", {})
    assert folder.stop.exists() == stays
    assert not end.exists()


def test_a_request_outlives_a_life_that_crashed(folder):
    folder.prepare("", {})
    folder.stop.touch()
    folder.prepare("", {})
    assert folder.stop.exists()
