"""`dcgan-dist COMMAND`."""

import sys

import pytest

from dcgan_dist import __main__ as front


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
    commands = "train, launch, shard, verify, inspect, bench, doctor, sample"
    assert capsys.readouterr().err == f"error: dcgan-dist has no command 'trane'; there are {commands}\n"


@pytest.mark.parametrize("name", front.COMMANDS)
def test_every_command_has_help(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:  # as the console script does with what main returns
        sys.exit(front.main([name, "--help"]))
    assert end.value.code in (0, None)
    printed = capsys.readouterr()
    assert "usage: " in printed.out
    assert printed.err == ""
