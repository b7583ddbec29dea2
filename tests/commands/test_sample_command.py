"""`dcgan-dist sample`: pictures of the generator of a checkpoint, whatever their number or the batch they are in."""

import numpy as np
import pytest
import torch
from PIL import Image

from dcgan_dist.__main__ import main
from dcgan_dist.config import Config, flatten
from dcgan_dist.config.groups import ModelConfig
from dcgan_dist.gan.state import create_state
from dcgan_dist.run import checkpoint

MODEL = ModelConfig(image_size=32, nz=5, ngf=4, ndf=4)


@pytest.fixture
def run(tmp_path):
    """A run folder with one checkpoint of networks whose average differs from the generator."""
    config = Config(model=MODEL, seed=3)
    state = create_state(config, torch.device("cpu"), torch.float32, scaled=False)
    with torch.no_grad():
        for parameter in state.netg.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    numbers = {
        "images": 640,
        "config": {name: value for name, value in flatten(config).items() if name.startswith("model.")},
    }
    folder = tmp_path / "run"
    checkpoint.save(folder / "checkpoints", 640, state.tensors(), numbers, keep=2)
    return folder


def pictures(folder):
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]


def test_a_grid_and_single_pictures_show_the_same(run, tmp_path, capsys):
    assert main(["sample", str(run), "--out", str(tmp_path / "grid.png"), "--count", "4"]) == 0
    assert "4 pictures of netg_ema at 640 images" in capsys.readouterr().out
    assert main(["sample", str(run), "--out", str(tmp_path / "single"), "--count", "4"]) == 0
    single = pictures(tmp_path / "single")
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert [picture.shape for picture in single] == [(32, 32, 3)] * 4
    assert np.array_equal(grid[2:34, 2:34], single[0])
    assert np.array_equal(grid[36:68, 36:68], single[3])


def test_a_picture_does_not_depend_on_how_many_are_drawn(run, tmp_path):
    for count in (3, 70):
        main(["sample", str(run), "--out", str(tmp_path / str(count)), "--count", str(count)])
    for few, many in zip(pictures(tmp_path / "3"), pictures(tmp_path / "70"), strict=False):
        # convolutions of another batch size may round the last bit otherwise
        assert np.abs(few.astype(int) - many.astype(int)).max() <= 1
    assert len(pictures(tmp_path / "70")) == 70


def test_seed_and_network_matter(run, tmp_path):
    drawn = {}
    for name, options in {"a": [], "seed": ["--seed", "1"], "raw": ["--network", "netg"], "again": []}.items():
        main(["sample", str(run), "--out", str(tmp_path / f"{name}.png"), "--count", "4", *options])
        drawn[name] = (tmp_path / f"{name}.png").read_bytes()
    assert drawn["a"] == drawn["again"]
    assert len(set(drawn.values())) == 3


@pytest.mark.parametrize("path", ["000000640", "latest", ""])
def test_a_checkpoint_of_its_own_will_do(run, tmp_path, path):
    main(["sample", str(run), "--out", str(tmp_path / "a.png")])
    main(["sample", str(run / "checkpoints" / path), "--out", str(tmp_path / "b.png")])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 2, "nowhere: neither a run's folder"),
        (["RUN", "--count", "0"], 2, "--count 0: must be at least 1"),
        (["RUN", "--count", "1e5"], 2, "--count 100000: one picture shows at most 10,000; --out FOLDER takes more"),
        (["RUN", "--out", ""], 2, "--out '': is empty; give a value, or leave it out"),
        (["x" * 5000], 1, "File name too long"),
        (["RUN", "--device", "gpu"], 2, "--device gpu"),
        (["RUN", "--cuont", "3"], 2, "--count"),
        ([], 2, "SOURCE"),
    ],
)
def test_a_wrong_option_is_one_line(run, capsys, arguments, code, words):
    assert main(["sample", *(str(run) if word == "RUN" else word for word in arguments)]) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_damaged_checkpoint_is_refused(run, tmp_path, capsys):
    weights = run / "checkpoints" / "000000640" / "netg_ema.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert main(["sample", str(run), "--out", str(tmp_path / "a.png")]) == 1
    assert "none of the 1 checkpoints is intact" in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("about", [{}, {"config": None}, {"config": {"model.depth": 3}}])
def test_a_checkpoint_of_unknown_networks_is_one_line(tmp_path, capsys, about):
    path = checkpoint.save(tmp_path, 640, {"netg_ema": {"x": torch.zeros(1)}}, {"images": 640} | about, keep=2)
    assert main(["sample", str(path), "--out", str(tmp_path / "x.png")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}/state.json: describes no networks that this version knows (")
    assert error.count("\n") == 1
