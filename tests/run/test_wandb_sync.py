"""metrics.jsonl and samples/ are the truth: whatever happens, W&B's server ends with each row and picture once."""

import contextlib
import gc
import io
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.fake_wandb import HISTORY
from support.launching import call
from support.waiting import LIMIT, until
from support.wandb_runs import points, start, the_run
from wandb.sdk.lib.module import unset_globals

from dcgan_dist import cli
from dcgan_dist.__main__ import main
from dcgan_dist.run import wandb as run_wandb
from dcgan_dist.run.grid import save_png
from dcgan_dist.run.jsonl import MetricsFile

REPORT, PICTURE, CHECKPOINT = 10, 30, 50  # images between two
SETTINGS, ASK = run_wandb._settings, run_wandb.ask


@pytest.fixture(autouse=True)
def _prompt(monkeypatch):
    """W&B sends every second instead of every 15, and tries again soon; it takes integers only, 0 is the default."""
    soon = {
        "x_file_stream_transmit_interval": 1,
        "x_file_stream_retry_wait_min_seconds": 1,
        "x_file_stream_retry_wait_max_seconds": 1,
        "x_file_transfer_retry_wait_min_seconds": 1,
        "x_file_transfer_retry_wait_max_seconds": 1,
        "x_graphql_retry_wait_min_seconds": 1,
        "x_graphql_retry_wait_max_seconds": 1,
    }
    monkeypatch.setattr(run_wandb, "_settings", lambda *given: SETTINGS(*given) | soon)


def offline(config):
    return replace(config, wandb=replace(config.wandb, mode="offline"))


def picture(images):
    return np.full((4, 6, 3), images % 251, np.uint8)


class Training:
    """Reports, pictures and checkpoints as a training has them: first in the folder, then for the trackers."""

    def __init__(self, config, said):
        self.config, self.said, self.seen = config, said, 0
        self.metrics = MetricsFile(config.run_dir / "metrics.jsonl")
        (config.run_dir / "samples").mkdir()
        save_png(picture(5), config.run_dir / "real.png")
        (config.run_dir / "config.yaml").write_text(cli.dump(config))

    def begin(self, mode="online"):
        """An attempt, from the last checkpoint."""
        self.seen -= self.seen % CHECKPOINT
        self.metrics.cut_after(self.seen)
        self.tracker = start(self.config if mode == "online" else offline(self.config), self.said, images=self.seen)

    def train(self, to):
        for images in range(self.seen + REPORT, to + 1, REPORT):
            values = {"loss/d": images / 7, "loss/g": float("nan") if images == 70 else 0.5}
            self.metrics.append({"images": images, **values})
            self.tracker.scalars(images, values)
            if images % PICTURE == 0:
                self.tracker.picture(0, "real", picture(5))
                save_png(picture(images), self.config.run_dir / "samples" / f"{images:09d}.png")
                self.tracker.picture(images, "samples", picture(images))
        self.seen = to

    def kill(self):
        """What the killed process had not sent never arrives, and its lock is free."""
        if self.tracker._held is not None:
            os.close(self.tracker._held)
        running = [each for each in gc.get_objects() if type(each) is subprocess.Popen and each.poll() is None]
        (service,) = [each for each in running if "wandb-core" in str(each.args)]
        service.kill()
        service.wait()
        with contextlib.suppress(ConnectionError):
            run_wandb._end_service()
        unset_globals()  # as a new process has them


@pytest.fixture
def training(config, said):
    return Training(config, said)


def assert_complete(server, config):
    """Each row and each picture of the folder is on the server, and nothing is there twice."""
    run = the_run(server)
    lines = (config.run_dir / "metrics.jsonl").read_text().splitlines()
    expected = [(record["images"], record["loss/d"]) for record in map(json.loads, lines)]
    assert sorted(points(run.history, "loss/d")) == expected
    real = [value for images, value in points(run.history, "real") if images == 0]
    assert [value["caption"] for value in real] == ["real images"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(run.uploads[real[0]["path"]]))), picture(5))
    saved = sorted(int(path.stem) for path in (config.run_dir / "samples").iterdir())
    sent = sorted((images, value["path"]) for images, value in points(run.history, "samples"))
    assert [images for images, _ in sent] == saved
    for images, path in sent:
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(run.uploads[path]))), picture(images))
    steps = [row["_step"] for row in run.history]
    assert len(set(steps)) == len(steps)
    assert sorted(run.streams[HISTORY]) == list(range(len(steps)))
    assert (run.summary["images"], run.summary["loss/d"]) == expected[-1]


