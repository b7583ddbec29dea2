"""Sweeps: launch/sweeps/*.yaml, slurm/sweep.sh, and trials that a real `wandb agent` starts for the stand-in server."""

import itertools
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from support.fake_wandb import Run
from support.launching import ROOT, call, environment
from support.training import TINY
from support.waiting import LIMIT, until
from support.wandb_runs import isolate, serving
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from dcgan_dist import cli
from dcgan_dist.config import Config
from dcgan_dist.config.run_groups import WandbConfig
from dcgan_dist.errors import UsageError
from dcgan_dist.run import dashboard
from dcgan_dist.run import wandb as run_wandb
from dcgan_dist.run.tracker_start import Start
from dcgan_dist.run.wandb import open_wandb
from dcgan_dist.run.wandb_key import is_stopped
from dcgan_dist.run.wandb_settings import trial_folder

SWEEPS = sorted((ROOT / "launch/sweeps").glob("*.yaml"))


def typed(command: list[str], values: dict[str, object]) -> list[str]:
    """The command line of a trial, as W&B's agent makes it."""
    macros = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    macros |= {"env": ["/usr/bin/env"]}
    words = [macros[word[2:-1]] if word.startswith("${") else [word] for word in create_sweep_command(list(command))]
    return [*itertools.chain(*words)]


