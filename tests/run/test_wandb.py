"""W&B against a stand-in for its server, with the real client."""

import asyncio
import io
import json
import shutil
import subprocess
import sys
import threading
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import wandb_reader
from support.fake_wandb import Run
from support.shards import write_ours
from support.waiting import LIMIT
from support.wandb_runs import beginning, points, start, the_run

from dcgan_dist import cli
from dcgan_dist.config.groups import DataConfig, OptimizerConfig
from dcgan_dist.config.run_groups import ResumeConfig, WandbConfig
from dcgan_dist.run import wandb as run_wandb
from dcgan_dist.run import wandb_folder
from dcgan_dist.run.jsonl import MetricsFile
from dcgan_dist.run.session import Session
from dcgan_dist.run.trackers import Trackers
from dcgan_dist.run.wandb import open_wandb
from dcgan_dist.run.wandb_key import resolve_mode
from dcgan_dist.run.wandb_settings import FIXED
from dcgan_dist.train import main

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def test_a_run_arrives_complete(config, server, said):
    tracker = start(config, said, environment={"torch": "2.99"})
    for images in (0, 128, 256):
        tracker.scalars(images, {"loss/d": images / 512, "d/real": 0.5})
    tracker.picture(256, "samples", PICTURE)
    tracker.histogram(256, "g/weights", np.array([[0.0, 1.0], [np.nan, 3.0]]))
    tracker.close()
    run = the_run(server)
    assert (run.project, run.group, run.tags, run.display_name) == ("gans", "nightly", ["fruit"], "faces")
    assert run.config["model"]["value"] == {
        "image_size": 64, "channels": 3, "nz": 100, "ngf": 64, "ndf": 64, "output": "tanh", "latent": "gaussian",
        "d_norm": "batch", "spectral_norm": False,
    }  # fmt: skip
    assert run.config["environment"]["value"] == {"torch": "2.99"}
    assert points(run.history, "loss/d") == [(0, 0), (128, 0.25), (256, 0.5)]
    assert points(run.history, "d/real") == [(0, 0.5), (128, 0.5), (256, 0.5)]
    ((images, sent),) = points(run.history, "samples")
    assert images == 256
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(run.uploads[sent["path"]]))), PICTURE)
    ((images, histogram),) = points(run.history, "g/weights")
    assert (images, sum(histogram["values"]), histogram["bins"][0], histogram["bins"][-1]) == (256, 3, 0, 3)
    assert (run.complete, run.exit_code, run.preempting) == (True, 0, False)
    assert said == ["W&B: online (WANDB_API_KEY is set)", f"W&B: {server.url}/tester/gans/runs/{run.id}"]


def test_pixels_are_counted_by_whole_values_and_outputs_in_their_own_range(config, server, said):
    """Of 256 pixel values, each once, no bin is empty and none has more than others."""
    tracker = start(config, said)
    tracker.histogram(128, "samples/pixels", np.arange(256, dtype=np.uint8).reshape(16, 16))
    tracker.histogram(128, "samples/pixels/dark", np.full((2, 3), 7, np.uint8))
    tracker.histogram(128, "logit/real_histogram", np.linspace(-3, 5, 128))
    tracker.close()
    ((_, pixels),) = points(the_run(server).history, "samples/pixels")
    assert pixels["values"] == [4] * 64
    assert (pixels["bins"][0], pixels["bins"][-1]) == (0, 256)
    ((_, dark),) = points(the_run(server).history, "samples/pixels/dark")
    assert {at: count for at, count in zip(dark["bins"], dark["values"], strict=False) if count} == {4: 6}
    ((_, outputs),) = points(the_run(server).history, "logit/real_histogram")
    assert (outputs["values"], outputs["bins"][0], outputs["bins"][-1]) == ([2] * 64, -3, 5)


def test_the_summary_has_the_last_and_the_best_values_of_all_attempts(config, server, said):
    metrics = MetricsFile(config.run_dir / "metrics.jsonl")
    for begin, rows in ((0, [(100, 0.5, 40), (200, 0.25, 50)]), (200, [(300, float("nan"), 45), (400, 0.75, 30)])):
        tracker = start(config, said, images=begin)
        for images, alike, speed in rows:
            values = {"health/ms_ssim": alike, "speed/images_per_second": speed}
            metrics.append({"images": images, **values})
            tracker.scalars(images, values)
        tracker.close()
    summary = the_run(server).summary
    assert (summary["health/ms_ssim"], summary["speed/images_per_second"], summary["images"]) == (0.75, 30, 400)
    assert (summary["best/health/ms_ssim"], summary["best_images/health/ms_ssim"]) == (0.25, 200)
    assert (summary["best/speed/images_per_second"], summary["best_images/speed/images_per_second"]) == (50, 200)


