"""What the tests of W&B share: a run's folder, a stand-in for the server, and what was printed."""

import pytest
from support.fake_wandb import FakeWandb
from support.waiting import LIMIT

from dcgan_dist.config import Config
from dcgan_dist.config.groups import WandbConfig
from dcgan_dist.run import wandb as run_wandb


@pytest.fixture
def config(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("INIT_TIMEOUT", "FINISH_TIMEOUT"):
        monkeypatch.setattr(run_wandb, name, LIMIT)
    (tmp_path / "faces").mkdir()
    yield Config(run_dir=tmp_path / "faces", wandb=WandbConfig(project="gans", tags=("fruit",), group="nightly"))
    run_wandb._end_service()


@pytest.fixture
def server(config, monkeypatch):
    with FakeWandb() as server:
        for name, value in server.env().items():
            monkeypatch.setenv(name, value)
        yield server
        run_wandb._end_service()  # the client stops before its server does


@pytest.fixture
def said():
    return []
