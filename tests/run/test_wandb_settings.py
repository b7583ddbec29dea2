"""What W&B's variables and settings files ask for, row by row of the table; test_wandb has the server."""

from dataclasses import replace
from pathlib import Path

import pytest
import wandb
from support.wandb_runs import beginning

from dcgan_dist import cli
from dcgan_dist.config import Config
from dcgan_dist.config.run_groups import WandbConfig
from dcgan_dist.run import wandb as run_wandb
from dcgan_dist.run.wandb_key import resolve_mode
from dcgan_dist.run.wandb_settings import (
    FIXED,
    OBEYED,
    OPTIONS,
    asked_mode,
    hidden,
    not_used,
    obey,
    unreadable,
    variables,
)

PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
KEY = {"HOME": "/nowhere", "WANDB_API_KEY": "k"}
TYPED = {"project": "gans", "entity": "us", "group": "nightly", "tags": ("fruit",), "job_type": "search"}
TYPED |= {"name": "trial-7", "notes": "the third"}


@pytest.mark.parametrize("name", [*OPTIONS, *OBEYED, *FIXED])
def test_the_page_names_it(name):
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize(("name", "option"), [row for row in OPTIONS.items() if row[1] != "mode"])
def test_an_option_that_is_given_wins_and_else_the_variable_counts(name, option):
    value, taken = ("a, b,", ("a", "b")) if option == "tags" else ("thesis", "thesis")
    env = {"HOME": "/nowhere", name: value}
    chosen = obey(WandbConfig(), env, ())
    assert (chosen, not_used(chosen, env)) == (replace(WandbConfig(), **{option: taken}), [])
    for ours in (WandbConfig(), replace(WandbConfig(), **{option: TYPED[option]})):  # also the default, if it is given
        assert obey(ours, env, {f"wandb.{option}"}) == ours
        assert not_used(ours, env) == [f"{name}={value}: not used, because --wandb.{option} is given"]


@pytest.mark.parametrize("place", ["typed", "in a file"])
def test_options_that_are_given_with_their_defaults_win(place, monkeypatch, tmp_path):
    """And what a variable asked for stands in config.yaml, which trains the same again without it."""
    for name, option in OPTIONS.items():
        if option != "mode":
            monkeypatch.setenv(name, "thesis")
    asked = cli.load([])
    texts = dict.fromkeys(("project", "entity", "group", "job_type", "name", "notes"), "thesis")
    assert asked.wandb == WandbConfig(**texts, tags=("thesis",))
    (tmp_path / "asked.yaml").write_text(cli.dump(asked))
    empty = ("entity", "group", "job_type", "name", "notes")
    (tmp_path / "x.yaml").write_text(f"wandb: {{project: dcgan_dist, {': , '.join(empty)}: , tags: []}}\n")
    typed = ["--wandb.project", "dcgan_dist", *(word for name in empty for word in (f"--wandb.{name}", "None"))]
    typed.append("--wandb.tags")
    assert cli.load(typed if place == "typed" else ["--config", str(tmp_path / "x.yaml")]).wandb == WandbConfig()
    for name in OPTIONS:
        monkeypatch.delenv(name, raising=False)
    assert cli.load(["--config", str(tmp_path / "asked.yaml")]) == asked


@pytest.mark.parametrize("name", FIXED)
def test_what_is_not_used_is_reported_and_hidden_from_wandb(name, monkeypatch):
    value = "false" if FIXED[name] == "true" else "7"
    env = {"HOME": "/nowhere", name: value}
    assert obey(WandbConfig(), env, ()) == WandbConfig()
    assert [line.startswith(f"{name}={value}: not used") for line in not_used(WandbConfig(), env)] == [True]
    assert not_used(WandbConfig(), env | {name: FIXED[name].title()}) == []
    monkeypatch.setenv(name, "7")
    with hidden():
        assert name not in run_wandb.os.environ
    assert run_wandb.os.environ[name] == "7"


def test_what_stands_instead_is_what_wandb_is_given():
    """Under the names that W&B itself has for them."""
    known = run_wandb._settings(lambda: None) | {"resume": "allow", "silent": True, "save_code": False}
    fields = wandb.Settings.model_fields
    for name, instead in FIXED.items():
        option = name.removeprefix("WANDB_").lower()
        assert option in fields, name
        if instead:
            value = known[option]
            assert (f"{value:g}" if isinstance(value, float) else str(value).lower()) == instead.lower()