def test_an_alert_arrives_without_secrets(config, server, said):
    tracker = start(config, said)
    tracker.alert("The training may have collapsed", "G makes one picture of https://me:secret7@host/x.tar")
    tracker.close()
    (alert,) = the_run(server).alerts
    assert {name: alert[name] for name in ("title", "text", "severity")} == {
        "title": "The training may have collapsed", "text": "G makes one picture of https://host/x.tar",
        "severity": "WARN"
    }  # fmt: skip


def test_images_are_the_x_axis_of_everything(config, server, said):
    tracker = start(config, said)
    tracker.scalars(128, {"loss/d": 0.5})
    tracker.close()
    metrics = the_run(server).config["_wandb"]["value"]["m"]
    # numbers of protobuf fields: 1 name, 2 pattern, 5 the place of the x axis in this list, counted from 1
    axes = {metric.get("1") or metric.get("2"): metrics[metric["5"] - 1]["1"] for metric in metrics if "5" in metric}
    assert (axes.get("loss/d") or axes.get("*")) == "images"  # wandb < 0.31 applies the pattern itself


def test_a_resumed_run_goes_on_without_gap_or_double(config, server, said):
    tracker = start(config, said)
    for images in (0, 100, 200, 300):
        tracker.scalars(images, {"loss/g": images / 100})
    tracker.picture(300, "samples", PICTURE)
    tracker.close(exit_code=75)
    run = the_run(server)
    assert (run.exit_code, run.preempting) == (75, True)
    run.display_name, run.tags = "by hand", ["good"]

    tracker = start(replace(config, optimizer=OptimizerConfig(g_lr=1e-3)), said)  # from a checkpoint at 100
    for images in (200, 300, 400):
        tracker.scalars(images, {"loss/g": images / 100})
    tracker.picture(200, "samples", PICTURE)
    tracker.picture(400, "samples", PICTURE)
    tracker.close()
    run = the_run(server)
    assert points(run.history, "loss/g") == [(0, 0), (100, 1), (200, 2), (300, 3), (400, 4)]
    assert [images for images, _ in points(run.history, "samples")] == [300, 200, 400]
    assert run.config["optimizer"]["value"]["g_lr"] == 1e-3
    assert (run.display_name, run.tags, run.exit_code) == ("by hand", ["good"], 0)
    assert (config.run_dir / "wandb_id").read_text() == f"{run.id}\n"


@pytest.mark.parametrize("fault", ["down", "401", "403"])
def test_a_dead_server_at_the_start_makes_the_run_offline(config, server, said, fault, monkeypatch):
    monkeypatch.setattr(run_wandb, "INIT_TIMEOUT", 2.0)
    server.fault = fault
    tracker = start(config, said)
    tracker.scalars(0, {"loss/d": 1.0})
    tracker.scalars(10, {"loss/d": 2.0})
    tracker.close()
    (log,) = config.run_dir.glob("wandb/offline-run-*/run-*.wandb")
    assert points(wandb_reader.history(log), "loss/d") == [(0, 1), (10, 2)]
    assert said[1].startswith("WARNING: W&B: this attempt is kept offline: ")
    assert "\n" not in said[1]
    assert said[2] == f"W&B: to send this attempt later: dcgan-dist wandb sync {config.run_dir}"
    assert log.stem == f"run-{(config.run_dir / 'wandb_id').read_text().strip()}"


def test_a_server_that_dies_costs_a_bounded_wait_and_no_data(config, server, said, monkeypatch):
    monkeypatch.setattr(run_wandb, "FINISH_TIMEOUT", 5.0)
    tracker = start(config, said)
    server.fault = "down"
    for images in range(50):
        tracker.scalars(images, {"loss/d": 0.5})
    tracker.close()  # returns, although the server never does
    (log,) = config.run_dir.glob("wandb/run-*/run-*.wandb")
    assert len(points(wandb_reader.history(log), "loss/d")) == 50
    rest = f"dcgan-dist wandb sync {config.run_dir}"
    assert said[-1] == f"WARNING: W&B: not everything has arrived on the server; the rest: {rest}"


