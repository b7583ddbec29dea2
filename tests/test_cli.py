import dataclasses
import difflib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from dcgan_dist import cli
from dcgan_dist.config import Config, LossConfig, ModelConfig, OptimizerConfig, ResumeConfig
from dcgan_dist.errors import UsageError

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden" / "help.txt"


@pytest.fixture
def write(tmp_path):
    """Writes a YAML file; returns its path."""

    def write(text: str, name: str = "run.yaml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def refusal(*argv: str) -> str:
    """The one line that a wrong command gets."""
    with pytest.raises(UsageError) as error:
        cli.load(argv)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2
    return str(error.value)


# ---- options


def test_nothing_given_is_the_default():
    assert cli.load([]) == Config()


def test_options_of_every_kind():
    words = (
        "--run_dir runs/a --images=1_000 --model.image_size 96 --optimizer.g_lr 1e-4 --no_channels_last --world_size 2 "
        "--augment color cutout --data.shards a.tar b.tar --optimizer.d_clip=5 --model.spectral_norm"
    )
    config = cli.load(words.split())
    assert config == Config(
        run_dir=Path("runs/a"),
        images=1_000,
        model=ModelConfig(image_size=96, spectral_norm=True),
        optimizer=OptimizerConfig(g_lr=1e-4, d_clip=5.0),
        channels_last=False,
        augment=("color", "cutout"),
        data=replace(Config().data, shards=("a.tar", "b.tar")),
        world_size=2,
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model.image_siz", "64"], "there is no option --model.image_siz; did you mean --model.image_size?"),
        (
            ["--lr", "1"],
            "there is no option --lr; did you mean --optimizer.g_lr or --optimizer.d_lr or --divergence.lr_factor?",
        ),
        (["--batch", "64"], "there is no option --batch; did you mean --batch_size or --sync_batchnorm?"),
        (["--epochs", "9"], "there is no option --epochs; --help lists them all"),
        (["--debug=yes"], "--debug yes: is a switch and takes no value (in YAML: true or false)"),
        (["--images", "64.7"], "--images 64.7: must be a whole number"),
        (["--optimizer.g_lr", "fast"], "--optimizer.g_lr fast: must be a number"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--config"], "--config needs a file (argument --config: expected one argument)"),
    ],
)
def test_a_wrong_option_is_named(argv, words):
    assert refusal(*argv) == words


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model.image_size", "65"], ["--model.image_size", "'65'", "'32', '48', '64', '96', '128', '192', '256'"]),
        (["--augment", "colour"], ["--augment", "'colour'", "'color', 'translation', 'cutout'"]),
        (["--images"], ["--images", "Missing value"]),
        (["shards"], ["Unrecognized", "shards"]),
    ],
)
def test_a_wrong_value_is_named_with_its_option(argv, words):
    message = refusal(*argv)
    for word in words:
        assert word in message


def test_contradictions_are_refused():
    assert "--model.d_norm layer or none" in refusal("--loss.r1_gamma", "1")


# ---- YAML


def test_yaml_is_the_same_as_options(write):
    path = write(
        "model: {image_size: 96, spectral_norm: true}\naugment: [color]\nchannels_last: false\nworld_size: 4\n"
    )
    options = ["--model.image_size=96", "--model.spectral_norm", "--augment", "color", "--no_channels_last"]
    assert cli.load(["--config", path]) == cli.load([*options, "--world_size", "4"])


def test_later_files_win_and_the_command_line_wins_over_all(write):
    first = write("seed: 1\nimages: 10\nmodel: {nz: 3, ngf: 4}\ndata: {shards: [a.tar, b.tar]}", "first.yaml")
    second = write("seed: 2\nmodel: {nz: 5}\ndata: {shards: [c.tar]}", "second.yaml")
    config = cli.load(["--seed", "3", "--config", first, f"--config={second}"])
    assert (config.seed, config.images) == (3, 10)
    assert (config.model.nz, config.model.ngf) == (5, 4)
    assert config.data.shards == ("c.tar",)


def test_a_file_may_leave_to_the_command_line_what_makes_it_consistent(write):
    path = write("loss: {name: wasserstein}")
    assert "--loss.name wasserstein" in refusal("--config", path)
    assert cli.load(["--config", path, "--model.spectral_norm"]).loss == LossConfig(name="wasserstein")


@pytest.mark.parametrize("spelling", ["1e-4", "1.0e-4", "0.0001", "'1e-4'"])
def test_numbers_that_yaml_takes_for_text(write, spelling):
    assert cli.load(["--config", write(f"optimizer: {{g_lr: {spelling}}}")]).optimizer.g_lr == 1e-4


