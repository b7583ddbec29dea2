"""What Accelerate's launcher, its config file and thread counts ask for, row by row of the table."""

import inspect
import logging
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.commands import launch as accelerate_launch
from accelerate.utils import launch as launch_env
from support.launching import call
from support.ranks import ends_of_ranks, run_ranks
from support.recording import options, record_training
from support.shards import write_ours

from dcgan_dist.cli import load
from dcgan_dist.config import Config
from dcgan_dist.config.checks import ConfigError
from dcgan_dist.config.settings import PARTS, PREFIXES, SETTINGS, apply_settings, requested_threads, started_by_launcher
from dcgan_dist.parallel.accelerator import accelerator_for
from dcgan_dist.train import main

PAGE = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
ASKED = {  # a value that asks for something, where "true" does not
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_LOG_LEVEL": "debug",
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "ACCELERATE_TORCH_DEVICE": "cuda:1",
    "ACCELERATE_GRADIENT_CLIPPING": "1.0",
    "OMP_NUM_THREADS": "3,2",
    "MKL_NUM_THREADS": "3",
}
OURS = {"precision": ("bf16", "fp32"), "accumulate": (4, 2), "debug": (True, False)}
"""What the value above makes of an option, and another value of it."""
ROWS = pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.variable)


@ROWS
def test_the_page_names_it(setting):
    rows = [line for line in PAGE.splitlines() if f"`{setting.variable}`" in line]
    assert rows, setting
    assert setting.launcher in rows[0]


@ROWS
def test_each_does_what_the_table_says(setting):
    value = ASKED.get(setting.variable, "true")
    given = {setting.variable: value}
    if setting.does == "refused":
        with pytest.raises(ConfigError, match=f"^{setting.variable}={value}( |:).*{re.escape(setting.launcher)}"):
            apply_settings(Config(), given, ())
        return
    config, lines = apply_settings(Config(), given, ())
    if setting.does != "option":
        assert config == Config()
        outcome = {"unused": "not used", "obeyed": "obeyed"}[setting.does]
        assert [line.startswith(f"{setting.variable}={value}: {outcome}; ") for line in lines] == [True] * bool(
            setting.text
        )
        return
    asked, other = OURS[setting.option]
    assert config == replace(Config(), **{setting.option: asked})
    assert [line.startswith(f"{setting.variable}={value}: taken as --{setting.option}") for line in lines] == [True]
    assert apply_settings(config, given, {setting.option}) == (config, [])  # the option says the same
    for kept in (other, getattr(Config(), setting.option)):
        ours = replace(Config(), **{setting.option: kept})
        line = f"{setting.variable}={value}: not used, because --{setting.option} {kept} is given"
        assert apply_settings(ours, given, {setting.option}) == (ours, [line])


@pytest.mark.parametrize("setting", [row for row in SETTINGS if row.option], ids=lambda setting: setting.variable)
@pytest.mark.parametrize("place", ["typed", "in a file"])
def test_an_option_that_is_given_with_its_default_wins(setting, place, monkeypatch, tmp_path, capsys):
    value = ASKED.get(setting.variable, "true")
    monkeypatch.setenv(setting.variable, value)
    default = getattr(Config(), setting.option)
    (tmp_path / "x.yaml").write_text(f"{setting.option}: {str(default).lower()}\n")
    typed = [f"--{setting.option}", str(default).lower()]
    assert load(typed if place == "typed" else ["--config", str(tmp_path / "x.yaml")]) == Config()
    line = f"{setting.variable}={value}: not used, because --{setting.option} {default} is given\n"
    assert capsys.readouterr().out == line
    assert getattr(load([]), setting.option) == OURS[setting.option][0]


def test_a_switch_that_is_turned_off_by_name_is_given(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DEBUG_MODE", "true")
    for typed in (["--no_debug"], ["--no-debug"], ["--debug=false"]):
        assert not load(typed).debug


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ACCELERATE_MIXED_PRECISION", "no"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"),
        ("ACCELERATE_DYNAMO_BACKEND", "NO"),
        ("ACCELERATE_GRADIENT_CLIPPING", ""),
        ("OMP_NUM_THREADS", ""),
        ("OMP_NUM_THREADS", "0"),
        ("OMP_NUM_THREADS", "0,2"),
        ("MKL_NUM_THREADS", "0"),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT"),
        ("NVIDIA_TF32_OVERRIDE", "0"),
        *((setting.variable, "False") for setting in SETTINGS if setting.flag),
    ],
)
def test_a_value_that_asks_for_nothing_is_no_request(variable, value):
    assert apply_settings(Config(), {variable: value}, ()) == (Config(), [])


