"""Files that commands write: what is there stays unless --overwrite is given, and the ending of a picture counts."""

import importlib

import numpy as np
import pytest
import torch
from PIL import Image, features
from support.shards import write_ours

from dcgan_dist.__main__ import main
from dcgan_dist.commands import output
from dcgan_dist.config import Config, flatten
from dcgan_dist.config.groups import ModelConfig
from dcgan_dist.errors import UserError
from dcgan_dist.gan.state import create_state
from dcgan_dist.run import checkpoint

MINE = b"not to be lost"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a run of tiny networks and a shard."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    config = Config(model=ModelConfig(image_size=32, nz=5, ngf=4, ndf=4))
    state = create_state(config, torch.device("cpu"), torch.float32, scaled=False)
    about = {name: value for name, value in flatten(config).items() if name.startswith("model.")}
    checkpoint.save(tmp_path / "run" / "checkpoints", 640, state.tensors(), {"images": 640, "config": about}, keep=2)
    write_ours(tmp_path / "a.tar", 3)
    return tmp_path


COMMANDS = {
    "sample, a grid": ("sample run --count 2 --out x.jpg", "x.jpg"),
    "sample, a folder": ("sample run --count 2 --out new", "new/000001.png"),
    "sample, a folder that is there": ("sample run --count 2 --out run", "run/000000.png"),
    "inspect, the name of its default": ("inspect a.tar --out contact.png", "contact.png"),
    "inspect, a sheet": ("inspect a.tar --out x.webp", "x.webp"),
    "inspect, facts": ("inspect a.tar --count 0 --json x.json", "x.json"),
    "verify": ("verify a.tar --json x.json", "x.json"),
    "doctor": ("doctor --only precision --json x.json", "x.json"),
}


@pytest.mark.parametrize(("command", "name"), COMMANDS.values(), ids=COMMANDS)
def test_a_file_that_is_there_is_replaced_only_if_that_is_asked_for(folder, capsys, command, name):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(MINE)
    before = sorted(folder.rglob("*"))
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f" {name}: exists; name another file, or add --overwrite" in err
    assert sorted(folder.rglob("*")) == before
    assert path.read_bytes() == MINE
    assert main([*command.split(), "--overwrite"]) == 0
    assert path.read_bytes() != MINE
    for written in path.parent.glob(f"*{path.suffix}"):
        written.unlink()
    assert main(command.split()) == 0


@pytest.mark.parametrize(("command", "name"), [("sample run --count 2", "samples"), ("inspect a.tar", "contact")])
def test_a_default_that_is_there_stays_and_another_name_is_taken(folder, capsys, command, name):
    names = [f"{name}.png", f"{name}-2.png", f"{name}-3.png"]
    for there in range(3):
        assert main(command.split()) == 0
        out, err = capsys.readouterr()
        assert (out.endswith(f" in {names[there]}\n"), err) == (True, "")
        assert sorted(path.name for path in folder.glob("*.png")) == sorted(names[: there + 1])
    (folder / names[0]).write_bytes(MINE)
    (folder / names[1]).unlink()
    (folder / names[1]).mkdir()
    assert main(command.split()) == 0
    assert (folder / names[0]).read_bytes() == MINE
    assert (folder / f"{name}-4.png").read_bytes() == (folder / names[2]).read_bytes()
    assert main([*command.split(), "--overwrite"]) == 0
    assert (folder / names[0]).read_bytes() == (folder / names[2]).read_bytes()


@pytest.mark.parametrize("command", ["inspect a.tar --count 0 --json x.json", "verify a.tar --json x.json"])
def test_what_was_found_is_printed_also_where_its_file_cannot_be_written(folder, capsys, monkeypatch, command):
    module = importlib.import_module(f"dcgan_dist.commands.{command.split()[0]}")
    monkeypatch.setattr(module, "check_output", lambda *_: (folder / "x.json").write_bytes(MINE))  # appears meanwhile
    assert main(command.split()) == 1
    out, err = capsys.readouterr()
    assert "3 " in out
    assert err == "error: x.json: cannot be written (File exists)\n"
    assert (folder / "x.json").read_bytes() == MINE


@pytest.mark.parametrize("name", ["sample, a folder", "inspect, a sheet", "verify", "doctor"])
def test_a_folder_in_its_place_is_refused(folder, capsys, name):
    command, name = COMMANDS[name]
    (folder / name).mkdir(parents=True, exist_ok=True)
    assert main([*command.split(), "--overwrite"]) == 2
    assert f" {name}: is a folder; name a file" in capsys.readouterr().err


