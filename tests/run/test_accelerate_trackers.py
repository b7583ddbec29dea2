"""The adapter for Accelerate's trackers: on stand-ins for all of them, and on the real MLflow."""

import json
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, register_tracker_class
from support.output import unstamped
from support.training import TINY
from support.wandb_runs import beginning

from dcgan_dist import train
from dcgan_dist.config import Config
from dcgan_dist.config.groups import DataConfig
from dcgan_dist.location import Location
from dcgan_dist.run import accelerate_trackers
from dcgan_dist.run.accelerate_trackers import TOOLS
from dcgan_dist.run.trackers import open_trackers

PICTURE = np.zeros((4, 6, 3), dtype=np.uint8)
OURS = {"tensorboard", "wandb"}
NAMES = sorted(LOGGER_TYPE_TO_CLASS.keys() - OURS)
ARGUMENTS = {  # that the tools' own functions take, in their versions of 2026
    "aim": "run_hash repo read_only experiment force_resume system_tracking_interval log_system_params "
    "capture_terminal_logs",
    "clearml": "project_name task_name task_type tags reuse_last_task_id continue_last_task output_uri "
    "auto_connect_arg_parser auto_connect_frameworks auto_resource_monitoring auto_connect_streams deferred_init",
    "comet_ml": "api_key workspace project project_name experiment_key mode online source experiment_config",
    "dvclive": "dir resume report save_dvc_exp dvcyaml cache_images exp_name exp_message monitor_system",
    "mlflow": "run_id experiment_id run_name nested parent_run_id tags description log_system_metrics",
    "swanlab": "reinit log_dir mode workspace project public name color description job_type group tags id resume",
    "trackio": "project name group space_id server_url config resume settings private embed auto_log_gpu",
}


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    """Those that the tools are given are unset after each test, also by what calls `setdefault`."""
    for name in {name for tool in TOOLS.values() for name in tool.variables}:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def stand_in(monkeypatch):
    """Puts a module in the place of a tool; returns the list of the arguments that its runs begin with."""

    def stand_in(name: str) -> list[dict]:
        began = []

        def begin(**arguments):
            assert arguments.keys() <= set(ARGUMENTS[name].split()), name
            began.append(arguments)
            return MagicMock(hash="tool's", id="tool's", info=SimpleNamespace(run_id="tool's"))

        module = MagicMock(__version__="3.60.0")
        module.Run = module.Live = module.init = module.start = module.start_run = begin
        module.Task.init, module.Task.current_task.return_value = begin, None
        module.search_experiments.return_value = []
        module.utils.validation.MAX_PARAM_VAL_LENGTH, module.utils.validation.MAX_PARAMS_TAGS_PER_BATCH = 6000, 100
        monkeypatch.setitem(sys.modules, name, module)
        if name == "dvclive":
            monkeypatch.setitem(sys.modules, "dvclive.plots", module)
        return began

    return stand_in


def attempt(config, name, images=0):
    """The tracker of an attempt, and what is said."""
    said = []
    trackers = open_trackers(beginning(replace(config, trackers=(name,)), said, images=images))
    return trackers, said


def noting(calls, method):
    def noted(self, *given, **named):
        calls.append((*given, *named.values()))
        return method(self, *given, **named)

    return noted


