"""The command line of `dcgan-dist shard`: what it prints, and how it refuses."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
from PIL import Image
from support.processes import children
from support.waiting import LIMIT, until

from dcgan_dist import __main__ as front
from dcgan_dist.commands import progress, shard
from dcgan_dist.data.shards.index import read_index
from dcgan_dist.errors import UsageError, UserError


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "some images"
    folder.mkdir()
    (folder / "README").write_text("x")
    for number in range(6):
        Image.fromarray(np.full((40, 50, 3), number * 40, np.uint8)).save(folder / f"{number}.png")
    return folder


def run(capsys, *options):
    assert shard.main([*map(str, options), "--processes", "1"]) == 0
    return capsys.readouterr()


def test_prints_a_summary_and_the_next_command(images, tmp_path, capsys):
    out = tmp_path / "out"
    printed = run(capsys, images, out, "--size", 32, "--shard_size", 4, "--no_shuffle").out
    size = sum(path.stat().st_size for path in out.glob("*.tar")) / 1e6
    assert f"6 images in 2 shards, {size:.1f} MB, in {out}" in printed
    assert re.search(r"[\d,]+ images/s \([\d.]+ s, 1 process\)", printed)
    assert "left out: 1 other file (1 without ending)" in printed
    assert f"dcgan-dist launch --data.shards '{out}/*.tar' --model.image_size 32" in printed
    indexes = [read_index(path) for path in sorted(out.glob("*.tar"))]
    assert [index.keys for index in indexes if index] == [["0", "1", "2", "3"], ["4", "5"]]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--size", "50", "--channels", "1"], "--model.image_size 48 --model.channels 1"),
        (["--store", "keep"], "--model.image_size 64"),
    ],
)
def test_the_next_command_fits_the_trainer(images, tmp_path, capsys, options, wanted):
    assert run(capsys, images, tmp_path / "out", *options).out.rstrip().endswith(wanted)


def test_lists_bad_images(images, tmp_path, capsys):
    for number in range(shard.BAD_LISTED + 3):
        (images / f"bad{number:02}.jpg").write_bytes(b"")
    printed = run(capsys, images, tmp_path / "out", "--size", "32", "--skip_bad").out
    assert f"left out: {shard.BAD_LISTED + 3} unreadable images:" in printed
    assert printed.count(": not an image in a supported format") == shard.BAD_LISTED
    assert "  and 3 more" in printed


def test_progress_in_plain_lines(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0)
    lines = run(capsys, images, tmp_path / "out", "--size", "32").err.splitlines()
    assert len(lines) == 6
    for number, line in enumerate(lines, start=1):
        assert re.fullmatch(rf"shard: {number} of 6 images, +\S+, \d\d:\d\d to go", line)


def test_a_bar_on_a_terminal(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    printed = run(capsys, images, tmp_path / "out", "--size", "32").err
    assert re.search(r"shard: 100%.* 6/6 ", printed.split("\r")[-1])


def test_help_has_units_and_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        shard.main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for part in (
        "SOURCE OUT",
        "torchvision:CIFAR10",
        "pixels",
        "(default: 2000)",
        "(default: lanczos)",
        "--no_shuffle",
        "--merge OUT",
        "webp: lossy",
        "list them in OUT/bad.txt",
    ):
        assert part in text
    assert "--no_overwrite" not in text


def test_parts_and_their_merge(images, tmp_path, capsys):
    out = tmp_path / "an out"
    options = [images, out, "--size", 48, "--shard_size", 2, "--channels", 1]
    for number in (1, 2):
        printed = run(capsys, *options, "--part", f"{number}/2").out
        assert f"part {number}/2: {6 - 2 * number} images in {3 - number} shard" in printed
        assert printed.rstrip().endswith(f"dcgan-dist shard --merge '{out}'   # when all parts are done")
    assert not any(out.glob("*.tar"))
    assert shard.main(["--merge", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"6 images in 3 shards, {sum(p.stat().st_size for p in out.glob('*.tar')) / 1e6:.1f} MB")
    assert "images/s" not in printed
    assert printed.rstrip().endswith(f"--data.shards '{out}/*.tar' --model.image_size 48 --model.channels 1")


def test_a_stopped_command_resumes_and_its_rate_is_that_of_the_new_images(images, tmp_path, capsys, monkeypatch):
    bad = images / "x.png"
    bad.write_bytes(b"")
    options = [images, tmp_path / "out", "--size", 32, "--shard_size", 3, "--no_shuffle"]
    with pytest.raises(UserError, match="--skip_bad"):
        run(capsys, *options)
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0)
    capsys.readouterr()
    printed = run(capsys, *options, "--skip_bad")
    assert printed.err.splitlines()[0] == "resuming: 2 of 3 shards are complete"
    assert re.fullmatch(r"shard: 7 of 7 images, +\S+, 00:00 to go", printed.err.splitlines()[1])
    assert "6 images in 2 shards, " in printed.out


@pytest.mark.usefixtures("as_before")
def test_an_interrupt_is_one_line_and_costs_nothing(images, tmp_path, capsys, monkeypatch):
    options = [str(images), str(tmp_path / "out"), "--size=32", "--shard_size=2", "--no_shuffle", "--processes=1"]
    say = progress.to_stderr

    def press(line):
        say(line)
        if line.startswith("shard: 5 of 6"):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(progress, "PLAIN_EVERY", 0)
        patch.setattr(progress, "to_stderr", press)
        assert front.main(["shard", *options]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped; run it again to continue with what is complete"
    assert shard.main(options) == 0
    assert capsys.readouterr().err == "resuming: 2 of 3 shards are complete\n"


def test_duplicates_are_counted_and_listed(images, tmp_path, capsys):
    (images / "copy.png").write_bytes((images / "0.png").read_bytes())
    out = tmp_path / "out"
    listed = f"duplicates of another file: 1 image, listed in {out}/duplicates.txt"
    printed = run(capsys, images, out, "--size", "32").out
    assert f"{listed}; --duplicates drop leaves them out" in printed
    printed = run(capsys, images, out, "--size", "32", "--overwrite", "--duplicates", "drop").out
    assert "6 images in 1 shard," in printed
    assert f"left out: {listed}" in printed


def test_the_automatic_choice_is_printed_with_its_reason(images, tmp_path, capsys):
    printed = run(capsys, images, tmp_path / "out", "--size", "64", "--store", "auto")
    line = "store: ppm, for 12.0 KiB of pixels an image (at most 48) are read faster than decoded"
    assert printed.err.splitlines() == [line]


@pytest.mark.parametrize("options", [["--merge"], ["--merge", "a", "b"], ["--merge", "a", "--size", "32"]])
def test_merge_takes_the_folder_alone(options):
    with pytest.raises(UsageError) as error:
        shard.main(options)
    assert "\n" not in str(error.value)


def test_columns_reach_lists(images, tmp_path, capsys):
    (tmp_path / "list.csv").write_text("what,where\n4,some images/1.png\n2,some images/2.png\n")
    out = tmp_path / "out"
    run(capsys, tmp_path / "list.csv", out, "--size", 32, "--image_column", "where", "--label_column", "what")
    index = read_index(out / "shard-00000.tar")
    assert index is not None
    assert sorted(index.label.tolist()) == [2, 4]


@pytest.mark.parametrize(
    "options", [["a"], ["a", "b", "--size", "x"], ["a", "b", "--store", "bmp"], ["a", "b", "--sise", "32"]]
)
def test_wrong_options_are_one_line(options):
    with pytest.raises(UsageError) as error:
        shard.main(options)
    assert "\n" not in str(error.value)
    assert (options[2] if len(options) > 2 else "OUT") in str(error.value)


def test_options_that_make_no_sense_are_usage_errors(images, tmp_path):
    with pytest.raises(UsageError, match="--size is missing"):
        shard.main([str(images), str(tmp_path / "out")])
    with pytest.raises(UsageError, match="no such file or folder"):
        shard.main([str(tmp_path / "none"), str(tmp_path / "out"), "--size", "32"])


def test_no_process_outlives_a_killed_command(images, tmp_path):
    for number in range(2):
        os.mkfifo(images / f"endless{number}.png")
    command = f"from dcgan_dist.commands.shard import main; main([{str(images)!r}, {str(tmp_path / 'out')!r}, *"
    command += "'--size 32 --shard_size 1 --processes 2 --no_shuffle'.split()])"
    with subprocess.Popen([sys.executable, "-c", command]) as process:
        until(lambda: len(children("spawn_main", process.pid)) == 2)
        started = children("spawn_main", process.pid)
        process.kill()
        assert psutil.wait_procs(started, timeout=LIMIT)[1] == []