def choices(parameter: dict) -> list:
    return parameter.get("values") or [parameter["min"], parameter["max"]]


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_trial_of_a_sweep_is_a_command_that_works(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load(file.read_text())
    assert sweep.keys() <= {
        "program", "command", "method", "metric", "early_terminate", "run_cap", "parameters"
    }  # fmt: skip
    every = {name: choices(parameter) for name, parameter in sweep["parameters"].items()}
    config = Config()
    for number in range(max(map(len, every.values()))):
        trial = {name: values[number % len(values)] for name, values in every.items()}
        words = typed(sweep["command"], trial)
        assert words[:3] == ["/usr/bin/env", "dcgan-dist", "launch"]
        config = cli.load(words[3:])
        for option, value in trial.items():
            group, _, name = option.rpartition(".")
            assert getattr(getattr(config, group) if group else config, name) == value
    assert config.run_dir == Path("runs") / file.stem
    reports = config.images // config.log.every
    assert sweep["early_terminate"]["min_iter"] * sweep["early_terminate"]["eta"] < reports
    panels = itertools.chain(*(section.panels for section in dashboard.SECTIONS))
    assert sweep["metric"]["name"] in itertools.chain(*(panel.scalars for panel in panels))
    assert sweep["method"] == "grid" or "run_cap" in sweep
    page = (ROOT / "docs/monitoring.md").read_text()
    assert f"| `launch/sweeps/{file.name}` |" in page


def test_there_are_the_four():
    assert [file.stem for file in SWEEPS] == ["batch", "d_every", "r1", "rates"]


def test_a_trial_has_a_folder_of_its_own(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    assert cli.load(["--run_dir", "runs/r1"]).run_dir == Path("runs/r1")
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    assert cli.load(["--run_dir", "runs/r1"]).run_dir == Path("runs/r1/s1/abc123")
    assert capsys.readouterr().out == "W&B: a trial of sweep s1, in the run folder runs/r1/s1/abc123\n"
    for wrong in ("../abc", "a/b", "..", "a b"):
        with pytest.raises(UsageError, match=r"^WANDB_RUN_ID="):
            trial_folder(Path("runs"), {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": wrong})


@pytest.fixture
def server(tmp_path, monkeypatch):
    isolate(monkeypatch, tmp_path / "home")
    for name in ("INIT_TIMEOUT", "FINISH_TIMEOUT"):
        monkeypatch.setattr(run_wandb, name, LIMIT)
    with serving(monkeypatch) as server:
        yield server


@pytest.mark.parametrize(
    ("by_the_sweep", "told"), [(True, (0, False)), (False, (75, True))], ids=["by the sweep", "by the machine"]
)
def test_a_trial_is_started_again_unless_its_sweep_has_stopped_it(by_the_sweep, told, server, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    start = Start(
        config=Config(run_dir=tmp_path, wandb=WandbConfig()), images=0, say=print, on_stop=lambda: None, environment={}
    )
    tracker = open_wandb(start)
    assert tracker is not None
    server.runs["abc123"].stop_requested = by_the_sweep
    tracker.close(exit_code=75)
    assert (server.runs["abc123"].exit_code, server.runs["abc123"].preempting) == told


@pytest.mark.parametrize("fault", ["500", "down", "401"])
def test_without_an_answer_a_trial_is_not_taken_for_stopped(fault, server):
    server.runs["abc123"] = Run("tester", "gans", "abc123", stop_requested=True)
    assert is_stopped("tester", "gans", "abc123", LIMIT)
    server.fault = fault
    assert not is_stopped("tester", "gans", "abc123", LIMIT)


@pytest.mark.dist
def test_an_agent_runs_two_trials_and_its_sweep_ends_the_second_early(server, tmp_path):
    """The second, on two ranks, would take for ever; the sweep stops it when it has reported."""
    command = [
        "${env}",
        "dcgan-dist",
        "launch",
        "--cpu",
        *TINY,
        "--wandb.mode=auto",
        "--data.faces=64",
        "--run_dir=run",
    ]
    server.sweep = yaml.safe_dump({"command": [*command, "${args}"]})
    rate = {"optimizer.d_lr": 0.001, "batch_size": 8}
    trials = {"aaaa1111": rate | {"images": 16}, "bbbb2222": rate | {"images": 10**9, "num_processes": 2}}
    left = dict(trials)

    def heartbeat(running: dict[str, bool]) -> list[dict]:
        if left and not running:
            run_id = next(iter(left))
            values = {name: {"value": value} for name, value in left.pop(run_id).items()}
            return [{"type": "run", "run_id": run_id, "program": "", "args": values}]
        second = server.runs.get("bbbb2222")
        if second and second.history:
            second.stop_requested = True
            return [{"type": "stop", "run_id": "bbbb2222"}]
        return []

    server.heartbeat = heartbeat
    soon = {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": 0.1}  # seconds; else reports arrive after 15
    done = call("wandb", "agent", "--count", 2, "tester/gans/s1", cwd=tmp_path, **server.env(), **soon)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stderr
    first, second = (server.runs[run_id] for run_id in trials)
    folders = [tmp_path / "run/s1" / run_id for run_id in trials]
    assert [json.loads((folder / "environment.json").read_text())["world_size"] for folder in folders] == [1, 2]
    assert (folders[0] / "DONE").read_text() == "16\n"
    assert (folders[1] / "PREEMPTED").exists()
    assert list((folders[1] / "checkpoints").glob("0*"))
    assert [(run.exit_code, run.preempting) for run in (first, second)] == [(0, False), (0, False)]
    assert [run.config["optimizer"]["value"]["d_lr"] for run in (first, second)] == [0.001, 0.001]
    assert first.config["optimizer.d_lr"]["value"] == 0.001  # by which W&B knows the trial


FAKE_WANDB = """#!/usr/bin/env bash
echo "$@" >called
trap 'echo TERM >>called; kill "$child"; exit 0' TERM
sleep 600 & child=$!
touch ready
wait
"""


def test_a_slurm_job_ends_its_agent_before_its_time_limit_and_requeues_itself(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in ("wandb", FAKE_WANDB), ("scontrol", '#!/usr/bin/env bash\necho "$@" >requeued\n'):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    env = environment(SLURM_SUBMIT_DIR=ROOT, SLURM_JOB_ID=7, TRIALS=3, VIRTUAL_ENV=tmp_path)
    env["PATH"] = f"{programs}:{env['PATH']}"
    script = [ROOT / "slurm/sweep.sh", "me/gans/s1"]
    with subprocess.Popen(script, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as job:
        until((tmp_path / "ready").exists)
        job.send_signal(signal.SIGUSR1)
        assert job.stdout is not None
        assert re.search("job 7: SLURM will end this job soon; requeueing", job.stdout.read())
    assert job.returncode == 0
    assert (tmp_path / "called").read_text() == "agent --forward-signals --count 3 me/gans/s1\nTERM\n"
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    wrong = subprocess.run([script[0], "s1"], env=env, capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr) == (
        2, "error: usage: sbatch slurm/sweep.sh USER/PROJECT/SWEEP, as wandb sweep prints it\n"
    )  # fmt: skip
    assert os.environ.get("SLURM_JOB_ID") is None
