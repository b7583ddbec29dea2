"""W&B's server or its client fails while two ranks train: the training is the same, and no report is lost."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import wandb_reader
from support.capture import train_and_capture
from support.fake_wandb import FakeWandb
from support.launching import call
from support.ranks import run_ranks
from support.recording import options
from support.training import before_each_iteration
from support.waiting import LIMIT

from dcgan_dist.run import wandb as run_wandb
from dcgan_dist.run.session import Session

pytestmark = [pytest.mark.dist, pytest.mark.slow]

AT = {"start": 0, "middle": 60}
OUTAGES = [("start", "slow"), ("middle", "down"), ("middle", "401"), ("middle", "slow"), ("end", "down")]
SHORT = 5.0  # seconds for a start or an end that waits in vain; what is answered takes as long as it may


def with_wandb(given: list[str], home: str, when: str, fault: str) -> tuple[int, str, str, list[dict[str, Any]]]:
    """The command on this rank; exit code, what it says, and what the server, which the main rank holds, was told."""
    assert os.environ["WORLD_SIZE"] == "2"
    os.environ |= dict.fromkeys(("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"), home)
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    run_wandb.INIT_TIMEOUT = SHORT if when == "start" else LIMIT
    run_wandb.FINISH_TIMEOUT = SHORT if when in ("middle", "end") and fault in ("down", "slow") else LIMIT
    if os.environ["RANK"] != "0":
        return *train_and_capture(given), []
    with FakeWandb() as server:
        os.environ |= server.env()

        def fail() -> None:
            if fault == "killed":
                (service,) = [child for child in psutil.Process().children() if "wandb-core" in child.name()]
                service.kill()
            else:
                server.fault = fault

        true_finish = Session.finish

        def look(session: Session) -> None:
            if session.state.images == AT.get(when):
                fail()

        def finish(self: Session, exit_code: int, stopped: int) -> None:
            if when == "end":
                fail()
            true_finish(self, exit_code, stopped)

        if when == "start":
            fail()
        Session.finish = finish
        before_each_iteration(look)
        code, out, err = train_and_capture(given)
        return code, out, err, [row for run in server.runs.values() for row in run.history]


def given(shards: str, run: Path) -> list[str]:
    return options(shards, run, "--wandb.mode online --log.every 12")


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    ends = run_ranks(2, train_and_capture, [*given(shards, run), "--wandb.mode", "disabled"])
    assert [code for code, *_ in ends] == [0, 0]
    return run


def assert_untouched(run: Path, undisturbed: Path) -> list[int]:
    """The training is complete and has the same bits; returns the images of its reports."""
    assert (run / "DONE").read_text() == "120\n"
    ours, theirs = (
        {path.name: path.read_bytes() for path in folder.glob("checkpoints/000000120/*.safetensors")}
        for folder in (run, undisturbed)
    )
    assert len(ours) == 6
    assert ours == theirs
    reports = [json.loads(line)["images"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert reports == list(range(12, 121, 12))
    return reports


def reported(rows: list[dict[str, Any]]) -> list[int]:
    return [row["images"] for row in rows if "loss/d" in row]


@pytest.mark.parametrize(("when", "fault"), OUTAGES)
def test_a_server_that_fails_costs_a_bounded_wait_and_the_rest_can_be_sent(
    when, fault, undisturbed, shards, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    ends = run_ranks(2, with_wandb, given(shards, run), str(tmp_path / "home"), when, fault)
    (code, said, errors, _), (other_code, *_) = ends
    assert (code, other_code) == (0, 0)
    assert [line for line in errors.splitlines() if not line.startswith("wandb: WARNING ")] == []
    reports = assert_untouched(run, undisturbed)
    (log,) = run.glob(f"wandb/{'offline-run' if when == 'start' else 'run'}-*/run-*.wandb")
    assert reported(wandb_reader.history(log)) == reports
    advice = f"dcgan-dist wandb sync {run}"
    assert sum(line.endswith(advice) for line in said.splitlines()) == 1, said
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    with FakeWandb() as server:  # once the other one is back, or another one
        there: dict[str, Any] = {**server.env(), "WANDB_MODE": "online"}
        done = call(sys.executable, "-m", "dcgan_dist", *advice.split()[1:], **there)
        assert done.returncode == 0, done.stderr
        (sent,) = server.runs.values()
        assert reported(sent.history) == reports
        assert f"{sent.id}\n" == (run / "wandb_id").read_text()


def test_without_its_service_the_training_goes_on(undisturbed, shards, tmp_path):
    run = tmp_path / "run"
    ends = run_ranks(2, with_wandb, given(shards, run), str(tmp_path / "home"), "middle", "killed")
    (code, said, errors, _), (other_code, *_) = ends
    assert (code, other_code, errors) == (0, 0, "")
    assert said.count("WARNING: W&B is switched off, the training goes on: ") == 1
    assert_untouched(run, undisturbed)
    (code, _, errors, rows), _ = run_ranks(
        2, with_wandb, [*given(shards, run), "--images", "144"], str(tmp_path / "home"), "never", ""
    )
    assert (code, errors) == (0, "")
    assert reported(rows) == list(range(12, 145, 12))  # the next attempt sends all
