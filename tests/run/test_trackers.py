import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from support.output import unstamped
from support.shards import write_ours
from support.training import TINY

from dcgan_dist import cli, train
from dcgan_dist.config import Config
from dcgan_dist.config.run_groups import WandbConfig
from dcgan_dist.errors import UserError
from dcgan_dist.parallel.agreement import Requests
from dcgan_dist.run import trackers
from dcgan_dist.run.session import Session
from dcgan_dist.run.trackers import TRACKERS, Start, Trackers, open_trackers

PICTURE = np.zeros((2, 2, 3), dtype=np.uint8)


class Recorder:
    """A tracker that writes down its calls, and fails in those it is told to."""

    def __init__(self, name="good", fails=()):
        self.name, self.fails, self.calls = name, fails, []

    def note(self, *call):
        self.calls.append(call)
        if call[0] in self.fails:
            raise ConnectionResetError("the server\nis gone")

    def scalars(self, images, values):
        self.note("scalars", images, values)

    def picture(self, images, name, array):
        self.note("picture", images, name, array.shape)

    def histogram(self, images, name, values):
        self.note("histogram", images, name, values.shape)

    def alert(self, title, text):
        self.note("alert", title, text)

    def checkpoint(self, path):
        self.note("checkpoint", path)

    def close(self, exit_code=0):
        self.note("close", exit_code)


def use(trackers):
    trackers.scalars(1, {"loss/d": 0.5})
    trackers.picture(2, "samples", PICTURE)
    trackers.histogram(3, "weights", PICTURE[0])
    trackers.alert("collapse", "G makes one picture")
    trackers.checkpoint(Path("000000100"))
    trackers.close(75)


ALL = [
    ("scalars", 1, {"loss/d": 0.5}),
    ("picture", 2, "samples", (2, 2, 3)),
    ("histogram", 3, "weights", (2, 3)),
    ("alert", "collapse", "G makes one picture"),
    ("checkpoint", Path("000000100")),
    ("close", 75),
]


def test_every_tracker_hears_everything():
    said, recorders = [], [Recorder(), Recorder()]
    trackers = Trackers(said.append)
    for recorder in recorders:
        trackers.start(recorder.name, lambda recorder=recorder: recorder)
    use(trackers)
    trackers.close()  # once more does nothing
    assert [recorder.calls for recorder in recorders] == [ALL, ALL]
    assert said == []


def test_a_failing_tracker_is_switched_off_and_the_others_go_on():
    said, bad, good = [], Recorder("bad", fails={"picture", "close"}), Recorder()
    trackers = Trackers(said.append)
    for recorder in (bad, good):
        trackers.start(recorder.name, lambda recorder=recorder: recorder)
    use(trackers)
    assert good.calls == ALL
    assert bad.calls == [*ALL[:2], ("close", 1)]
    assert said == ["WARNING: bad is switched off, the training goes on: ConnectionResetError: the server is gone"]


def test_a_tracker_that_cannot_start_is_left_out():
    def fail():
        raise OSError(28, "No space left on device")

    said, good = [], Recorder()
    trackers = Trackers(said.append)
    trackers.start("bad", fail)
    trackers.start("off", lambda: None)
    trackers.start("good", lambda: good)
    use(trackers)
    assert good.calls == ALL
    assert said == ["WARNING: bad is switched off, the training goes on: OSError: [Errno 28] No space left on device"]


def test_the_options_decide(tmp_path):
    said = []
    config = Config(run_dir=tmp_path, wandb=WandbConfig(mode="disabled"))
    trackers = open_trackers(Start(config=config, images=0, say=said.append, on_stop=lambda: None, environment={}))
    trackers.scalars(0, {"loss/d": 1.0})
    trackers.close()
    assert said == [
        f"TensorBoard: tensorboard --logdir {tmp_path}/tensorboard",
        "W&B: disabled (--wandb.mode disabled)",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]
    del said[:]
    for names in ((), ("none",)):
        config = Config(run_dir=tmp_path / "none", trackers=names)
        open_trackers(Start(config=config, images=0, say=said.append, on_stop=lambda: None, environment={})).close()
    assert (said, (tmp_path / "none").exists()) == ([], False)


