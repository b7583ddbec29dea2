"""What the train loop passes on, seen through complete runs in this process."""

import json

import pytest
from support.shards import write_ours
from support.training import TINY

from dcgan_dist import train
from dcgan_dist.gan import step as gan_step

pytestmark = pytest.mark.usefixtures("as_before")


@pytest.fixture
def run(tmp_path):
    shard = write_ours(tmp_path / "a.tar", 12)

    def run(*options: str) -> list[dict]:
        argv = [*TINY, "--images", "72", "--run_dir", str(tmp_path / "run"), "--data.shards", str(shard), *options]
        assert train.main(argv) == 0
        return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    return run


def test_the_average_of_g_counts_all_images_since_its_last_update(run, monkeypatch):
    """Else its half-life would be g_every times too long."""
    seen, true = [], gan_step.ema_beta
    monkeypatch.setattr(
        gan_step, "ema_beta", lambda config, images, since: seen.append((images, since)) or true(config, images, since)
    )
    run("--optimizer.g_every", "3")
    assert seen == [(8, 24), (32, 24), (56, 24)]


def test_auto_precision_is_written_down(run, tmp_path):
    """So that a run does not go on in another arithmetic on another machine without a word."""
    run("--precision", "auto")
    assert "precision: fp32" in (tmp_path / "run" / "config.yaml").read_text()


def test_each_network_is_updated_when_it_is_due(run):
    rows = run("--optimizer.d_every", "2", "--optimizer.g_every", "3")
    assert [row["images"] for row in rows if "loss/d" in row] == [8, 24, 40, 56, 72]
    assert [row["images"] for row in rows if "loss/g" in row] == [8, 32, 56]
