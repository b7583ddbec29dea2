"""What the tests of W&B share: a run's folder, a stand-in for the server, and what was printed."""

import pytest
from support.waiting import LIMIT
from support.wandb_runs import isolate, serving

from dcgan_dist.config import Config
from dcgan_dist.config.run_groups import WandbConfig
from dcgan_dist.run import wandb as run_wandb


@pytest.fixture
def config(tmp_path, monkeypatch):
    isolate(monkeypatch, tmp_path / "home")
    for name in ("INIT_TIMEOUT", "FINISH_TIMEOUT"):
        monkeypatch.setattr(run_wandb, name, LIMIT)
    (tmp_path / "faces").mkdir()
    yield Config(run_dir=tmp_path / "faces", wandb=WandbConfig(project="gans", tags=("fruit",), group="nightly"))
    run_wandb._end_service()


@pytest.fixture
def server(config, monkeypatch):
    with serving(monkeypatch) as server:
        yield server


@pytest.fixture
def said():
    return []
