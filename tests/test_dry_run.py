"""`--dry_run` says what a run would do, and does none of it."""

import pytest
from support.shards import write_ours

from dcgan_dist import cli, train
from dcgan_dist.config import Config
from dcgan_dist.parallel.world import launch


@pytest.fixture
def shard(tmp_path):
    return write_ours(tmp_path / "a.tar", 5)


def plan(capsys, *options: object) -> tuple[int, str]:
    code = train.main(["--dry_run", *map(str, options)])
    return code, capsys.readouterr().out


def test_it_shows_configuration_layers_split_precision_and_data(capsys, tmp_path, shard):
    run_dir = tmp_path / "run"
    code, text = plan(
        capsys, "--run_dir", run_dir, "--data.shards", shard, "--model.image_size", 96, "--precision", "bf16"
    )
    assert code == 0
    assert "NetG: 3,578,432 parameters, input 100 x 1 x 1\n" in text
    assert "NetD: 2,767,296 parameters, input 3 x 96 x 96\n" in text
    assert "\n1 rank: global batch 128, 128 images per rank; 2,000,000 images are 15,625 iterations\n" in text
    assert f"\nbf16 on {launch(Config()).device.type}: as asked\n" in text
    assert (
        "\ndata: 5 images in 1 shard; all indexes are intact, and each image is checked when it is first read\n" in text
    )
    assert not run_dir.exists()


def test_its_first_part_is_a_file_that_gives_the_same_run(capsys, tmp_path, shard):
    options = ["--run_dir", tmp_path / "run", "--data.shards", shard, "--optimizer.g_lr", "1e-4", "--augment", "color"]
    _, text = plan(capsys, *options)
    path = tmp_path / "config.yaml"
    path.write_text(text.partition("\nNetG: ")[0])
    assert cli.load(["--config", str(path)]) == cli.load(["--dry_run", *map(str, options)])


def test_it_may_be_asked_of_more_ranks_than_there_are(capsys, tmp_path, shard):
    code, text = plan(capsys, "--run_dir", tmp_path / "run", "--data.shards", shard, "--world_size", 64)
    assert code == 0
    assert "\n64 ranks: global batch 128, 2 images per rank; " in text


def test_the_embedded_faces_are_not_drawn_for_it(capsys, tmp_path, cache):
    before = sorted(cache.rglob("*"))
    code, text = plan(capsys, "--run_dir", tmp_path / "run", "--data.faces", 77)
    assert code == 0
    assert "\ndata: the embedded set of 77 cartoon faces" in text
    assert sorted(cache.rglob("*")) == before


@pytest.mark.parametrize("wrong", [["--data.shards", "none.tar"], ["--run_dir", "/proc/cmdline"]])
def test_what_a_run_would_stumble_over_is_found(capsys, tmp_path, shard, wrong):
    code = train.main(["--dry_run", "--run_dir", str(tmp_path / "run"), "--data.shards", str(shard), *wrong])
    assert code in (1, 2)
    assert capsys.readouterr().err.startswith("error: ")