def arrived(server):
    return sum(len(run.history) for run in server.runs.values())


def uploaded(server):
    """Whether each picture that the server has a row of has its file."""
    return all(
        value["path"] in run.uploads for run in server.runs.values() for _, value in points(run.history, "samples")
    )


@pytest.mark.parametrize("last", ["online", "offline"])
def test_killed_at_ten_random_moments_nothing_is_lost_or_double(last, config, server, training, monkeypatch):
    """Online, offline, and with a server that is away when the process is killed."""
    chance = random.Random(last)
    for attempt in range(10):
        kind = chance.choice(["online", "offline", "outage"])
        before = arrived(server)
        training.begin("offline" if kind == "offline" else "online")
        training.train(training.seen + REPORT * chance.randint(0, 8))
        if kind != "offline":
            wanted = before + int(chance.random() * training.tracker._logged)
            until(lambda wanted=wanted: arrived(server) >= wanted)
        server.fault = "down" if kind == "outage" else None
        training.train(training.seen + REPORT * chance.randint(1, 4))
        training.kill()
        server.fault = None
        assert training.seen > 0, attempt
    training.begin(last)
    training.train(training.seen + 100)
    training.tracker.close()
    if last == "offline":
        assert main(["wandb", "sync", str(config.run_dir)]) == 0
    assert_complete(server, config)


def test_an_outage_that_ends_costs_nothing(config, server, training):
    training.begin()
    training.train(100)
    until(lambda: arrived(server) > 3)
    for fault in ("down", "500"):
        server.fault = fault
        training.train(training.seen + 50)
        server.fault = None
        training.train(training.seen + 50)
    training.tracker.close()
    assert_complete(server, config)


@pytest.mark.parametrize("fault", ["down", "401"])
def test_what_an_outage_took_for_good_is_sent_by_the_command(fault, config, server, training, monkeypatch, said):
    with monkeypatch.context() as patch:
        patch.setattr(run_wandb, "FINISH_TIMEOUT", 2.0)
        training.begin()
    training.train(100)
    until(lambda: arrived(server) > 3)
    server.fault = fault
    training.train(200)
    training.tracker.close()
    assert said[-1] == (
        f"WARNING: W&B: not everything has arrived on the server; the rest: dcgan-dist wandb sync {config.run_dir}"
    )
    server.fault = None
    assert main(["wandb", "sync", str(config.run_dir)]) == 0
    assert_complete(server, config)
    rows = the_run(server).history
    assert main(["wandb", "sync", str(config.run_dir)]) == 0
    assert the_run(server).history == rows
    assert_complete(server, config)


def wandb_sync(server, *given):
    """W&B's own command."""
    done = call(Path(sys.executable).with_name("wandb"), "sync", *given, **server.env(), WANDB_MODE="online")
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_attempts_that_were_kept_offline_are_sent_once_also_beside_the_command_of_wandb(config, server, training):
    for to in (100, 200, 300):
        training.begin("offline")
        training.train(to)
        training.tracker.close()
    first, second, _ = sorted(config.run_dir.glob("wandb/offline-run-*"))
    wandb_sync(server, second)
    wandb_sync(server, first)
    assert len({row["_step"] for row in the_run(server).history}) == arrived(server) > 20
    assert main(["wandb", "sync", str(config.run_dir)]) == 0
    assert_complete(server, config)
    assert "Skipped 4 synced run(s)" in wandb_sync(server, "--include-online", config.run_dir / "wandb")
    assert_complete(server, config)


def test_a_picture_whose_file_was_lost_is_uploaded_again_without_a_new_row(config, server, training):
    training.begin()
    training.train(100)
    training.tracker.close()
    run = the_run(server)
    path = dict(points(run.history, "samples"))[60]["path"]
    del run.uploads[path]
    training.begin()
    training.train(110)
    training.tracker.close()
    assert_complete(server, config)


def test_a_server_that_shows_rows_late_is_waited_for(config, server, training):
    training.begin()
    training.train(100)
    training.tracker.close()
    server.behind = 2
    training.begin()
    training.train(150)
    training.tracker.close()
    assert server.behind == 0
    assert_complete(server, config)


