"""A run that says that it is done has trained on all images that were asked for, and says what it did last."""

import json

import pytest
from support.shards import write_ours
from support.training import TINY

from dcgan_dist import train
from dcgan_dist.run.lease import Lease

pytestmark = pytest.mark.usefixtures("as_before")


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def start(capsys, tmp_path, run_dir):
    shard = write_ours(tmp_path / "a.tar", 12)

    def start(images: int, *options: object) -> tuple[int, str, str]:
        argv = [*TINY, "--log.every", 16, "--run_dir", run_dir, "--data.shards", shard, "--images", images, *options]
        code = train.main([*map(str, argv)])
        return code, *capsys.readouterr()

    return start


def rows(run_dir) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def write_rows(run_dir, found: list[dict]) -> None:
    (run_dir / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in found))


@pytest.mark.parametrize("dry", [[], ["--dry_run"]])
def test_fewer_images_than_were_seen_are_refused(start, run_dir, dry):
    assert start(48)[0] == 0
    (run_dir / "DONE").unlink()
    code, _, err = start(40, *dry)
    path = run_dir / "checkpoints" / "000000048"
    assert code == 2
    assert err.startswith(f"error: --images 40: {path} has already seen 48 images, so none is left; ")
    assert not (run_dir / "DONE").exists()


@pytest.mark.parametrize("images", [40, 48])
def test_a_warm_start_of_nothing_is_refused(start, run_dir, tmp_path, images):
    assert start(48)[0] == 0
    warm = ["--resume", run_dir / "checkpoints" / "000000048", "--run_dir", tmp_path / "warm"]
    code, _, err = start(images, *warm)
    assert (code, f"error: --images {images}: " in err) == (2, True)
    assert not (tmp_path / "warm").exists()
    assert start(56, *warm)[0] == 0
    assert start(56, *warm)[:1] == (0,)  # the same command again finds it complete


@pytest.mark.parametrize("images", [44, 48, 42])
def test_a_complete_run_reports_that_nothing_was_left(start, run_dir, images):
    """By the same command, or by another number that the last batch reaches, too."""
    assert start(44)[0] == 0
    code, out, _ = start(images)
    assert code == 0
    assert out.endswith("nothing was left to do: 48 images had been seen before; --images can be larger\n")
    assert (run_dir / "DONE").read_text() == "48\n"


@pytest.mark.parametrize(("images", "reported"), [(8, [8]), (16, [16]), (24, [16, 24]), (20, [16, 24])])
def test_the_end_is_reported_once_with_all_values(start, run_dir, images, reported):
    assert start(images)[0] == 0
    found = rows(run_dir)
    assert [row["images"] for row in found] == reported
    assert all(row.keys() >= {"loss/d", "loss/g", "d/real", "epoch"} for row in found)
    assert [row["epoch"] for row in found] == [images / 12 for images in reported]


def test_the_same_command_again_keeps_the_last_report(start, run_dir):
    assert start(24)[0] == 0
    before = rows(run_dir)
    code, out, _ = start(24)
    assert (code, "dropped" in out) == (0, False)
    assert rows(run_dir) == before
    assert start(40)[0] == 0  # a longer run has none there
    assert [row["images"] for row in rows(run_dir)] == [16, 32, 40]


def test_a_run_that_was_killed_after_its_last_checkpoint_reports_its_end(start, run_dir):
    assert start(24)[0] == 0
    before = rows(run_dir)[-1]
    (run_dir / "DONE").unlink()
    write_rows(run_dir, rows(run_dir)[:-1])
    for _ in range(2):
        assert start(24)[0] == 0
        assert [row["images"] for row in rows(run_dir)] == [16, 24]
    learnt = [name for name in before if name.startswith(("loss/", "d/", "lr/", "health/", "epoch"))]
    assert {name: rows(run_dir)[-1][name] for name in learnt} == {name: before[name] for name in learnt}


@pytest.mark.parametrize("images", [16, 24])
def test_lost_reports_are_not_made_up(start, run_dir, images):
    assert start(images)[0] == 0
    write_rows(run_dir, [])
    code, out, _ = start(images)
    assert (code, "WARNING" in out) == (0, True)
    assert [row["images"] for row in rows(run_dir)] == [24] * (images == 24)


def test_no_progress_is_more_than_all(start):
    out = start(20)[1]
    assert "--images 20: training ends at 24 images, with a complete batch\n" in out
    assert "100.0 %  24 img of 24 img  epoch 2.00  " in out
    assert "--images" not in start(32)[1]


def test_a_stream_of_unknown_length_has_no_epochs(start, run_dir):
    code, out, _ = start(24, "--data.reader", "stream")
    assert (code, "epoch" in out.partition("24 img of")[2]) == (0, False)
    assert all("epoch" not in row for row in rows(run_dir))


@pytest.mark.parametrize("where", ["/proc/run", "/proc/run/below", "FILE/run"])
def test_a_dry_run_fails_where_the_run_cannot_write(start, tmp_path, where):
    (tmp_path / "file").touch()
    place = where.replace("FILE", str(tmp_path / "file"))
    code, _, err = start(8, "--dry_run", "--run_dir", place)
    assert (code, err.startswith(f"error: --run_dir {place}: cannot be written (")) == (2, True)
    assert start(8, "--run_dir", place)[0] == 2


def test_a_dry_run_fails_where_another_job_trains(start, run_dir, monkeypatch):
    assert start(8)[0] == 0
    owner = run_dir / "owner.json"
    owner.write_text(owner.read_text().replace('"ended": true', '"ended": false'))
    monkeypatch.setattr(Lease, "_taken", lambda *_: True)
    code, _, err = start(16, "--dry_run")
    assert (code, f"error: --run_dir {run_dir}: another job is training here (" in err) == (2, True)


def test_a_dry_run_finds_changed_options_and_leaves_all_as_it_was(start, run_dir):
    assert start(8)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    assert "--model.nz 4 -> 5" in start(16, "--dry_run", "--model.nz", 5)[2]
    assert "\nresuming from " in start(16, "--dry_run")[1]
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path != run_dir} == {
        path: changed for path, changed in before.items() if path != run_dir
    }


def test_a_run_that_is_made_longer_reports_as_if_it_had_not_ended(start, run_dir, tmp_path):
    """Its last report stands until the window that it belongs to is reported as one."""
    assert start(24)[0] == 0
    assert [row["images"] for row in rows(run_dir)] == [16, 24]
    assert "1 line after 16 images dropped, because these reports are written again\n" in start(40)[1]
    assert start(40, "--run_dir", tmp_path / "straight")[0] == 0
    longer, straight = (
        [
            {name: value for name, value in row.items() if not name.startswith(("time/", "speed/", "save/"))}
            for row in each
        ]
        for each in (rows(run_dir), rows(tmp_path / "straight"))
    )
    assert longer == straight