@pytest.mark.parametrize(
    ("env", "mode"),
    [
        ({"WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "disabled"),
        ({"WANDB_DISABLED": "anything"}, "disabled"),
        ({"WANDB_DISABLED": "false"}, "online"),
        ({"WANDB_DISABLED": ""}, "online"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "DRYRUN"}, "offline"),
        ({"WANDB_MODE": "shared"}, "disabled"),
    ],
)
def test_nothing_is_sent_where_a_variable_says_no(env, mode):
    assert resolve_mode(WandbConfig(), KEY | env)[0] == mode
    given, reason = resolve_mode(WandbConfig(mode="online"), KEY | env)
    assert given == "online"  # it was asked for by name
    variable, value = next(iter(env.items()))
    assert reason.startswith("--wandb.mode online" + f", not {variable}={value}" * (mode != "online"))


@pytest.mark.parametrize(
    ("text", "env", "asked"),
    [
        ("[default]\nmode = offline\n", {}, ("offline", "mode = offline in W&B's settings")),
        ("[default]\nmode = disabled\n", {}, ("disabled", "mode = disabled in W&B's settings")),
        ("[default]\nmode = offline\n", {"WANDB_MODE": "online"}, ("online", "WANDB_MODE=online")),
        ("[default]\nmode = online\n", {}, None),  # no longer disabled: the key decides
        ("mode = offline\n", {}, None),
        ("", {}, None),
    ],
)
@pytest.mark.parametrize("place", ["wandb/settings", ".wandb/settings", "home/.config/wandb/settings", "own/settings"])
def test_the_files_of_wandb_offline_count(place, text, env, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = {"HOME": str(tmp_path / "home")} | env
    if place.startswith("own"):
        env["WANDB_CONFIG_DIR"] = str(tmp_path / "own")
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text(text)
    assert asked_mode(env) == asked


def test_the_files_of_wandb_init_and_login_count(tmp_path):
    """The folder's before the person's; the key is read by W&B alone."""
    for place, text in (
        ("home/.config/wandb", "[default]\nproject = old\nbase_url = http://lab\napi_key = hush\n"),
        ("work/wandb", "[default]\nproject = thesis\nentity = us\n"),
    ):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "settings").write_text(text)
    env = {"HOME": str(tmp_path / "home"), "WANDB_DIR": str(tmp_path / "work"), "WANDB_ENTITY": "them"}
    assert variables(env) == env | {"WANDB_PROJECT": "thesis", "WANDB_BASE_URL": "http://lab"}
    chosen = obey(WandbConfig(), env, ())
    assert (chosen.project, chosen.entity) == ("thesis", "them")
    lines = not_used(replace(chosen, project="gans"), env)
    assert lines == ["project = thesis in W&B's settings: not used, because --wandb.project is given"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[default]\nproject = b\nproject = c\n", "option 'project' in section 'default' already exists"),
        (b"[default]\nproject = b\n[default]\n", "section 'default' already exists"),
        (b"api_key = hush\n", "File contains no section headers."),
        (b"[default]\nproject = b\nhush\n", "Source contains parsing errors: 'settings'"),
        (b"\xff\xfe", "'utf-8' codec can't decode"),
        (None, "Is a directory"),
    ],
)
def test_a_settings_file_that_cannot_be_read_is_not_used_and_named(text, reason, tmp_path, monkeypatch):
    """Not in part, either; the other file counts."""
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "work"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home"))
    for place in ("work/wandb", "home"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "home" / "settings").write_text("[default]\nproject = a\n")
    path = tmp_path / "work" / "wandb" / "settings"
    if text is None:
        path.mkdir()
    else:
        path.write_bytes(text)
    assert cli.load(["--wandb.mode", "disabled"]).wandb == WandbConfig(mode="disabled", project="a")
    (line,) = unreadable(run_wandb.os.environ)
    assert line.startswith(f"{path}: not used, because it cannot be read (")
    assert reason in line
    assert "hush" not in line
    said = []
    assert run_wandb.open_wandb(beginning(Config(wandb=WandbConfig(mode="disabled")), said)) is None
    assert said == [f"W&B: {line}", "W&B: disabled (--wandb.mode disabled)"]