def test_a_name_that_nobody_knows_is_refused_before_training(tmp_path, capsys):
    assert train.main(["--trackers", "wandb,tensorbord", "--dry_run", "--run_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: --trackers tensorbord: there is no such tracker; known are tensorboard, wandb, aim, "
    )
    assert {"mlflow", "trackio"} <= set(error.strip().split(", "))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "given", [["--trackers", "aim", "wandb"], ["--trackers=aim,wandb"], ["--trackers", "aim, wandb,"]], ids=str
)
def test_names_are_separated_by_commas_or_spaces(given):
    assert cli.load(given).trackers == ("aim", "wandb")
    assert cli.load(["--trackers", "none"]).trackers == cli.load(["--trackers"]).trackers == ()


@pytest.mark.parametrize("at", ["scalars", "picture", "histogram", "alert", "close"])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (AttributeError("no such\nthing"), "AttributeError: no such thing"),
        (RuntimeError("x" * 9999), f"RuntimeError: {'x' * 486}"),
        (KeyError(), "KeyError"),
        (StopIteration(), "StopIteration"),
    ],
    ids=["attribute", "long", "no words", "stop"],
)
def test_any_error_is_one_line(at, error, words):
    said, tracker = [], failing(at, error)(Path())
    trackers = Trackers(said.append)
    trackers.start("mine", lambda: tracker)
    use(trackers)
    assert said == [f"WARNING: mine is switched off, the training goes on: {words}"]


def test_an_error_that_has_no_text_of_its_own_is_one_line():
    said = []
    Trackers(said.append).start("mine", lambda: failing("open", UnprintableError())(Path()))
    assert len(said) == 1
    assert said[0].endswith("UnprintableError: <exception str() failed>")


# ---- in whole trainings