PLACES = {
    "sample, below a file": ("sample run --count 2 --out a.tar/x.png", "a.tar/x.png: a.tar is no folder"),
    "sample, a folder below a file": ("sample run --count 2 --out a.tar/x", "a.tar/x/000000.png: a.tar is no folder"),
    "sample, a file": (
        "sample run --count 2 --out run/checkpoints/latest",
        "000000.png: run/checkpoints/latest is no f",
    ),
    "sample, a checkpoint": (
        "sample run --count 2 --out run/checkpoints/000000640",
        "/run/checkpoints/000000640 is a checkpoint, which training removes; choose another folder",
    ),
    "sample, below a checkpoint": ("sample run --out run/checkpoints/000000640/a/b.png", "000000640 is a checkpoint"),
    "inspect, below a file": ("inspect a.tar --out a.tar/x.png", "--out a.tar/x.png: a.tar is no folder"),
    "verify, below a file": ("verify a.tar --json a.tar/x.json", "--json a.tar/x.json: a.tar is no folder"),
    "verify, a folder below a file": ("verify a.tar --repair a.tar/x", "--repair a.tar/x/*: a.tar is no folder"),
    "inspect, its own shard": (
        "inspect a.tar --json a.tar --overwrite",
        "--json a.tar: is a tar, which is not replaced",
    ),
    "verify, its own shard": ("verify a.tar --json a.tar --overwrite", "--json a.tar: is a tar, which is not replaced"),
}


@pytest.mark.parametrize(("command", "line"), PLACES.values(), ids=PLACES)
def test_places_where_no_file_may_be_are_refused_before_any_work(folder, capsys, command, line):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), line in err) == ("", 1, True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", ["sample ../..", "inspect ../../../a.tar"])
def test_the_default_is_not_written_into_a_checkpoint(folder, monkeypatch, capsys, command):
    monkeypatch.chdir(folder / "run" / "checkpoints" / "000000640")
    assert main(command.split()) == 2
    assert f"{folder}/run/checkpoints/000000640 is a checkpoint, which training removes" in capsys.readouterr().err
    assert not list(folder.rglob("*.png"))


@pytest.mark.parametrize("name", ["run/checkpoints", "000000640", "project"])
def test_a_folder_that_is_no_checkpoint_takes_files(folder, name):
    """Other programs have a state.json, too, or a manifest.json."""
    place = folder / name
    place.mkdir(exist_ok=True)
    (place / ("state.json" if name == "000000640" else "manifest.json")).write_text("{}")
    assert main(["sample", "run", "--count", "2", "--out", f"{name}/x.png"]) == 0


def test_a_file_that_appears_meanwhile_stays(folder, monkeypatch, capsys):
    monkeypatch.setattr(output, "check_output", lambda *_: None)
    (folder / "samples.png").write_bytes(MINE)
    assert main(["sample", "run", "--count", "2", "--out", "samples.png"]) == 1
    assert capsys.readouterr().err == "error: samples.png: cannot be written (File exists)\n"
    assert (folder / "samples.png").read_bytes() == MINE


def test_two_commands_at_once_take_two_default_names(folder, monkeypatch, capsys):
    true = output.write_picture

    def after_another(array, path, overwrite):
        monkeypatch.setattr(output, "write_picture", true)
        path.write_bytes(MINE)
        true(array, path, overwrite)

    monkeypatch.setattr(output, "write_picture", after_another)
    assert main(["sample", "run", "--count", "2"]) == 0
    assert capsys.readouterr().out.endswith(" in samples-2.png\n")
    assert (folder / "samples.png").read_bytes() == MINE


EXACT = {".png", ".webp", ".tif", ".tiff", ".bmp", ".ppm"}


@pytest.mark.parametrize("ending", [*output.PICTURES, ".JPG"])
def test_the_ending_says_the_format(folder, capsys, ending):
    kind = output.PICTURES[ending.lower()][0]
    assert main(["sample", "run", "--count", "2"]) == 0
    code = main(["sample", "run", "--count", "2", "--out", f"x{ending}"])
    if kind == "AVIF" and not features.check("avif"):
        assert code == 2
        return
    with Image.open(folder / "samples.png") as wanted, Image.open(folder / f"x{ending}") as found:
        assert found.format == kind
        far = np.abs(np.asarray(wanted).astype(int) - np.asarray(found.convert("RGB"))).max()
    assert far == 0 if ending in EXACT else far < 30


@pytest.mark.parametrize("name", ["x.gif", "x.pdf", "x.jpgg", "x.tar", "x.", "x.heic"])
@pytest.mark.parametrize("command", ["sample run", "inspect a.tar"])
def test_an_ending_that_no_picture_has_is_refused(folder, capsys, command, name):
    if (command, name) != ("sample run", "x."):  # which has no ending
        assert main([*command.split(), "--out", name]) == 2
        assert f"error: --out {name}: pictures can be written as .png .jpg" in capsys.readouterr().err
        assert not (folder / name).exists()


@pytest.mark.parametrize("name", ["run-1.5", "pictures"])
def test_other_names_are_folders(folder, name):
    assert main(["sample", "run", "--count", "2", "--out", name]) == 0
    assert sorted(path.name for path in (folder / name).iterdir()) == ["000000.png", "000001.png"]


def test_a_picture_that_is_too_large_for_its_format_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"x\.webp: 20000x1 pixels cannot be written as WEBP \(.*\); use \.png$"):
        output.write_picture(np.zeros((1, 20_000, 3), dtype=np.uint8), tmp_path / "x.webp", overwrite=False)
