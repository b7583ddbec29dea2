"""A run that cannot work is reported in one line, with the right exit code, before training where that is possible."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.disk import no_file_larger_than
from support.shards import encoded, write_ours, write_tar
from support.training import TINY
from support.waiting import LIMIT

from dcgan_dist import train
from dcgan_dist.run import checkpoint

OPTIONS = [*TINY, "--images", "32"]


pytestmark = pytest.mark.usefixtures("as_before")


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return write_ours(tmp_path_factory.mktemp("shards") / "a.tar", 12)


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def start(capsys, run_dir, shard):
    """Runs the command in this process; returns the exit code and what stands on standard error."""

    def start(*options: object) -> tuple[int, str]:
        argv = [*OPTIONS, "--run_dir", run_dir, "--data.shards", shard, *options]
        code = train.main([str(option) for option in argv])
        return code, capsys.readouterr().err

    return start


def in_a_process(*options: object) -> tuple[int, str]:
    """The same with a Python of its own, where no other holds what it writes."""
    command = [sys.executable, "-m", "dcgan_dist.train", *OPTIONS, *map(str, options)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
    return result.returncode, result.stderr


def refused(result: tuple[int, str], code: int, *words: object) -> None:
    """Asserts exactly one line, which holds the words, and the exit code."""
    found, text = result
    assert text.count("\n") == 1, text
    assert text.startswith("error: ")
    for word in words:
        assert str(word) in text
    assert found == code


WRONG = [
    (["--model.image_siz", 64], "--model.image_siz; did you mean --model.image_size?"),
    (["--images", "64.7"], "--images 64.7: must be an integer"),
    (["--model.image_size", 65], "Expected one of ('32', '48', '64', '96', '128', '192', '256')"),
    (["--loss.name", "wasserstein"], "--loss.gp_weight 10"),
    (["--loss.r1_gamma", 1], "use --model.d_norm layer or none"),
    (["--batch_size", 10, "--accumulate", 4], "--batch_size 10 does not divide evenly over 1 rank x --accumulate 4"),
    (["--batch_size", 10, "--world_size", 3], "over 3 ranks x --accumulate 1; the nearest that does is 9"),
    (["--world_size", 2], "--world_size 2, but 1 rank was launched; check --num_processes of accelerate launch"),
    (["--config", "/nowhere.yaml"], "--config /nowhere.yaml: cannot be read (No such file or directory)"),
    (["--resume", "/nowhere"], "--resume /nowhere: no such checkpoint folder"),
    (["--data.shards", "http://host/*.tar"], "http://host/*.tar: a web server has no listing"),
    (["--data.shards", "pipe:cat a.tar"], "--data.shards pipe:cat ...: a pipe cannot be indexed"),
    (["--data.shards", "nowhere/*.tar"], "--data.shards nowhere/*.tar: no such files"),
    (["--data.shards", Path(__file__).parent], "holds no shards (.tar); dcgan-dist shard "),
    (["--data.shards", "{0..1.tar"], "--data.shards {0..1.tar: the braces do not match"),
]


@pytest.mark.parametrize(("options", "words"), WRONG, ids=[" ".join(map(str, options)) for options, _ in WRONG])
def test_a_wrong_command_ends_before_anything_is_written(start, run_dir, options, words):
    refused(start(*options), 2, words)
    assert not run_dir.exists()


def test_a_wrong_key_in_a_file_is_named_with_the_file(start, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("optimizer:\n  lr: 1e-4\n")
    refused(start("--config", path), 2, f"{path}: there is no option --optimizer.lr; did you mean --optimizer.g_lr")


def shard_that_is(content: bytes):
    def make(folder: Path) -> Path:
        path = folder / "bad.tar"
        path.write_bytes(content)
        return path

    return make


def cut_shard(folder: Path) -> Path:
    path = write_ours(folder / "bad.tar", 12)
    path.write_bytes(path.read_bytes()[:-700])
    return path


def shard_without_images(folder: Path) -> Path:
    return write_tar(folder / "bad.tar", [("readme.txt", b"hello")])


BAD_SHARDS = {
    "missing": lambda folder: folder / "bad.tar",
    "empty": shard_that_is(b""),
    "a web page": shard_that_is(b"<!DOCTYPE html><html>404 Not Found</html>" * 50),
    "cut": cut_shard,
    "without images": shard_without_images,
}


@pytest.mark.parametrize("make", BAD_SHARDS.values(), ids=BAD_SHARDS)
def test_a_bad_shard_is_found_before_anything_is_written(start, run_dir, tmp_path, make):
    path = make(tmp_path)
    refused(start("--data.shards", path), 1, "" if make is shard_without_images else path)
    assert not run_dir.exists()


def test_a_foreign_folder_stays_as_it_is(run_dir, shard):
    run_dir.mkdir()
    (run_dir / "thesis.tex").write_text("precious")
    result = in_a_process("--run_dir", run_dir, "--data.shards", shard)
    refused(result, 2, f"--run_dir {run_dir}: holds other files and no config.yaml of a run; name a new folder")
    assert [path.name for path in run_dir.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("where", ["file", "file/below", "x" * 300, "/proc/run"])
def test_a_folder_that_cannot_be_one_is_refused(start, tmp_path, where):
    (tmp_path / "file").write_text("in the way")
    refused(start("--run_dir", tmp_path / where), 2, f"--run_dir {tmp_path / where}: ")


def test_another_run_in_the_same_folder_is_refused(start, run_dir):
    assert start() == (0, "")
    before = (run_dir / "config.yaml").read_bytes()
    refused(start("--optimizer.g_lr", "1e-3"), 2, "--optimizer.g_lr 0.0002 -> 0.001", "--resume.allow_changes")
    refused(start("--resume", "never"), 2, "holds the checkpoint 000000032 and --resume is never")
    assert (run_dir / "config.yaml").read_bytes() == before


def test_an_image_that_does_not_decode_ends_the_training_by_its_name(run_dir, tmp_path):
    members = [(f"{number:05}.jpg", encoded(number, "jpg")) for number in range(40)]
    members[33] = ("00033.jpg", members[33][1][:200] + b"\xff\xd9")
    path = write_tar(tmp_path / "photos.tar", members)
    result = in_a_process("--run_dir", run_dir, "--data.shards", path, "--images", 80)
    refused(result, 1, f"{path}: 00033.jpg at byte ", "a damaged image")


def test_a_disk_that_is_full_when_saving_ends_the_training_and_the_older_checkpoint_stays(start, run_dir):
    assert start("--images", 16, "--checkpoint.every", 8) == (0, "")
    older = run_dir / "checkpoints" / "000000016"
    with no_file_larger_than(max(path.stat().st_size for path in older.iterdir()) - 1):
        result = start("--images", 32, "--checkpoint.every", 8, "--checkpoint.most_failures", 1)
    refused(result, 1, run_dir / "checkpoints" / "000000024", "could not be saved (File too large", "Fix that")
    assert checkpoint.verify(older) is None
    assert not (run_dir / "DONE").exists()
    assert start("--images", 32, "--checkpoint.every", 8) == (0, "")  # once there is room, from there on
    assert (run_dir / "checkpoints" / "latest").read_text() == "000000032"


def test_a_disk_that_is_full_when_reporting_ends_the_training_too(start, run_dir):
    metrics = run_dir / "metrics.jsonl"
    assert start("--images", 16) == (0, "")
    with metrics.open("a") as file:  # a long run's: larger than the other files that an attempt begins with
        file.write(json.dumps({"images": 16, "text": "x" * 100_000}) + "\n")
    with no_file_larger_than(metrics.stat().st_size + 10):
        result = start("--images", 32)
    refused(result, 1, f"{metrics}: cannot be written (File too large); without it no checkpoint is saved. Fix that")
    assert start("--images", 32) == (0, "")
    assert [json.loads(line)["images"] for line in metrics.read_text().splitlines()] == [8, 16, 16, 24, 32]


@pytest.mark.parametrize("options", [["--log.every", 8], ["--log.every", 10_000]], ids=["at a report", "at the end"])
def test_a_training_that_diverges_names_the_tensor_and_saves_nothing(start, run_dir, options):
    result = start("--optimizer.d_lr", "1e38", "--optimizer.g_lr", "1e38", "--model.d_norm", "none", *options)
    refused(result, 1, "training has diverged: ", "there is no checkpoint yet: lower --optimizer.g_lr and")
    assert not list((run_dir / "checkpoints").iterdir())
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"NaN", "Infinity", "-Infinity"} & {str(value) for value in last.values()}


def test_a_run_in_a_folder_whose_name_is_no_text_is_resumed(start, tmp_path):
    run_dir = tmp_path / os.fsdecode(b"r\xffn")
    assert start("--run_dir", run_dir) == (0, "")
    assert start("--run_dir", run_dir, "--images", 64, "--resume", run_dir) == (0, "")
    assert (run_dir / "checkpoints" / "latest").read_text() == "000000064"


@pytest.mark.parametrize("asked", ["--debug", "a file"])
def test_debug_shows_the_traceback(tmp_path, asked):
    (tmp_path / "debug.yaml").write_text("debug: true\n")
    options = ["--debug"] if asked == "--debug" else ["--config", tmp_path / "debug.yaml"]
    code, text = in_a_process("--world_size", 4, *options)
    assert code == 1
    assert "Traceback" in text
    assert text.rstrip().splitlines()[-1].endswith("or leave --world_size out")