@pytest.mark.parametrize("fault", ["silent", "unknown"])
def test_without_the_history_of_the_server_what_follows_its_newest_row_is_sent(
    fault, config, server, training, said, monkeypatch
):
    training.begin()
    training.train(100)
    # nothing is on its way: which pictures have a row and no file only the history shows
    until(lambda: arrived(server) == training.tracker._logged and uploaded(server))
    server.fault = "down"
    training.train(100 + 3 * PICTURE)
    training.kill()
    server.fault = None
    getattr(server, fault).add("HistoryPage")
    monkeypatch.setattr(run_wandb, "ask", lambda run, _: ASK(run, 1.0))
    training.begin()
    training.train(300)
    training.tracker.close()
    assert_complete(server, config)
    assert sum("the server did not list its reports" in line for line in said) == 1


def test_what_the_folder_knows_of_the_environment_arrives_but_not_host_and_command(config, server, training):
    known = {"git_commit": "abc", "git_dirty": True, "packages": {"torch": "2.99"}, "devices": ["H200"]}
    hidden = {"machine": "host7", "command": ["train.py", "x7"], "slurm_job": "job7"}
    (config.run_dir / "environment.json").write_text(json.dumps(known | hidden))
    training.metrics.append({"images": 10, "loss/d": 0.5})
    assert main(["wandb", "sync", str(config.run_dir)]) == 0
    assert the_run(server).config["environment"]["value"] == known
    everything = b"\n".join(server.received)
    assert not any(word in everything for word in (b"host7", b"x7", b"job7"))


def test_it_is_sent_to_where_it_is_whatever_the_variables_of_this_shell(config, server, training, monkeypatch):
    training.begin()
    training.train(50)
    training.tracker.close()
    place = the_run(server).entity, the_run(server).project
    training.metrics.append({"images": 60, "loss/d": 60 / 7})
    monkeypatch.setenv("WANDB_PROJECT", "another")
    monkeypatch.setenv("WANDB_ENTITY", "somebody")
    assert main(["wandb", "sync", str(config.run_dir)]) == 0
    assert (the_run(server).entity, the_run(server).project) == place
    assert_complete(server, config)


def test_a_run_that_was_deleted_on_the_server(config, server, training, said, monkeypatch):
    training.begin()
    training.train(50)
    training.tracker.close()
    server.deleted.add(the_run(server).id)
    monkeypatch.setattr(run_wandb, "INIT_TIMEOUT", 2.0)
    training.begin()
    training.train(100)
    training.tracker.close()
    (line,) = [line for line in said if "kept offline" in line]
    assert line.endswith(f"deleted; without {config.run_dir / 'wandb_id'} a new run begins")
    (config.run_dir / "wandb_id").unlink()
    server.runs.clear()
    monkeypatch.setattr(run_wandb, "INIT_TIMEOUT", LIMIT)
    assert main(["wandb", "sync", str(config.run_dir)]) == 0
    assert_complete(server, config)


@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [
        ("no run", 2, "not a run folder: config.yaml is missing"),
        ("no folder", 2, "RUN is missing: a run's folder, such as runs/dcgan"),
        ("training", 2, "another job is training here"),
        ("401", 1, "W&B: "),
        ("down", 1, "W&B: "),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(fault, code, line, config, server, training, capsys, monkeypatch):
    training.metrics.append({"images": 10, "loss/d": 0.5})
    monkeypatch.setattr(run_wandb, "INIT_TIMEOUT", 1.0)
    monkeypatch.setattr("dcgan_dist.run.lease.GRACE", 0.0)
    server.fault = fault if fault in ("401", "down") else None
    given = {"no run": [str(config.run_dir / "samples")], "no folder": []}.get(fault, [str(config.run_dir)])
    with trains_in(config.run_dir) if fault == "training" else contextlib.nullcontext():
        assert main(["wandb", "sync", *given]) == code
    (error,) = capsys.readouterr().err.splitlines()
    assert line in error


OWNER = "import sys; from pathlib import Path; from dcgan_dist.run.lease import Lease; Lease(Path(sys.argv[1])).take()"


@contextlib.contextmanager
def trains_in(folder):
    """Another process has the run."""
    command = [sys.executable, "-c", f"{OWNER}; print(flush=True); sys.stdin.read()", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        yield
        other.kill()