def test_nothing_and_an_empty_group_say_nothing(write):
    path = write("model:\n  # image_size: 96\noptimizer: {g_clip: null}\nwandb: {entity: null}\n")
    assert cli.load(["--config", path]) == Config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {image_siz: 96}", "{path}: there is no option --model.image_siz; did you mean --model.image_size?"),
        ("modl: {image_size: 96}", "{path}: there is no option --modl.image_size; did you mean --model.image_size?"),
        ("epochs: 3", "{path}: there is no option --epochs; --help lists them all"),
        ("help: true", "{path}: there is no option --help; --help lists them all"),
        ("images: 64.7", "{path}: --images 64.7: must be a whole number"),
        ("images: many", "{path}: --images many: must be a whole number"),
        (
            "log: {tensorboard: 3}",
            "{path}: --log.tensorboard 3: is a switch and takes no value (in YAML: true or false)",
        ),
        ("model: {ngf: 0}", "{path}: --model.ngf 0: must be at least 1"),
        ("- images: 3", "--config {path}: must be a mapping of options, for example 'model: {{image_size: 96}}'"),
        ("images", "--config {path}: must be a mapping of options, for example 'model: {{image_size: 96}}'"),
        ("", "--config {path}: must be a mapping of options, for example 'model: {{image_size: 96}}'"),
        (
            "wandb: {tags: [--seed, 3]}",
            "--wandb.tags --seed: an item of a list cannot begin with '-'; put ./ in front of a path",
        ),
    ],
)
def test_a_wrong_file_is_named(write, text, words):
    path = write(text)
    assert refusal("--config", path) == words.format(path=path)


@pytest.mark.parametrize("text", ["images: [1", "a: b: c", "!!python/object/apply:os.getcwd []", "\0", "%"])
def test_what_is_not_yaml_is_refused_and_nothing_is_run(write, text):
    path = write(text)
    assert refusal("--config", path).startswith(f"--config {path}: is not YAML (")


def test_files_that_cannot_be_read(tmp_path):
    missing, binary = tmp_path / "none.yaml", tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00seed: 1")
    assert refusal("--config", str(missing)) == f"--config {missing}: cannot be read (No such file or directory)"
    assert refusal("--config", str(tmp_path)) == f"--config {tmp_path}: cannot be read (Is a directory)"
    assert refusal("--config", str(binary)).startswith(f"--config {binary}: is not YAML (")


@pytest.mark.parametrize("never", ["--resume never", "--resume=never", "--resume.source never"])
def test_resume_has_a_short_form(write, never):
    assert cli.load(never.split()).resume == ResumeConfig(source="never")


@pytest.mark.parametrize("text", ["resume: never", "resume: {source: never}"])
def test_resume_has_a_short_form_in_yaml(write, text):
    assert cli.load(["--config", write(text)]).resume == ResumeConfig(source="never")


# ---- presets

PRESETS = sorted((ROOT / "launch" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_a_run_of_its_own_that_differs_from_the_defaults(path):
    config = cli.load(["--config", str(path)])
    assert config.run_dir != Config().run_dir
    assert path.read_text().startswith("# ")  # says what it is for
    assert f"--config {path.relative_to(ROOT)}" in path.read_text()


def test_there_are_presets():
    assert {"notes96", "quickstart"} <= {path.stem for path in PRESETS}


# ---- help


def help_text(argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        cli.load([*argv, "--help"])
    assert end.value.code == 0
    return "".join(line.rstrip() + "\n" for line in capsys.readouterr().out.splitlines())


def test_help_is_what_it_was(capsys, monkeypatch):
    """After a wanted change: UPDATE_GOLDEN=1 pytest tests/test_cli.py -k help, and read the difference."""
    now = help_text([], capsys, monkeypatch)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(now, encoding="utf-8")
    then = GOLDEN.read_text(encoding="utf-8")
    assert now == then, "\n".join(difflib.unified_diff(then.splitlines(), now.splitlines(), lineterm=""))


def test_help_shows_every_option_in_its_group_with_its_default(capsys, monkeypatch):
    text = help_text([], capsys, monkeypatch)
    groups = [group.name for group in dataclasses.fields(Config) if f" {group.name} options\n" in text]
    watched = ["watchdog", "divergence", "collapse"]
    names = ["model", "loss", "optimizer", "ema", "data", "log", "checkpoint", *watched, "wandb", "resume", "stop"]
    assert groups == names
    flat = " ".join(text.split())
    for name in cli.NAMES:
        _, found, after = flat.partition(f" --{name}")
        assert found, name
        assert "(default: " in after.split(" --")[0] + after.partition("(default: ")[1], name
    assert "Length of the run: real images shown, also in iterations where D is not due. (default: 2000000)" in flat


def test_help_shows_the_values_of_the_files(capsys, monkeypatch, write):
    flat = " ".join(help_text(["--config", write("images: 77\nmodel: {nz: 33}")], capsys, monkeypatch).split())
    assert "where D is not due. (default: 77)" in flat
    assert "Length of the latent vector z. (default: 33)" in flat


def test_other_ranks_print_no_help(capsys):
    with pytest.raises(SystemExit):
        cli.load(["--help"], quiet=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("argv", [["--data.shards"], ["--data.shards", "--seed", "1"], ["--data.shards="]])
def test_shards_that_a_shell_variable_lost_do_not_mean_the_embedded_faces(argv):
    assert refusal(*argv) == "--data.shards names no shards; leave the option out for the embedded cartoon faces"