@pytest.mark.parametrize(
    ("variable", "value", "what"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp8", "must be no, bf16 or fp16"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto", "must be an integer"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "0", "must be an integer, at least 1"),
        ("ACCELERATE_DEBUG_MODE", "2", "must be true or false"),
        ("ACCELERATE_USE_CPU", "", "must be true or false"),
        ("ACCELERATE_CPU_AFFINITY", "all", "must be true or false"),
        ("ACCELERATE_LOG_LEVEL", "verbose", "must be one of CRITICAL"),
        ("ACCELERATE_USE_FSDP", "maybe", "must be true or false"),
        ("OMP_NUM_THREADS", "many", "must be an integer"),
        ("OMP_NUM_THREADS", ",2", "must be an integer"),
        ("OMP_NUM_THREADS", "1000000", "must be an integer, at most 4,096"),
        ("MKL_NUM_THREADS", "-1", "must be an integer"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4,2", "must be an integer"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(variable, value, what):
    with pytest.raises(ConfigError, match=f"^{variable}={value}.*: {what}"):
        apply_settings(Config(), {variable: value}, ())


def test_an_option_that_is_given_wins_over_what_cannot_be_met():
    config = Config(precision="fp32")
    assert apply_settings(config, {"ACCELERATE_MIXED_PRECISION": "fp8"}, {"precision"}) == (
        config,
        ["ACCELERATE_MIXED_PRECISION=fp8: not used, because --precision fp32 is given"],
    )


@pytest.mark.parametrize("prefix", PREFIXES)
def test_unknown_settings_are_named_in_one_line(prefix):
    assert f"`{prefix}*`" in PAGE
    _, lines = apply_settings(Config(), {f"{prefix}ONE": "1", f"{prefix}TWO": "", "ELSE": "1"}, ())
    assert lines == [f"{prefix}ONE, {prefix}TWO: not used; the trainer has no such setting"]


def launcher_environment(prepare, *arguments):
    """What accelerate launch sets."""
    args = accelerate_launch.launch_command_parser().parse_args([*arguments, "-m", "dcgan_dist.train"])
    args, _, _ = accelerate_launch._validate_launch_command(args)
    made = prepare(args)
    return made if isinstance(made, dict) else made[1]


@pytest.mark.parametrize(
    ("prepare", "arguments"),
    [
        (launch_env.prepare_simple_launcher_cmd_env, ["--cpu", "--num_processes", "1", "--num_machines", "1"]),
        (launch_env.prepare_multi_gpu_env, ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]),
    ],
)
def test_a_launcher_without_settings_causes_no_line(prepare, arguments, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))  # no config file of the user's
    env = launcher_environment(prepare, *arguments)
    assert started_by_launcher(env)
    assert apply_settings(Config(), env, ()) == (Config(), [])


def test_somebody_decided_about_everything_that_the_launcher_sets():
    names = set(re.findall(r'current_env\["(\w+)"\]', inspect.getsource(launch_env)))
    left = {"PYTHONPATH", "MASTER_ADDR", "MASTER_PORT", "KMP_AFFINITY", "KMP_BLOCKTIME"}
    known = {setting.variable for setting in SETTINGS} | left
    assert len(names & known) > 10
    assert {n for n in names - known if not n.startswith((*PREFIXES, *PARTS)) and "VISIBLE" not in n} == {
        "ZE_AFFINITY_MASK"  # devices of other makers, which the trainer does not use
    }


