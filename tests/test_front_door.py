"""`dcgan-dist COMMAND`."""

import os
import subprocess
import sys

import pytest

from dcgan_dist import __main__ as front
from dcgan_dist import __version__


def test_the_front_door_lists_the_commands(capsys):
    assert front.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, (_, about) in front.COMMANDS.items():
        assert f"  {name} " in text
        assert about in text
    assert front.main([]) == 2
    assert capsys.readouterr().out == text


def test_an_unknown_command_is_refused(capsys):
    assert front.main(["trane"]) == 2
    commands = "train, launch, shard, verify, inspect, doctor, watch, wandb, sample, dashboard, report"
    assert capsys.readouterr().err == f"error: dcgan-dist has no command 'trane'; there are {commands}\n"


@pytest.mark.parametrize(
    ("arguments", "traceback"),
    [
        (["sample", "NAME"], False),
        (["--debug", "sample", "NAME"], True),
        (["sample", "NAME", "--debug"], True),
        (["sample", "--debug=true", "NAME"], True),
        (["verify", "--debug", "false", "NAME*"], False),
    ],
)
def test_names_that_are_no_text_and_debug_of_every_command(arguments, traceback):
    name = os.fsdecode(b"n\xffne")
    command = [sys.executable, "-m", "dcgan_dist", *(word.replace("NAME", name) for word in arguments)]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert ("Traceback" in result.stderr) == traceback, result.stderr
    assert result.returncode == (1 if traceback else 2)
    assert "n\\udcffne" in result.stderr
    assert traceback or result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", front.COMMANDS)
def test_every_command_has_help(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:  # as the console script does with what main returns
        sys.exit(front.main([name, "--help"]))
    assert end.value.code in (0, None)
    printed = capsys.readouterr()
    assert "usage: " in printed.out
    assert printed.err == ""


WITHOUT_TORCH = """
import sys
sys.argv = ["dcgan-dist", *sys.argv[1:]]
from dcgan_dist.__main__ import main
try:
    code = main()
except SystemExit as end:
    code = end.code or 0
sys.exit(100 if "torch" in sys.modules else code)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["--help"], 0),
        (["--version"], 0),
        (["trane"], 2),
        *(([name, "--help"], 0) for name in front.COMMANDS),
        *(([name, "--no_such_option"], 2) for name in front.COMMANDS),
        (["train", "--dry_run", "--batch_size", "none"], 2),
        (["train", "--dry_run", "--loss.name", "wasserstein"], 2),
        (["train", "--config", "missing.yaml"], 2),
        (["train", "--print_config"], 0),
    ],
)
def test_help_and_wrong_options_answer_without_torch(arguments, code):
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    assert len(result.stderr.splitlines()) == (code == 2 and bool(arguments))


@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--imags=5", 2), ("--print_config", 0)])
def test_the_trainers_module_answers_without_torch(option, code):
    command = [sys.executable, "-X", "importtime", "-m", "dcgan_dist.train", option]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert "dcgan_dist.cli" in result.stderr
    assert "torch" not in result.stderr


@pytest.mark.parametrize("module", [["dcgan_dist.train"], ["dcgan_dist", "train"]])
def test_a_file_of_options_may_be_a_pipe(module, tmp_path):
    command = (
        f"{sys.executable} -m {' '.join(module)} --dry_run --run_dir {tmp_path / 'run'} --config <(echo 'images: 777')"
    )
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "images: 777" in result.stdout


def test_the_version(capsys):
    assert front.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dcgan_dist {__version__}\n"
