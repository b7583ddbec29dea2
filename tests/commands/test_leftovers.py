"""Without hard links, a process that is killed in giving a file its name leaves an empty file of that name.

The next start says that it is there; nothing takes it for a shard, a picture or a report.
"""

import os
import re
from pathlib import Path

import pytest
from support.shards import write_ours

from dcgan_dist import train
from dcgan_dist.__main__ import main
from dcgan_dist.data.system import storage


class KilledError(BaseException):
    """Ends the process at once, so that nothing is put in order."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a good shard and a damaged one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_ours(tmp_path / "a.tar", 3)
    data = bytearray(write_ours(tmp_path / "b.tar", 3).read_bytes())
    data[700] ^= 255
    (tmp_path / "b.tar").write_bytes(data)
    return tmp_path


def kill_in(monkeypatch, command):
    """Runs a command that is killed between the two steps of giving a file its name."""

    def no_links(*_args, **_options):
        raise PermissionError("no hard links")

    def killed(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_links)
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KilledError):
            main(command.split())


COMMANDS = {
    "inspect": ("inspect a.tar --out x.png", "x.png", "--out x.png: exists; name another file, or add"),
    "facts": ("inspect a.tar --count 0 --json x.json", "x.json", "--json x.json: exists; name another file"),
    "verify": ("verify a.tar --json x.json", "x.json", "--json x.json: exists; name another file, or add"),
    "doctor": ("doctor --only precision --json x.json", "x.json", "--json x.json: exists; name another file"),
    "repair": ("verify b.tar --repair new --processes 1", "new/b.tar", "--repair new: holds b.tar already; choose"),
}


@pytest.mark.parametrize(("command", "name", "line"), COMMANDS.values(), ids=COMMANDS)
def test_the_next_start_says_that_it_is_there(folder, monkeypatch, capsys, command, name, line):
    kill_in(monkeypatch, command)
    assert (folder / name).read_bytes() == b""
    capsys.readouterr()
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), line in err) == ("", 1, True)
    (folder / name).unlink()
    assert main(command.split()) == ("--repair" in command)
    assert (folder / name).stat().st_size


@pytest.mark.parametrize("command", ["inspect", "verify", "shard", "train"])
def test_an_empty_file_is_no_shard(folder, monkeypatch, capsys, command, as_before):
    kill_in(monkeypatch, COMMANDS["repair"][0])
    capsys.readouterr()
    if command == "train":
        code = train.main(["--data.shards", "new", "--run_dir", "run", "--model.image_size", "32"])
    else:
        code = main([command, "new", *(["out", "--store", "keep"] if command == "shard" else [])])
    out, err = capsys.readouterr()
    assert code == 1
    assert re.search(r"new/b\.tar( at byte 0)?: is empty\n", out + err)
    assert err.count("\n") <= 1
    assert not (folder / "out").exists()


def test_a_file_without_links_is_complete(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no hard links")))
        storage.write_atomically(folder / "x", b"all", new=True)
    assert (folder / "x").read_bytes() == b"all"