def test_one_process_where_several_were_asked_for_is_reported():
    env = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}
    assert "--multi_gpu" in apply_settings(Config(), env, ())[1][0]
    for rank in ({"RANK": "0"}, {"WORLD_SIZE": "2"}, {"OMPI_COMM_WORLD_SIZE": "2"}):
        assert apply_settings(Config(), env | rank, ())[1] == []


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"OMP_NUM_THREADS": "1"}, (1, "OMP_NUM_THREADS=1")),
        ({"OMP_NUM_THREADS": "4,2", "LOCAL_RANK": "0"}, (4, "OMP_NUM_THREADS=4,2")),
        ({"OMP_NUM_THREADS": "1", "LOCAL_RANK": "0"}, None),
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, None),
        ({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LOCAL_RANK": "0"}, (1, "MKL_NUM_THREADS=1")),
        ({"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "2"}, (2, "MKL_NUM_THREADS=2")),
        ({"OMP_NUM_THREADS": "", "MKL_NUM_THREADS": ""}, None),
        ({"OMP_NUM_THREADS": "0", "MKL_NUM_THREADS": "0"}, None),
        ({"OMP_NUM_THREADS": " 3 , 2", "MKL_NUM_THREADS": "0"}, (3, "OMP_NUM_THREADS= 3 , 2")),
    ],
)
def test_threads_are_those_that_a_person_asked_for(env, expected):
    assert requested_threads(env, ours=False) == expected


def test_one_thread_that_our_launcher_passes_on_was_asked_for():
    env = {"OMP_NUM_THREADS": "1", "LOCAL_RANK": "0"}
    assert requested_threads(env, ours=True) == (1, "OMP_NUM_THREADS=1")


def test_accelerate_logs_at_the_level_that_is_asked_for(monkeypatch, capfd):
    log = logging.getLogger("accelerate")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "level", logging.INFO)
    accelerator_for(1, cpu=True)
    assert log.handlers == []
    monkeypatch.setenv("ACCELERATE_LOG_LEVEL", "info")
    accelerator_for(1, cpu=True)
    logging.getLogger("accelerate.state").info("how it is")
    assert capfd.readouterr().err == "how it is\n"


# ---- on real ranks


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_ours(tmp_path_factory.mktemp("shards") / "a.tar", 24)


def recorded(shards, folder, *changes: str, **variables: str):
    given = options(shards, folder, *changes, iterations=2)
    variables["MKL_NUM_THREADS"] = "1"  # other threads would round otherwise
    arrays, _ = run_ranks(1, record_training, given, 1, variables=variables)[0]
    return {name: value.tobytes() for name, value in arrays.items()}


@pytest.mark.dist
def test_what_is_not_used_changes_no_bit(shards, tmp_path):
    """Every gradient and every weight."""
    unused = {
        setting.variable: ASKED.get(setting.variable, "true")
        for setting in SETTINGS
        if setting.does in ("option", "unused")
    }
    unused |= {f"{family}X": "1" for family in PREFIXES} | {"ACCELERATE_DYNAMO_MODE": "max-autotune"}
    given = "--accumulate 2"  # and --precision fp64
    plain = recorded(shards, tmp_path / "plain", given)
    assert len(plain) > 50
    assert recorded(shards, tmp_path / "set", given, **unused) == plain


@pytest.mark.dist
def test_accumulation_that_is_asked_for_is_the_option(shards, tmp_path):
    asked = recorded(shards, tmp_path / "asked", ACCELERATE_GRADIENT_ACCUMULATION_STEPS="3")
    assert asked == recorded(shards, tmp_path / "given", "--accumulate 3")
    assert asked != recorded(shards, tmp_path / "plain")


def train_under(values, given):
    """One rank of several, whose nodes have different variables."""
    if value := values[int(os.environ["RANK"])]:
        os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = value
    return main(given)


@pytest.mark.dist
def test_ranks_that_are_asked_for_different_things_are_refused_once(shards, tmp_path):
    ends = ends_of_ranks(2, train_under, ["", "2"], options(shards, tmp_path / "run"))
    assert [end.code for end in ends] == [2, 2]
    assert ends[0].error.startswith("error: --accumulate is 1 on rank 0 and 2 on rank 1: every node needs the same")
    assert ends[0].error.count("\n") == 1
    assert ends[1].error == ""


@pytest.mark.usefixtures("as_before")
def test_a_run_that_goes_on_under_another_setting_is_refused(shards, tmp_path, monkeypatch, capfd):
    given = options(shards, tmp_path / "run", iterations=1)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    assert main(given) == 0
    assert "accumulate: 2\n" in (tmp_path / "run" / "config.yaml").read_text()
    assert capfd.readouterr().out.count("ACCELERATE_GRADIENT_ACCUMULATION_STEPS") == 1
    monkeypatch.delenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    assert main([*given, "--images", "24"]) == 2
    assert "accumulate" in capfd.readouterr().err


def test_what_the_launcher_keeps_to_itself_is_heard(tmp_path):
    """It passes this option on with DeepSpeed alone, and starts one process on CPUs."""
    done = call(
        "accelerate", "launch", "--quiet", "--cpu", "--num_processes", "2", "--gradient-accumulation-steps=4",
        "--mixed_precision", "bf16", "-m", "dcgan_dist.train", "--dry_run", "--run_dir", tmp_path / "run",
        HF_HOME=tmp_path, PYTHONPATH=":".join(sys.path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for line in ("STEPS=4: taken as --accumulate 4", "=bf16: taken as --precision bf16", "needs --multi_gpu"):
        assert done.stdout.count(line) == 1
    assert "\nbf16 on cpu: as asked\n" in done.stdout


@pytest.mark.parametrize("given", [None, "", "4,2"])
def test_accelerate_does_not_choose_the_threads(given, monkeypatch):
    """It would warn where the variable is not set, and fail where it is a list."""
    import accelerate

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    seen: list[str | None] = []
    monkeypatch.setattr(accelerate, "Accelerator", lambda **_: seen.append(os.environ.get("OMP_NUM_THREADS")))
    accelerator_for(1, cpu=True)()
    assert seen == ["1"]
    assert os.environ.get("OMP_NUM_THREADS") == given


@pytest.mark.parametrize("given", [None, "2"])
def test_accelerate_does_not_give_the_ranks_of_a_node(given, monkeypatch):
    """Where the launcher did not: BatchNorm of a node's ranks, threads and the cache are shared out by this number."""
    import accelerate

    monkeypatch.setenv("LOCAL_WORLD_SIZE", given or "")
    if given is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(accelerate, "Accelerator", lambda **_: os.environ.setdefault("LOCAL_WORLD_SIZE", "1"))
    accelerator_for(1, cpu=True)()
    assert os.environ.get("LOCAL_WORLD_SIZE") == given