@pytest.mark.parametrize("name", NAMES)
def test_each_tool_gets_everything_once_and_an_attempt_that_resumes_goes_on_in_its_run(
    name, stand_in, monkeypatch, tmp_path
):
    began, calls = stand_in(name), {"log": [], "log_images": [], "store_init_configuration": [], "finish": []}
    kind = LOGGER_TYPE_TO_CLASS[name]
    for method in calls.keys() & set(dir(kind)):
        monkeypatch.setattr(kind, method, noting(calls[method], getattr(kind, method)))
    shards = (Location("https://me:hidden@host/a.tar?sig=hidden"),)
    config = Config(run_dir=tmp_path / "my run", data=DataConfig(shards=shards))
    for first in (0, 8):
        trackers, said = attempt(config, name, first)
        for images in range(first + 8, first + 24, 8):
            trackers.scalars(images, {"loss/d": images / 2, "loss/g": float("nan")})
            trackers.picture(images, "samples", PICTURE)
            trackers.histogram(images, "numbers", np.ones(3))
        trackers.close()
        (line,) = said
        assert line.startswith(f"{name}: ")
        assert "switched off" not in line
    reports = [call for call in calls["log"] if "samples" not in call[0]]  # SwanLab's class logs pictures by log
    assert reports == [({"loss/d": images / 2}, images) for images in (8, 16, 24)]
    pictures = [(value["samples"], images) for value, images in calls["log_images"]]
    assert [images for _, images in pictures] == ([8, 16, 24] if hasattr(kind, "log_images") else [])
    for value, _ in pictures:
        np.testing.assert_array_equal(value if name in ("aim", "clearml") else value[0], PICTURE)
    (options,), *again = calls["store_init_configuration"]
    assert len(again) == (name != "mlflow")  # which refuses options that change, such as --images
    assert (options["batch_size"], options["checkpoint.blocking"], options["wandb.entity"]) == (128, False, "None")
    assert "hidden" not in str(options)
    assert len(calls["finish"]) == 2
    files = tmp_path / "my run" / "trackers" / name
    note = json.loads((files / "run.json").read_text())
    assert note["sent"]["reports"] == 24
    folder = {"aim": "repo", "dvclive": "dir", "swanlab": "log_dir"}.get(name)
    assert folder is None or {arguments[folder] for arguments in began} == {str(files)}
    # the second attempt names the run of the first, by our id or by the tool's
    if name == "dvclive":
        assert "resume" not in began[0]
        assert began[1]["resume"] is True
    else:
        known = str(began[0].values()) if note["id"] != "tool's" else "tool's"
        assert note["id"][:8] in str(began[1].values())
        assert note["id"][:8] in known


class Mine(GeneralTracker):
    """A tracker of a user, which writes to its folder; `acts` are done at the start of its methods."""

    name, requires_logging_directory, acts = "mine", True, {}

    def __init__(self, project, folder):
        super().__init__()
        self.project, self.file = project, Path(folder) / "mine.jsonl"
        self.note("init", project)

    @property
    def tracker(self):
        return self

    def note(self, what, *given):
        self.acts.get(what, lambda: None)()
        with self.file.open("a") as file:
            file.write(json.dumps([what, *given]) + "\n")

    def start(self):
        print("hello from my tool")
        sys.excepthook = print
        self.note("start")

    def store_init_configuration(self, values):
        self.note("options", values["images"])

    def log(self, values, step=None, **_):
        self.note("log", step, sorted(values))

    def log_images(self, values, step=None, **_):
        self.note("images", step, [(name, [image.shape for image in images]) for name, images in values.items()])

    def finish(self):
        self.note("finish")


@pytest.fixture
def mine(monkeypatch):
    """Registers the class with Accelerate; returns what its methods do."""
    monkeypatch.setattr("accelerate.tracking.LOGGER_TYPE_TO_CLASS", dict(LOGGER_TYPE_TO_CLASS))
    monkeypatch.setattr(Mine, "acts", {})
    register_tracker_class(Mine)
    return Mine.acts


def noted(run_dir):
    return [json.loads(line) for line in (run_dir / "trackers/mine/mine.jsonl").read_text().splitlines()]


