import dataclasses
import difflib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import pytest
import tyro

from dcgan_dist import cli
from dcgan_dist.config import Config
from dcgan_dist.config.groups import Count, LossConfig, ModelConfig, OptimizerConfig
from dcgan_dist.config.run_groups import ResumeConfig
from dcgan_dist.errors import UsageError, tracebacks_wanted

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
    ("typed", "meant"),
    [
        ("--images 1e6", "--images 1000000"),
        ("--images 2_000_000", "--images 2000000"),
        ("--images=2.5e3", "--images 2500"),
        ("--data.cache_bytes 5GB", "--data.cache_bytes 5000000000"),
        ("--data.cache_bytes 5GiB", "--data.cache_bytes 5368709120"),
        ("--data.cache_bytes=1.5tb", "--data.cache_bytes 1500000000000"),
        ("--data.cache_bytes 500m", "--data.cache_bytes 500000000"),
        ("--world_size None", ""),
        ("--world_size none --data.cache null --wandb.entity NULL", ""),
        ("--data.hflip true", "--data.hflip"),
        ("--data.hflip True --seed 3", "--data.hflip --seed 3"),
        ("--data.hflip=yes", "--data.hflip"),
        ("--data.hflip 1", "--data.hflip"),
        ("--data.hflip --data.hflip false", ""),
        ("--data.hflip --data.hflip=off", ""),
        ("--data.no-hflip false", "--data.hflip"),
        ("--channels_last no", "--no_channels_last"),
        ("--no-channels-last", "--no_channels_last"),
        ("--no_channels_last=false", ""),
        ("--optimizer.g-lr 1E-4", "--optimizer.g_lr 0.0001"),
        ("--run_dir ~/run", f"--run_dir {Path.home()}/run"),
    ],
)
def test_what_people_type_means_what_they_mean(typed, meant):
    assert cli.load(typed.split()) == cli.load(meant.split())


PATHS_AND_NAMES = [name for name, kind in cli.KINDS.items() if {str, Path} & {kind, *get_args(kind)}]


@pytest.mark.parametrize("nothing", ["", " "])
@pytest.mark.parametrize("name", PATHS_AND_NAMES)
def test_nothing_is_no_name(name, nothing):
    message = refusal(f"--{name}", nothing)
    empty = f"--{name} {nothing!r}: is empty; give a value, or leave it out"
    assert message == empty or (name in ("data.shards", "data.classes") and message.startswith(f"--{name} names no "))


@dataclass(frozen=True, kw_only=True)
class Command(cli.CommandOptions):
    """A command."""

    source: tyro.conf.Positional[tuple[str, ...]]
    """Words."""
    out: Path | None = None
    """A file."""
    count: Count = 1
    """A number."""
    quick: bool = False
    """A switch."""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("a b --quick true --count 1e3", Command(source=("a", "b"), quick=True, count=1000)),
        ("--quick on", Command(source=("on",), quick=True)),
        ("--quick --no-quick a", Command(source=("a",))),
        ("--quick=0 a --debug", Command(source=("a",), debug=True)),
        ("--out ~/x a", Command(source=("a",), out=Path.home() / "x")),
    ],
)
def test_other_commands_understand_the_same(typed, meant):
    assert cli.parse(Command, typed.split(), "command") == meant


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["a", ""], "SOURCE '': is empty; give a value, or leave it out"),
        (["--out", "", "a"], "--out '': is empty; give a value, or leave it out"),
        (["--count", "many", "a"], "--count many: must be an integer"),
        (["--cuont", "3"], "there is no option --cuont; did you mean --count?"),
        (["--quick=perhaps"], "--quick perhaps: is a switch; give true or false, or no value"),
    ],
)
def test_other_commands_refuse_the_same(argv, words):
    with pytest.raises(UsageError) as error:
        cli.parse(Command, argv, "command")
    assert str(error.value) == words


@dataclass(frozen=True, kw_only=True)
class OwnOptions:
    """Of a command that takes the training's options, too."""

    quick: bool = False
    """A switch."""
    count: int = 1
    """A number."""