class Mine:
    """What README's table says that a tracker is, and no more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def scalars(self, images: int, values: dict[str, float]) -> None:
        with (self.folder / "mine.jsonl").open("a") as file:
            file.write(json.dumps({"images": images, **values}) + "\n")

    def picture(self, images: int, name: str, array: np.ndarray) -> None:
        np.save(self.folder / f"{name}-{images}.npy", array)

    def histogram(self, images: int, name: str, values: np.ndarray) -> None:
        (self.folder / f"{name.replace('/', '-')}-{images}.txt").write_text(str(values.size))

    def close(self, exit_code: int = 0) -> None:
        (self.folder / "closed").write_text(str(exit_code))


class Told(Recorder):
    """Keeps what it is given."""

    def __init__(self, _folder: Path) -> None:
        super().__init__()
        Told.pictures, Told.histograms, Told.alerts = {}, {}, []  # of the last one

    def picture(self, images, name, array):
        Told.pictures[images, name] = array

    def histogram(self, images, name, values):
        Told.histograms[images, name] = values

    def alert(self, title, text):
        Told.alerts.append((title, text))


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def failing(at: str, error: Exception) -> type:
    """A tracker that changes what it is given, draws random numbers, and fails there."""

    class Failing(Recorder):
        def __init__(self, _folder: Path) -> None:
            super().__init__()
            if at == "open":
                raise error

        def note(self, *call):
            torch.manual_seed(7)
            np.random.seed(7)  # noqa: NPY002
            if call[0] == at:
                raise error

        def scalars(self, images, values):
            values.clear()
            self.note("scalars")

        def picture(self, images, name, array):
            array[:] = 0
            self.note("picture")

        def histogram(self, images, name, values):
            values[:] = 0
            self.note("histogram")

    return Failing


OPTIONS = [*TINY, "--images", "32", "--log.samples_every", "8"]


@pytest.fixture
def trained(tmp_path, capsys, as_before):
    """Trains with a tracker; returns what was said, the records without times, and the tensors."""
    del as_before
    shard = write_ours(tmp_path / "a.tar", 12)

    def trained(name: str, kind: type | None) -> tuple[str, list[dict], dict]:
        with pytest.MonkeyPatch.context() as patch:
            if kind is not None:
                patch.setitem(trackers.TRACKERS, "mine", lambda start: kind(start.config.run_dir))
            options = [
                *OPTIONS,
                *["--collapse.after", "0", "--collapse.reports", "1", "--collapse.pixel_std", "1"],
            ]
            options += ["--trackers", "mine"] if kind else []
            argv = [*options, "--run_dir", str(tmp_path / name), "--data.shards", str(shard)]
            assert train.main(argv) == 0
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        rows = [{k: v for k, v in row.items() if not k.startswith(("time/", "speed/", "save/"))} for row in rows]
        files = (tmp_path / name / "checkpoints" / "000000032").glob("*.safetensors")
        tensors = {file.name: safetensors.torch.load_file(file) for file in files}
        pictures = {file.name: file.read_bytes() for file in (tmp_path / name / "samples").iterdir()}
        return capsys.readouterr().out, rows, {"tensors": tensors, "pictures": pictures}

    return trained


def test_the_recipe_of_the_readme_works(trained, tmp_path):
    said, rows, _ = trained("run", Mine)
    folder = tmp_path / "run"
    mine = [json.loads(line) for line in (folder / "mine.jsonl").read_text().splitlines()]
    assert [row["images"] for row in mine] == [row["images"] for row in rows] == [8, 16, 24, 32]
    assert all(mine[i].items() >= {k: v for k, v in row.items() if k != "images"}.items() for i, row in enumerate(rows))
    assert np.load(folder / "samples-32.npy").shape[2] == 3
    assert (folder / "samples-pixels-32.txt").read_text() == str(4 * 3 * 32 * 32)
    assert (folder / "closed").read_text() == "0"
    assert "G makes one picture of every latent" in said  # an alert, which it cannot take
    assert "switched off" not in said


def test_real_images_and_the_outputs_of_d_are_shown(trained, tmp_path):
    """The outputs are those of the last iteration: D(x) and D(G(z)) of the report are the means of their sigmoids."""
    _, rows, _ = trained("run", Told)
    assert [key for key in Told.pictures if key[1] == "real"] == [(0, "real")]
    with Image.open(tmp_path / "run" / "real.png") as real:
        np.testing.assert_array_equal(Told.pictures[0, "real"], np.asarray(real))
    for row in rows:
        for name in ("real", "fake"):
            outputs = Told.histograms[row["images"], f"logit/{name}_histogram"]
            assert outputs.shape == (8,)
            assert np.mean(1 / (1 + np.exp(-outputs.astype(float)))) == pytest.approx(row[f"d/{name}"], rel=1e-5)


def test_the_end_of_a_run_is_an_alert_with_its_reason(trained, monkeypatch):
    trained("done", Told)
    title, text = Told.alerts[-1]
    assert title == "Training is done"
    assert text.startswith("done: 32 images after ")
    monkeypatch.setattr("dcgan_dist.train.STOPPED", 0)  # which `trained` expects
    monkeypatch.setattr(Session, "agreed", lambda session: Requests(stop=session.state.images >= 8))
    monkeypatch.setattr(Session, "_why_stopped", lambda _: "SIGTERM")
    trained("stopped", Told)
    title, text = Told.alerts[-1]
    assert title == "Training has stopped"
    assert text.endswith("(SIGTERM); run the same command again to resume")


def test_a_failure_is_an_alert_with_its_reason(trained, monkeypatch):
    def full(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr("dcgan_dist.run.session.Session.sample", full)
    with pytest.raises(AssertionError):
        trained("run", Told)
    assert Told.alerts[-1] == ("Training has failed", "at 8 images: the disk is full")


@pytest.fixture(scope="module")
def undisturbed():
    return {}


@pytest.mark.parametrize("at", ["open", "scalars", "picture", "histogram", "alert", "close"])
def test_a_tracker_that_fails_anywhere_changes_no_bit(trained, undisturbed, at):
    if not undisturbed:
        undisturbed["without"] = trained("without", None)[1:]
    said, rows, kept = trained("with", failing(at, KeyError()))
    lines = [line for line in said.splitlines() if "switched off" in line]
    assert list(map(unstamped, lines)) == ["WARNING: mine is switched off, the training goes on: KeyError"]
    (wanted_rows, wanted) = undisturbed["without"]
    assert rows == wanted_rows
    assert kept["pictures"] == wanted["pictures"]
    assert kept["tensors"].keys() == wanted["tensors"].keys()
    for file, tensors in wanted["tensors"].items():
        assert all(torch.equal(kept["tensors"][file][name], value) for name, value in tensors.items())


def test_trackers_stand_in_one_table():
    assert list(TRACKERS) == ["tensorboard", "wandb"]
