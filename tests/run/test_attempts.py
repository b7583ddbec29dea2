"""What an attempt leaves for the page of its run: its begin and end, real images, and the page itself."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from support.shards import write_ours
from support.training import TINY, before_each_iteration

from dcgan_dist import train
from dcgan_dist.data.order import Order
from dcgan_dist.errors import UserError
from dcgan_dist.run import real
from dcgan_dist.run.attempts import Attempt, AttemptLog, read_attempts
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.grid import grid
from dcgan_dist.run.report.page import is_page
from dcgan_dist.run.session import Session

IMAGES = 12
pytestmark = pytest.mark.usefixtures("as_before")


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.fixture
def start(tmp_path, folder, capsys):
    """Trains in this process; returns the exit code and what was printed."""
    shard = write_ours(tmp_path / "a.tar", IMAGES)

    def start(*options: object) -> tuple[int, str]:
        fixed = [
            *TINY,
            "--log.page",
            "--run_dir",
            folder.root,
            "--data.shards",
            shard,
            "--checkpoint.every",
            16,
            *options,
        ]
        code = train.main([str(option) for option in fixed])
        return code, "".join(capsys.readouterr())

    return start


class Killed(BaseException):
    pass


def at(images: int, act):
    """Before the iteration that begins at so many images."""

    def acting(session: Session) -> None:
        if session.state.images == images:
            act(session)

    before_each_iteration(acting)


def killed(_session):
    raise Killed


def break_weights(session: Session) -> None:
    with torch.no_grad():
        next(session.state.netd.parameters()).fill_(math.nan)


def state_of(folder: RunFolder) -> str:
    return folder.page.read_text().partition('class="state ')[2].partition('"')[0]


def test_every_attempt_is_recorded_and_every_end_writes_the_page(start, folder, monkeypatch):
    for name in ("train", "training_step"):
        monkeypatch.setattr(train, name, getattr(train, name))  # to be restored
    with monkeypatch.context() as patch:
        patch.setattr(AttemptLog, "end", lambda *_: None)
        at(40, killed)
        with pytest.raises(Killed):
            start("--images", 64)
    assert not folder.page.exists()
    monkeypatch.undo()
    for name in ("train", "training_step"):
        monkeypatch.setattr(train, name, getattr(train, name))
    at(48, break_weights)
    assert start("--images", 64)[0] == 1
    assert state_of(folder) == "failed"
    assert "training has diverged: " in folder.page.read_text()
    monkeypatch.undo()
    folder.stop.touch()
    assert start("--images", 64)[0] == 75
    assert state_of(folder) == "stopped"
    code, printed = start("--images", 64)
    assert (code, state_of(folder)) == (0, "complete")
    assert f"everything in {folder.page}" in printed
    found = read_attempts(folder.attempts)
    seen = [(one.number, one.images, one.reached, one.end_images, bool(one.end)) for one in found]
    assert seen == [
        (1, 0, None, None, False),
        (2, 32, 40, 56, True),
        (3, 48, 56, 48, True),
        (4, 48, 48, 64, True),
    ]
    assert [one.reason for one in found][2:] == [f"{folder.stop} exists", "done"]
    world = {"world_size": 1, "device": "cpu", "precision": "fp32"}
    assert world.items() <= found[0].facts.items()
    events = folder.page.read_text()
    assert "attempt 2 began at 32 images; attempt 1 was killed, and 8 images are trained again" in events


def test_real_images_are_the_first_of_the_order(start, folder, tmp_path):
    assert start("--images", 8, "--log.samples", 20, "--seed", 5)[0] == 0
    order = Order([IMAGES], 5).samples(0, IMAGES)
    assert is_page(folder.page)
    with Image.open(folder.real) as picture:
        drawn = np.asarray(picture)
    tiles = read_shard(tmp_path / "a.tar")
    np.testing.assert_array_equal(drawn, grid(np.stack([tiles[number] for number in order])))
    before = folder.real.stat().st_mtime_ns
    assert start("--images", 16, "--log.samples", 20, "--seed", 5)[0] == 0
    assert folder.real.stat().st_mtime_ns == before


def read_shard(path):
    """Its images in their order, by Python's own tar reader and Pillow: (C, H, W)."""
    import tarfile

    with tarfile.open(path) as tar:
        members = [member for member in tar if not member.name.startswith("__")]
        return [np.asarray(Image.open(tar.extractfile(member))).transpose(2, 0, 1) for member in members]  # pyright: ignore[reportArgumentType]


def test_a_stream_shows_its_first_batch(start, folder):
    assert start("--images", 8, "--data.reader", "stream", "--log.samples", 4)[0] == 0
    with Image.open(folder.real) as picture:
        assert picture.size == (2 * 34 + 2, 2 * 34 + 2)
        assert len(picture.getcolors(10**6) or []) > 50


def test_none_of_it_can_end_the_run(start, folder, monkeypatch):
    def full(*_):
        raise UserError("disk full")

    monkeypatch.setattr(real, "save_png", full)
    folder.attempts.mkdir(parents=True)
    folder.config.write_text("images: 8\n")
    folder.page.mkdir()
    code, printed = start("--images", 8)
    assert code == 0
    warnings = [line[line.index("WARNING") :] for line in printed.splitlines() if "WARNING" in line]
    assert len(warnings) == 4
    assert (
        warnings[0]
        == f"WARNING: {folder.attempts}: cannot be written (Is a directory); the run goes on without this line"
    )
    assert warnings[1] == f"WARNING: {folder.real} was not drawn (disk full); the run goes on without it"
    assert warnings[3].startswith(f"WARNING: {folder.page} was not written (")


def test_the_page_may_be_switched_off(start, folder):
    code, printed = start("--images", 8, "--log.no_page")
    assert (code, folder.page.exists()) == (0, False)
    assert str(folder.page) not in printed


def test_a_line_that_a_full_disk_has_cut_spoils_no_other(tmp_path):
    path = tmp_path / "attempts.jsonl"
    first = {"attempt": 1, "begin": "2026-01-01T10:00:00+00:00", "images": 0}
    path.write_text(json.dumps(first) + '\n{"attempt": 1, "en')
    log = AttemptLog(path, type("Lease", (), {"attempt": 2})(), print, lambda _: None)  # pyright: ignore[reportArgumentType]
    log.begin(8, tmp_path / "none", {"device": "cpu"})
    assert read_attempts(path)[0] == Attempt(number=1, begin=first["begin"], images=0, facts={})
    assert [(one.number, one.images) for one in read_attempts(path)] == [(1, 0), (2, 8)]