def test_a_command_takes_its_own_options_and_the_trainings_in_any_order():
    argv = ["--images", "1e3", "--quick", "true", "--data.shards", "a", "b", "--count", "5", "--data.hflip"]
    own, config = cli.load_with(OwnOptions, argv, "command")
    assert (own, config.images, config.data.shards) == (OwnOptions(quick=True, count=5), 1000, ("a", "b"))


@pytest.mark.parametrize("text", ["debug: true", "debug: yes"])
def test_debug_may_stand_in_a_file(write, text):
    cli.load(["--config", write(text)])
    assert tracebacks_wanted()
    cli.load([])
    assert not tracebacks_wanted()


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
        (["--debug=maybe"], "--debug maybe: is a switch; give true or false, or no value"),
        (["--images", "64.7"], "--images 64.7: must be an integer"),
        (["--optimizer.g_lr", "fast"], "--optimizer.g_lr fast: must be a number"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--data.hflip", "2"], "--data.hflip 2: is a switch; give true or false, or no value"),
        (["--seed", "1e999999999"], "--seed 1e999999999: must be an integer, of at most 20 digits"),
        (["--world_size", "two"], "--world_size two: must be an integer"),
        (["--data.prefetch", "1e9"], "--data.prefetch 1000000000: must be at most 10,000"),
        (
            ["--data.cache_bytes", "5 apples"],
            "--data.cache_bytes 5 apples: must be a number of bytes, as in 5000000000, 5GB or 5GiB",
        ),
        (["--log.every", "x" * 99], f"--log.every {'x' * 99}: must be an integer"),
        (["--config", ""], "--config needs a file (argument --config: invalid path value: '')"),
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


def test_words_in_a_file_are_read_as_on_the_command_line(write):
    """YAML would have an octal number, a time of day, a number and a switch."""
    wandb = "{project: 1.10, group: off, tags: [2026-01-01]}"
    config = cli.load(["--config", write(f"seed: 010\nrun_dir: 12:30\nwandb: {wandb}")])
    assert (config.seed, config.run_dir) == (10, Path("12:30"))
    assert (config.wandb.project, config.wandb.group, config.wandb.tags) == ("1.10", "off", ("2026-01-01",))


@pytest.mark.parametrize("text", ["data.hflip: true", "data: {hflip: on, cache_bytes: 5GB}", "data: {no_hflip: false}"])
def test_friendly_forms_in_a_file(write, text):
    assert cli.load(["--config", write(text)]).data.hflip


def test_a_part_of_a_file_may_be_merged_into_another(write):
    config = cli.load(["--config", write("log: &often {every: 8}\ncheckpoint: {<<: *often, keep: 5}")])
    assert (config.log.every, config.checkpoint.every, config.checkpoint.keep) == (8, 8, 5)


@pytest.mark.parametrize("spelling", ["1e-4", "1.0e-4", "0.0001", "'1e-4'"])
def test_numbers_that_yaml_takes_for_text(write, spelling):
    assert cli.load(["--config", write(f"optimizer: {{g_lr: {spelling}}}")]).optimizer.g_lr == 1e-4


def test_nothing_and_an_empty_group_change_nothing(write):
    path = write("model:\n  # image_size: 96\noptimizer: {g_clip: null}\nwandb: {entity: null}\n")
    assert cli.load(["--config", path]) == Config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {image_siz: 96}", "{path}: there is no option --model.image_siz; did you mean --model.image_size?"),
        ("modl: {image_size: 96}", "{path}: there is no option --modl.image_size; did you mean --model.image_size?"),
        ("epochs: 3", "{path}: there is no option --epochs; --help lists them all"),
        ("help: true", "{path}: there is no option --help; --help lists them all"),
        ("images: 64.7", "{path}: --images 64.7: must be an integer"),
        ("images: many", "{path}: --images many: must be an integer"),
        (
            "log: {page: 3}",
            "{path}: --log.page 3: is a switch; give true or false, or no value",
        ),
        ("model: {ngf: 0}", "{path}: --model.ngf 0: must be at least 1"),
        ("model: 3", "{path}: --model 3: is a group of options, as in 'model: {{NAME: VALUE}}'"),
        ("data: [1, 2]", "{path}: --data ['1', '2']: is a group of options, as in 'data: {{NAME: VALUE}}'"),
        ("resume: [a]", "{path}: --resume: a list is given where one value is needed"),
        ("images: [1, 2]", "{path}: --images: a list is given where one value is needed"),
        ("images:", "{path}: --images: nothing is given where one value is needed"),
        ("wandb: {project: null}", "{path}: --wandb.project: nothing is given where one value is needed"),
        ("wandb: {tags: [[a, b]]}", "{path}: --wandb.tags: a list is given where words are needed"),
        ("images: {a: 3}", "{path}: --images: a mapping is given where one value is needed"),
        ("images: true", "{path}: --images true: must be an integer"),
        ("run_dir: ''", "{path}: --run_dir '': is empty; give a value, or leave it out"),
        ('run_dir: "a\\0b"', "{path}: --run_dir 'a\\x00b': holds a NUL"),
        ("wandb: {tags: ['']}", "{path}: --wandb.tags '': is empty; give a value, or leave it out"),
        ("a: &a {b: *a}", "--config {path}: is nested too deep"),
        ("- images: 3", "--config {path}: must be a mapping of options, for example 'model: {{image_size: 96}}'"),
        ("images", "--config {path}: must be a mapping of options, for example 'model: {{image_size: 96}}'"),
        ("", "--config {path}: must be a mapping of options, for example 'model: {{image_size: 96}}'"),
        (
            "wandb: {tags: [--seed, 3]}",
            "{path}: --wandb.tags --seed: an item of a list cannot begin with '-'; put ./ in front of a path",
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


@pytest.mark.parametrize(
    "text",
    [
        "seed: 1\nseed: 2",
        "{log: {every: 1, every: 2}}",
        "loss: &a {}\nloss: {<<: *a}",
        "log.every: 1\nlog: {every: 2}",
        "batch-size: 1\nbatch_size: 2",
        "resume: a\nresume.source: b",
    ],
)
def test_a_key_must_not_stand_twice(write, text):
    assert "is given twice" in refusal("--config", write(text))


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
    for name in cli.KINDS:
        _, found, after = flat.partition(f" --{name}")
        assert found, name
        assert "(default: " in after.split(" --")[0] + after.partition("(default: ")[1], name
    assert (
        "Length of the run: number of real images shown, including iterations that do not update D. (default: 2000000)"
        in flat
    )


def test_help_shows_the_values_of_the_files(capsys, monkeypatch, write):
    flat = " ".join(help_text(["--config", write("images: 77\nmodel: {nz: 33}")], capsys, monkeypatch).split())
    assert "iterations that do not update D. (default: 77)" in flat
    assert "Length of the latent vector z. (default: 33)" in flat


def test_other_ranks_print_no_help(capsys):
    with pytest.raises(SystemExit):
        cli.load(["--help"], quiet=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("argv", [["--data.shards"], ["--data.shards", "--seed", "1"], ["--data.shards="]])
def test_shards_that_a_shell_variable_lost_do_not_mean_the_embedded_faces(argv):
    assert refusal(*argv) == "--data.shards names no shards; leave the option out for the embedded cartoon faces"


def test_print_config_prints_what_config_reads_back(capsys, write):
    with pytest.raises(SystemExit) as end:
        cli.load(["--print_config", "--config", write("images: 500"), "--model.nz", "7"])
    assert end.value.code in (0, None)
    path = write(capsys.readouterr().out, "printed.yaml")
    assert cli.load(["--config", path]) == Config(images=500, model=ModelConfig(nz=7))
    with pytest.raises(SystemExit):
        cli.load(["--print-config"], quiet=True)
    assert capsys.readouterr().out == ""
    assert "wasserstein" in refusal("--print_config", "--loss.name", "wasserstein")


def test_help_lists_the_options_that_are_no_fields(capsys):
    with pytest.raises(SystemExit):
        cli.load(["--help"])
    text = capsys.readouterr().out
    assert "--config " in text
    assert "--print_config" in text
