"""Signs of collapse: nothing is printed without one, and one warning per episode."""

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from dcgan_dist import train
from dcgan_dist.config import Config
from dcgan_dist.config.groups import LossConfig
from dcgan_dist.config.run_groups import CollapseConfig
from dcgan_dist.run import start
from dcgan_dist.run.collapse import CollapseWatch
from dcgan_dist.run.trackers import Trackers

TINY = shlex.split(
    "--model.image_size 32 --model.nz 8 --model.ngf 8 --model.ndf 8 --batch_size 16 --data.faces 256 "
    "--log.every 160 --log.samples 1 --trackers=wandb --wandb.mode disabled"
)
DEAD = shlex.split("--optimizer.g_lr 0 --optimizer.d_lr 2e-3 --collapse.reports 2")  # G never learns


class Alerts:
    name = "alerts"

    def __init__(self):
        self.checkpoints, self.best = Path(), ""
        self.texts, self.kept = [], []

    def alert(self, title, text):
        assert len(title) < 64
        self.texts.append(text)
        self.kept.append(sorted(path.name for path in self.checkpoints.iterdir()))

    def scalars(self, images, values):
        """As soon as it is there, a checkpoint is called the best."""
        if (self.checkpoints / self.best / "manifest.json").exists():
            (self.checkpoints / "best").write_text(self.best)

    def picture(self, images, name, array): ...

    def histogram(self, images, name, values): ...

    def close(self, exit_code=0): ...


@pytest.fixture
def alerts():
    return Alerts()


@pytest.fixture
def trained(tmp_path, capsys, monkeypatch, alerts, as_before):
    """Runs the command; returns its exit code, what it printed, and the records of its metrics."""
    alerts.checkpoints = tmp_path / "run" / "checkpoints"
    trackers = Trackers(print)
    trackers.start("alerts", lambda: alerts)
    monkeypatch.setattr(start, "open_trackers", lambda *_: trackers)

    def trained(*options):
        code = train.main([*TINY, "--run_dir", str(tmp_path / "run"), *map(str, options)])
        text = (tmp_path / "run" / "metrics.jsonl").read_text()
        return code, "".join(capsys.readouterr()), [json.loads(line) for line in text.splitlines()]

    return trained


def test_a_healthy_run_is_measured_and_left_in_peace(trained, alerts):
    code, text, records = trained("--images", 3200, "--collapse.after", 1600, "--collapse.reports", 2)
    assert code == 0
    assert "WARNING" not in text
    assert [text.split(":")[0] for text in alerts.texts] == ["done"]
    assert len(records) == 20
    for record in records:
        assert record["health/saturation"] == record["d/real"] - record["d/fake"]
        assert record["health/gradient_ratio"] == record["grad_norm/d"] / record["grad_norm/g"]
    first, last = records[0], records[-1]
    assert first["health/pixel_std"] < 0.01 < 0.02 < last["health/pixel_std"]  # G has learnt to make different pictures
    assert first["health/ms_ssim"] > 0.95 > last["health/ms_ssim"]


def test_a_g_that_makes_one_picture_is_reported_once(trained, alerts):
    code, text, records = trained("--images", 1600, "--collapse.after", 0, *DEAD)
    assert code == 0
    told = re.findall(r"WARNING: (.*)", text)
    assert alerts.texts[:-1] == told
    assert [line.split(":")[0] for line in told if "G's pictures" in line] == [
        f"pixels differ by only {records[1]['health/pixel_std']:.4f} of their range between G's pictures",
        f"the MS-SSIM of G's pictures is {records[1]['health/ms_ssim']:.3f}",
    ]
    assert sum("D is sure of nearly every image" in line for line in told) == 1
    assert all("--optimizer." in line for line in told)


@pytest.mark.parametrize("best", ["", "000000480"])
def test_a_collapsed_run_goes_back_to_before_and_stops_after_the_last_rollback(best, trained, alerts, tmp_path):
    alerts.best = best
    code, text, records = trained(
        *("--images", 1600, "--checkpoint.every", 160, "--checkpoint.keep", 9, "--collapse.policy", "rollback"),
        *("--collapse.after", 320, "--divergence.most_rollbacks", 1, "--checkpoint.blocking", *DEAD),
    )
    assert code == 1
    checkpoints = tmp_path / "run" / "checkpoints"
    signs = r"\((health/saturation, )?health/pixel_std, health/ms_ssim\)"
    assert re.search(f"WARNING: training has collapsed since 320 images {signs}", text)
    assert f"rollback 1 of at most 1: resuming from {checkpoints / '000000320'} with new noise" in text
    assert [r["images"] for r in records] == [160, 320, 320, 480, 640, 656]
    assert records[2]["rollback_from"] == 656
    assert re.search(f"error: training has collapsed since 320 images {signs}", text)
    # what lay behind the place is gone, for a later attempt would go on from it; these are of the second attempt
    (went_back,) = (k for k, text in enumerate(alerts.texts) if text.startswith("training has collapsed"))
    there = ["000000000", "000000160", "000000320"]
    assert alerts.kept[went_back - 1] == [*there, "000000480", "latest"]
    assert alerts.kept[went_back] == [*there, *(["000000480-left", "best"] if best else []), "latest"]
    kept = sorted(path for path in checkpoints.iterdir() if path.is_dir() and path.name.isdecimal())
    assert [path.name for path in kept] == ["000000000", "000000160", "000000320", "000000480", "000000640"]
    states = [json.loads((path / "state.json").read_text()) for path in kept]
    assert [state["rollbacks"] for state in states] == [0, 0, 0, 1, 1]
    assert states[-1]["signs"]["health/ms_ssim"] == [2, 320]  # a later attempt knows how long it has been going on


@pytest.fixture
def watch(monkeypatch):
    """Reports with given MS-SSIM, one after the other; returns how often was warned so far."""
    said = []
    config = Config(collapse=CollapseConfig(reports=3, after=2_560), loss=LossConfig(name="wasserstein"))
    world = SimpleNamespace(from_main=lambda make: make())
    state = SimpleNamespace(images=0, signs={})
    watch = CollapseWatch(config, world, state, None, said.append)  # pyright: ignore[reportArgumentType]

    def report(value, values=None):
        state.images += 2_560
        monkeypatch.setattr(watch, "_diversity", lambda: {"health/ms_ssim": value})
        measured = watch.look(values or {}, Trackers(print))
        return len(said), watch.counted(), measured

    return report


def test_an_episode_is_reported_once_and_the_next_one_again(watch):
    reports = [0.99, 0.99, 0.99, 0.5, 0.99, 0.99, 0.99, 0.99, 0.5, 0.99, 0.99, float("nan"), 0.99, 0.99, 0.99]
    told = [watch(value)[:2] for value in reports]
    # the first report is too early to count; a NaN is no sign of MS-SSIM
    assert [count for count, _ in told] == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2]
    assert told[7][1] == {"health/ms_ssim": 4 * 2_560}
    assert [bool(counted) for _, counted in told] == [False] * 6 + [True] * 2 + [False] * 6 + [True]


def test_what_means_nothing_is_not_watched(watch):
    """A critic's score is no probability; and a G that was not updated has no gradient."""
    _, _, measured = watch(0.5, {"d/real": 1.0, "d/fake": 0.0, "grad_norm/d": 1.0})
    assert measured == {"health/ms_ssim": 0.5}
    _, _, measured = watch(0.5, {"grad_norm/d": 1.0, "grad_norm/g": 4.0})
    assert measured == {"health/ms_ssim": 0.5, "health/gradient_ratio": 0.25}