SERVICE_DIES = """
import sys
from pathlib import Path
import psutil
from dcgan_dist.config import Config
from dcgan_dist.run import wandb
from dcgan_dist.run.tracker_start import Start
from dcgan_dist.run.trackers import Trackers
from dcgan_dist.run.wandb import open_wandb
from dcgan_dist.run.wandb_folder import hold

wandb.INIT_TIMEOUT = 600
trackers = Trackers(print)
start = Start(config=Config(run_dir=Path(sys.argv[1])), images=0, say=print, on_stop=lambda: None, environment={})
trackers.start("W&B", lambda: open_wandb(start))
(service,) = psutil.Process().children()
service.kill()
service.wait()
for images in range(50):
    trackers.scalars(images, {"loss/d": 0.5})
trackers.close()
print("free" if hold(Path(sys.argv[1])) else "held")
"""


def test_the_death_of_its_service_process_never_reaches_the_training(config, server):
    command = [sys.executable, "-c", SERVICE_DIES, str(config.run_dir)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    *_, last, lock = result.stdout.splitlines()
    assert lock == "free"
    assert last.startswith("WARNING: W&B is switched off, the training goes on: ")
    assert (result.returncode, result.stdout.count("switched off"), result.stderr) == (0, 1, "")


def test_the_stop_button_calls_back(config, server, said, monkeypatch):
    monkeypatch.setattr("wandb.sdk.lib.run_stopping._SLEEP", lambda _: asyncio.sleep(0.05), raising=False)  # not 15 s
    (config.run_dir / "wandb_id").write_text("stopme\n")
    server.runs["stopme"] = Run("tester", "gans", "stopme", stop_requested=True)
    stopped = threading.Event()
    tracker = start(config, said, on_stop=stopped.set)
    assert stopped.wait(LIMIT)
    tracker.close()


def test_nothing_secret_leaves(config, server, said, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--hf_token", "hush0"])
    monkeypatch.setenv("HF_TOKEN", "hush1")
    monkeypatch.setenv("WANDB_SAVE_CODE", "true")
    monkeypatch.setattr("socket.gethostname", lambda: "hush5")
    shards = (
        "https://me:hush2@host/a.tar",
        "https://host/b.tar?X-Amz-Signature=hush3&x=1",
        "pipe:curl -u hush4 u",
    )
    data = DataConfig(shards=shards, reader="stream", allow_pipe=True)
    tracker = start(replace(config, data=data), said, environment={"device": "cpu"})
    tracker.scalars(0, {"loss/d": 1.0})
    print("hush6")
    tracker.close()
    shown = ["https://host/a.tar", "https://host/b.tar", "pipe:curl ..."]
    assert the_run(server).config["data"]["value"]["shards"] == shown
    assert the_run(server).uploads.keys() == {"config.yaml", "wandb-summary.json"}
    everything = b"\n".join(server.received)
    assert the_run(server).about["program"] == "dcgan_dist.train"
    assert the_run(server).about.keys().isdisjoint({"host", "commit", "repo"})
    assert the_run(server).config["environment"]["value"] == {"device": "cpu"}
    for leak in (b"hush", b"train.py", b"def test_nothing_secret_leaves"):
        assert leak not in everything


def test_offline_can_be_read_back(config, said):
    config = replace(config, wandb=replace(config.wandb, mode="offline"))
    for attempt in (0, 1):
        tracker = start(config, said)
        tracker.scalars(100 * attempt, {"loss/d": float(attempt)})
        tracker.picture(100 * attempt, "samples", PICTURE + np.uint8(attempt))
        tracker.close()
    logs = sorted(config.run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    rows = [row for log in logs for row in wandb_reader.history(log)]
    assert len(logs) == 2
    assert len({log.name for log in logs}) == 1  # one run on the server, when both are sent
    assert points(rows, "loss/d") == [(0, 0), (100, 1)]
    for attempt, log in enumerate(logs):
        (picture,) = log.parent.glob("files/media/images/*.png")
        np.testing.assert_array_equal(np.asarray(Image.open(picture)), PICTURE + np.uint8(attempt))


def test_online_without_a_key_becomes_offline(config, said):
    config = replace(config, wandb=replace(config.wandb, mode="online"))
    tracker = start(config, said)
    tracker.scalars(0, {"loss/d": 1.0})
    tracker.close()
    (log,) = config.run_dir.glob("wandb/offline-run-*/run-*.wandb")
    assert points(wandb_reader.history(log), "loss/d") == [(0, 1)]


def test_an_old_client_is_one_line_that_says_what_to_install(config, said, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.16.6")
    assert open_wandb(beginning(replace(config, wandb=replace(config.wandb, mode="offline")), said)) is None
    assert said[1:] == [
        f"WARNING: W&B is off: wandb 0.16.6 is too old; pip install 'wandb>={run_wandb.OLDEST}', and later "
        f"dcgan-dist wandb sync {config.run_dir}"
    ]
    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        assert f"wandb>={run_wandb.OLDEST}" in tomllib.load(file)["project"]["dependencies"]


def test_disabled_writes_nothing(config, said):
    assert open_wandb(beginning(config, said)) is None
    assert list(config.run_dir.iterdir()) == []
    assert said == ["W&B: disabled (no API key; `wandb login` or --wandb.mode offline turns it on)"]


@pytest.mark.parametrize(
    ("mode", "env", "expected", "reason"),
    [
        (
            "offline",
            {"WANDB_MODE": "online", "WANDB_API_KEY": "k"},
            "offline",
            "--wandb.mode offline, not WANDB_MODE=online",
        ),
        ("auto", {"WANDB_MODE": "offline", "WANDB_API_KEY": "k"}, "offline", "WANDB_MODE=offline"),
        ("auto", {"WANDB_MODE": "dryrun"}, "offline", "WANDB_MODE=dryrun"),
        ("auto", {"WANDB_MODE": "on"}, "disabled", "WANDB_MODE=on is none of online, offline, disabled, run, dryrun"),
        ("auto", {"WANDB_IDENTITY_TOKEN_FILE": "f"}, "online", "WANDB_IDENTITY_TOKEN_FILE is set"),
        ("auto", {"WANDB_API_KEY": ""}, "disabled", "no API key; `wandb login` or --wandb.mode offline turns it on"),
    ],
)
def test_modes(mode, env, expected, reason):
    assert resolve_mode(WandbConfig(mode=mode), {"HOME": "/nowhere"} | env) == (expected, reason)


def test_a_stored_key_is_found_for_its_host_only(tmp_path):
    stored = tmp_path / ".netrc"
    stored.write_text("machine api.wandb.ai login user password k\nmachine lab:8080 login user password k\n")
    home = {"HOME": str(tmp_path)}
    assert resolve_mode(WandbConfig(), home) == ("online", f"{stored} has a key for api.wandb.ai")
    lab = {"WANDB_BASE_URL": "http://lab:8080"}
    assert resolve_mode(WandbConfig(), home | lab) == ("online", f"{stored} has a key for lab:8080")
    assert resolve_mode(WandbConfig(), home | {"WANDB_BASE_URL": "http://elsewhere"})[0] == "disabled"
    assert resolve_mode(WandbConfig(), {"HOME": "/nowhere", "NETRC": str(stored)})[0] == "online"
    stored.write_text("machine without\nend")
    assert resolve_mode(WandbConfig(), home)[0] == "disabled"


@pytest.mark.usefixtures("as_before")
def test_a_stopped_run_goes_on_as_the_same_run(config, server, tmp_path, monkeypatch):
    """Through the whole command: one run on the server, no report twice, and its hours go on."""
    shard = write_ours(tmp_path / "a.tar", 12)
    given = (
        f"--run_dir {config.run_dir} --data.shards {shard} --wandb.mode online --model.image_size 32 --model.nz 4 "
        "--model.ngf 4 --model.ndf 4 --batch_size 8 --images 160 --data.workers 1 --log.every 8 --log.samples 1 "
        "--trackers=wandb"
    ).split()
    report = Session.report

    def report_and_stop(attempt):
        report(attempt)
        (config.run_dir / "STOP").touch()

    with monkeypatch.context() as patch:
        patch.setattr(Session, "report", report_and_stop)
        assert main(given) == 75
    run, stopped_at = the_run(server), int((config.run_dir / "PREEMPTED").read_text().split()[0])
    assert (run.exit_code, run.preempting) == (75, True)
    assert 0 < stopped_at < 160
    assert main(given) == 0
    run = the_run(server)
    hours = points(run.history, "time/run_hours")
    assert [images for images, _ in hours] == list(range(8, 161, 8))
    assert [hour for _, hour in hours] == sorted({hour for _, hour in hours})
    assert (run.exit_code, (config.run_dir / "wandb_id").read_text()) == (0, f"{run.id}\n")


# ---- W&B's own settings

OTHERWISE = {"true": "false"}  # else any value differs from what is fixed


def test_what_the_variables_ask_for_arrives(config, server, said, monkeypatch, tmp_path):
    asked = {
        "WANDB_PROJECT": "thesis", "WANDB_ENTITY": "us", "WANDB_NAME": "trial-7", "WANDB_TAGS": "a,b",
        "WANDB_NOTES": "the third", "WANDB_JOB_TYPE": "search", "WANDB_RUN_GROUP": "sizes", "WANDB_RUN_ID": "run7",
        "WANDB_DIR": str(tmp_path / "else"),
    }  # fmt: skip
    (tmp_path / "else").mkdir()
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    start(cli.load(["--run_dir", str(config.run_dir)]), said).close()
    run = the_run(server)
    assert (run.entity, run.project, run.id, run.display_name) == ("us", "thesis", "run7", "trial-7")
    assert (sorted(run.tags), run.group) == (["a", "b"], "sizes")
    assert (run.about["notes"], run.about["jobType"]) == ("the third", "search")
    assert {path.name for path in config.run_dir.iterdir()} == {"wandb_id", "wandb_folder.json", ".wandb.lock"}
    assert list((tmp_path / "else" / "wandb").glob("run-*-run7"))


def test_name_notes_and_job_type_are_those_of_a_new_run(config, server, said):
    wandb = replace(config.wandb, name="first try", notes="with R1", job_type="search")
    start(replace(config, wandb=wandb), said).close()
    run = the_run(server)
    assert (run.display_name, run.about["notes"], run.about["jobType"]) == ("first try", "with R1", "search")
    start(replace(config, wandb=replace(wandb, name="second try")), said).close()
    assert the_run(server).display_name == "first try"
    assert said[-1] == "W&B: --wandb.name second try: not used, the run is first try; rename it in W&B"


def test_reports_of_an_earlier_attempt_with_other_options_are_named(config, server, said):
    tracker = start(config, said)
    for images in (100, 200, 300):
        tracker.scalars(images, {"loss/g": 0.5})
    tracker.close()
    changed = replace(config, resume=ResumeConfig(allow_changes=("optimizer.g_lr",)))
    del said[:]
    start(changed, said, images=300).close()
    assert not any("earlier attempt" in line for line in said)
    start(changed, said, images=100).close()
    assert said[-1] == (
        "WARNING: W&B: from 100 to 300 images the server keeps the reports of an earlier attempt, with its values of "
        "optimizer.g_lr; metrics.jsonl has those of this one"
    )


def test_what_is_not_used_has_no_effect_and_is_reported(config, server, said, monkeypatch):
    for name in FIXED:
        monkeypatch.setenv(name, OTHERWISE.get(FIXED[name], "7"))
    monkeypatch.setenv("WANDB_RESUME", "must")
    monkeypatch.setenv("WANDB_FORK_FROM", "other?_step=3")
    monkeypatch.setenv("WANDB_PROJECT", "thesis")
    start(config, said).close()
    assert the_run(server).project == "gans"
    assert {name for name in FIXED if any(f"W&B: {name}=" in line for line in said)} == set(FIXED)
    assert "W&B: WANDB_PROJECT=thesis: not used, because --wandb.project is given" in said


def test_a_run_that_goes_on_keeps_its_id_and_what_was_renamed_by_hand(config, server, said, monkeypatch):
    start(config, said).close()
    run = the_run(server)
    begun = run.id
    run.display_name, run.tags = "by hand", ["best"]
    for name, value in {"WANDB_RUN_ID": "other", "WANDB_NAME": "trial-8", "WANDB_TAGS": "a"}.items():
        monkeypatch.setenv(name, value)
    start(config, said).close()
    run = the_run(server)
    assert (run.id, run.display_name, run.tags) == (begun, "by hand", ["best"])
    assert f"W&B: WANDB_RUN_ID=other: not used, this folder's run is {begun}" in said


def test_an_id_that_is_none_switches_wandb_off_and_leaves_the_folder_free(config, server, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "a/b")
    said = []
    trackers = Trackers(said.append)
    trackers.start("W&B", lambda: open_wandb(beginning(config, said)))
    assert "Run ID cannot contain" in said[-1]
    assert server.runs == {}
    assert not (config.run_dir / "wandb_id").exists()


# ---- whose run it is


@pytest.fixture
def known(config):
    """The W&B run of the folder, and whether it began now, in lines of what was said."""

    def known(folder=config.run_dir):
        said = []
        run, new, _ = wandb_folder.run_id(folder, said.append)
        return run, new, said

    return known


def test_a_copy_of_the_folder_is_a_run_of_its_own(config, known, tmp_path):
    first, new, said = known()
    assert (new, said) == (True, [])
    shutil.copytree(config.run_dir, tmp_path / "copy")
    second, new, said = known(tmp_path / "copy")
    assert (second != first, new) == (True, True)
    assert said == [
        f"W&B: this folder is a copy of {config.run_dir}, whose run is {first}; its own is {second}. If it was moved "
        f"from another disk: stop, write {first} into {tmp_path / 'copy' / 'wandb_id'}, and start again"
    ]
    assert known(tmp_path / "copy") == (second, False, [])
    assert known() == (first, False, [])
    (tmp_path / "copy" / "wandb_id").write_text(f"{first}\n")
    assert known(tmp_path / "copy") == (first, False, [])


def test_a_folder_that_moved_or_came_back_keeps_its_run(config, known, tmp_path):
    first, _, _ = known()
    moved = config.run_dir.rename(tmp_path / "moved")
    assert known(moved) == (first, False, [])
    shutil.copytree(moved, tmp_path / "backup")
    shutil.rmtree(moved)
    (tmp_path / "keeps the inode").mkdir()
    shutil.copytree(tmp_path / "backup", moved)
    assert known(moved) == (first, False, [])
    link = tmp_path / "link"
    link.symlink_to(moved)
    assert known(link) == (first, False, [])


def begun(said):
    return [line for line in said if "it begins now, with the earlier reports" in line]


def placed(config, **changes):
    return replace(config, wandb=replace(config.wandb, **changes))


@pytest.mark.parametrize("changes", [{"project": "thesis"}, {"entity": "us"}])
def test_a_run_that_goes_on_in_another_project_begins_there_and_says_so(changes, config, server, said):
    """By another option, or by the same command where a variable is another one."""
    start(config, said).close()
    first = the_run(server)
    assert begun(said) == []
    start(placed(config, **changes), said).close()
    run = the_run(server)
    assert (run.id, run.display_name, run.tags) == (first.id, "faces", ["fruit"])
    (line,) = begun(said)
    where = f"{run.entity}/{run.project}"
    assert where in ("tester/thesis", "us/gans")
    assert line.startswith(f"W&B: until now this folder's run {run.id} was in tester/gans; in {where} it begins now")
    run.display_name, run.tags = "by hand", ["best"]
    start(placed(config, **changes), said).close()
    assert (begun(said), the_run(server).display_name, the_run(server).tags) == ([line], "by hand", ["best"])


@pytest.mark.parametrize("change", ["entity", "mode", "back"])
def test_a_run_that_moves_nowhere_says_nothing_and_keeps_its_name(change, config, server, said):
    """The key's own entity by its name; an attempt offline, which does not know it; a project where it was before."""
    start(config, said).close()
    run = the_run(server)
    run.display_name, run.tags = "by hand", ["best"]
    if change == "mode":
        start(placed(config, mode="offline"), said).close()
    if change == "back":
        note = config.run_dir / "wandb_folder.json"
        note.write_text(json.dumps(json.loads(note.read_text()) | {"project": "thesis"}))
    start(placed(config, entity="tester" if change == "entity" else None), said).close()
    assert the_run(server) is run
    assert (begun(said), run.display_name, run.tags) == ([], "by hand", ["best"])


def test_a_move_that_failed_is_reported_when_it_succeeds(config, server, said, monkeypatch):
    start(config, said).close()
    with monkeypatch.context() as patch:
        patch.setattr("wandb.init", lambda **_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            start(placed(config, project="thesis"), said)
    start(placed(config, project="thesis"), said).close()
    assert len(begun(said)) == 1


@pytest.mark.parametrize("noted", [None, "", "[]", "7", '{"path": ["x"], "inode": "y"}'])
def test_what_older_versions_and_accidents_left_is_taken_over(config, known, noted):
    (config.run_dir / "wandb_id").write_text("abc\n")
    if noted is not None:
        (config.run_dir / "wandb_folder.json").write_text(noted)
    run, new, said = known()
    assert (run, new, said) == ("abc", False, []) if noted in (None, "", "[]", "7") else new
    assert json.loads((config.run_dir / "wandb_folder.json").read_text())["path"] == str(config.run_dir)