def test_a_class_of_the_user_gets_a_training_and_each_attempt_anew(mine, tmp_path, as_before, capsys):
    run_dir, hook = tmp_path / "run", sys.excepthook
    options = [*TINY, "--log.samples_every", "16", "--data.faces", "64", "--trackers", "mine,tensorboard"]
    assert train.main([*options, "--images", "16", "--run_dir", str(run_dir)]) == 0
    said = unstamped(capsys.readouterr().out)
    assert "\nmine: project dcgan_dist\n" in said
    assert "hello" not in said
    assert sys.excepthook is not print
    sys.excepthook = hook
    first = noted(run_dir)
    assert [what[:2] for what in first] == [
        ["init", "dcgan_dist"], ["start"], ["options", 16], ["log", 8], ["log", 16], ["images", 0], ["images", 16],
        ["finish"],
    ]  # fmt: skip
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert first[4][2] == sorted(last.keys() - {"images"})
    ((real, shapes),) = first[5][2]
    assert (real, len(shapes), shapes[0][2]) == ("real", 1, 3)
    ((name, shapes),) = first[6][2]
    assert (name, len(shapes), shapes[0][2]) == ("samples", 1, 3)
    assert train.main([*options, "--images", "24", "--run_dir", str(run_dir)]) == 0
    assert "mine: runs of this tool cannot be resumed, so this attempt is a new one" in capsys.readouterr().out
    assert [what[:2] for what in noted(run_dir)[len(first) :]] == [
        ["init", "dcgan_dist"], ["start"], ["options", 24], ["log", 24], ["images", 0], ["images", 24], ["finish"]
    ]  # fmt: skip
    assert (run_dir / "tensorboard").is_dir()


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (raising(ConnectionError("no\nserver")), "ConnectionError: no server"),
        (raising(SystemExit(3)), "RuntimeError: SystemExit(3)"),
        (
            lambda: warnings.warn("old", DeprecationWarning, stacklevel=1),
            "DeprecationWarning: old",
        ),  # an error in tests
    ],
    ids=["error", "exit", "warning"],
)
@pytest.mark.parametrize("at", ["init", "start", "options", "log", "images", "finish"])
def test_a_tool_that_fails_anywhere_is_switched_off_with_one_line(mine, tmp_path, at, act, words):
    mine[at] = act
    trackers, said = attempt(Config(run_dir=tmp_path), "mine")
    for images in range(8, 80, 8):
        trackers.scalars(images, {"loss/d": 1.0})
        trackers.picture(images, "samples", PICTURE)
    trackers.close()
    lines = [line for line in said if line != "mine: project dcgan_dist"]
    assert lines == [f"WARNING: mine is switched off, the training goes on: {words}"]


def test_a_tool_that_hangs_costs_a_bounded_time(mine, tmp_path, monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr(accelerate_trackers, "START_SECONDS", 0.05)
    mine["start"] = go_on.wait
    trackers, said = attempt(Config(run_dir=tmp_path), "mine")
    assert said == ["mine: has not started within 0 s; the training does not wait for it"]
    trackers.scalars(8, {"loss/d": 1.0})
    go_on.set()
    trackers.close()  # waits until the tool has everything
    assert [what[0] for what in noted(tmp_path)] == ["init", "start", "options", "log", "finish"]

    go_on.clear()
    mine["log"] = go_on.wait
    monkeypatch.setattr(accelerate_trackers, "WAITING", 3)
    trackers, said = attempt(Config(run_dir=tmp_path / "slow"), "mine")
    for images in range(8, 80, 8):
        trackers.scalars(images, {"loss/d": 1.0})
    assert said[-1] == "WARNING: mine is switched off, the training goes on: TimeoutError: is 3 calls behind"
    go_on.set()

    go_on.clear()
    mine["finish"] = go_on.wait
    monkeypatch.setattr(accelerate_trackers, "END_SECONDS", 0.05)
    trackers, said = attempt(Config(run_dir=tmp_path / "ends"), "mine")
    trackers.close()
    assert said[-1] == "WARNING: mine is switched off, the training goes on: TimeoutError: has not finished within 0 s"
    go_on.set()


def test_a_tool_that_is_not_installed_costs_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "comet_ml", None)
    trackers, said = attempt(Config(run_dir=tmp_path), "comet_ml")
    trackers.close()
    assert said == ["comet_ml: not installed (pip install comet_ml)"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of mlflow and what it imports
def test_a_run_in_the_real_mlflow_goes_on_after_a_resume_with_other_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(accelerate_trackers, "START_SECONDS", 600)
    config = Config(run_dir=tmp_path / "run")
    for first, images in ((0, 2_000), (16, 3_000)):
        trackers, said = attempt(replace(config, images=images), "mlflow", first)
        for seen in range(first, first + 24, 8):
            trackers.scalars(seen, {"loss/d": seen / 2, "d/fake_after": float("inf")})
        trackers.close()
        assert said == [f"mlflow: mlflow ui --backend-store-uri sqlite:///{tmp_path}/run/trackers/mlflow/mlflow.db"]
    mlflow = sys.modules["mlflow"]
    (found,) = mlflow.search_runs(experiment_names=["dcgan_dist"], output_format="list")
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert (found.data.params["batch_size"], found.data.params["images"]) == ("128", "2000")
    points = mlflow.MlflowClient().get_metric_history(found.info.run_id, "loss/d")
    assert sorted((point.step, point.value) for point in points) == [(seen, seen / 2) for seen in range(0, 40, 8)]
    assert set(found.data.metrics) == {"loss/d"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
