"""`dcgan-dist watch`: what a person sees of a run's folder."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from support.waiting import LIMIT

from dcgan_dist.commands import watch
from dcgan_dist.errors import UsageError, UserError


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "samples").mkdir(parents=True)
    (folder / "config.yaml").write_text("images: 1000\n")
    return folder


def report(folder, images, **values):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"images": images, **values}) + "\n")


def shown(capsys, folder, *options):
    assert watch.main([str(folder), *options]) == 0
    return capsys.readouterr().out.splitlines()


def test_progress_curves_and_the_last_lines_of_the_log(run, capsys):
    for number in range(8):
        report(run, 100 * (number + 1), **{"loss/d": float(number), "d/real": 0.5, "speed/images_per_second": 20.0})
    (run / "log.txt").write_text("".join(f"line {number}\n" for number in range(9)))
    lines = shown(capsys, run)
    assert lines[0] == f"{run}: unknown: how it ended is not recorded"
    assert lines[1] == "80.0 %  800 img of 1.0 kimg  20.0 img/s  ETA 10 s  D(x) 0.50  loss D 7.000"
    assert lines[2:5] == ["loss D    ▁▂▃▄▅▆▇█  7", "D(x)      ▁▁▁▁▁▁▁▁  0.5", "images/s  ▁▁▁▁▁▁▁▁  20"]
    assert lines[5:] == [f"line {number}" for number in range(4, 9)]


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({"DONE": "1000\n"}, "complete"),
        ({"PREEMPTED": "500\nSIGTERM\n"}, "stopped: SIGTERM; the same command resumes it"),
        ({"owner.json": "{}"}, "running: last heartbeat 0 s ago"),
        ({"owner.json": '{"ended": true}'}, "killed: no end was recorded, and the last heartbeat was 0 s ago"),
        ({}, "unknown: how it ended is not recorded"),
    ],
)
def test_the_state(run, capsys, files, state):
    for name, text in files.items():
        (run / name).write_text(text)
    assert shown(capsys, run) == [f"{run}: {state}"]


def test_a_rollback_is_no_report_but_has_words(run, capsys):
    report(run, 500, **{"loss/d": 0.5, "loss/g": "NaN"})
    report(run, 400, **{"health/rollbacks": 1.0, "rollback_reason": "NaN in G", "rollback_time": "2026-12-01T10:00:00"})
    assert shown(capsys, run)[1] == "40.0 %  400 img of 1.0 kimg  loss D 0.500  loss G nan"


@pytest.mark.parametrize(
    ("series", "width", "bars"),
    [
        ([1.0], 10, "▁"),
        ([0.0, 7.0], 10, "▁█"),
        ([0.0, 2.0, 6.0, 8.0], 2, "▁█"),
        ([0.0, float("nan"), float("inf"), 7.0], 4, "▁××█"),
        ([float("nan")] * 3, 3, "×××"),
        (list(range(1_000)), 8, "▁▂▃▄▅▆▇█"),
    ],
)
def test_a_curve_in_one_line(series, width, bars):
    assert watch.sparkline(series, width) == bars


def test_reports_that_a_resumed_run_writes_again_are_shown_once(run):
    report(run, 100, loss=1.0)
    report(run, 200, loss=2.0)
    seen = watch._Run(run)
    seen.read()
    (run / "metrics.jsonl").write_text('{"images": 100, "loss": 1.0}\n{"images": 20')
    seen.read()
    assert [each["images"] for each in seen.reports] == [100]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('0, "loss": 3.0}\n')
    seen.read()
    assert [each["loss"] for each in seen.reports] == [1.0, 3.0]


def test_the_newest_picture_in_colours(run):
    for name, colour in (("000000100", (9, 9, 9)), ("000000200", (10, 20, 30))):
        Image.new("RGB", (64, 64), colour).save(run / "samples" / f"{name}.png")
    picture = watch._Run(run).picture(4)
    assert picture == "\n".join(["\x1b[38;2;10;20;30;48;2;10;20;30m▀" * 4 + "\x1b[0m"] * 2)
    assert watch._Run(run)._grid() == run / "samples" / "000000200.png"


def test_the_halves_of_a_character_are_two_pixels(run):
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    pixels[1, 1] = 200
    pixels[2:] = 99  # outside of the part that is shown
    Image.fromarray(pixels).save(run / "samples" / "000000100.png")
    dark = "\x1b[38;2;0;0;0;48;2;0;0;0m▀"
    assert watch._Run(run).picture(2) == f"{dark}\x1b[38;2;0;0;0;48;2;200;200;200m▀\x1b[0m"


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"not a run folder: config\.yaml is missing"):
        watch.main([str(tmp_path)])


def test_a_damaged_report_is_named(run):
    (run / "metrics.jsonl").write_text("not JSON\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: has a line that is no JSON object"):
        watch.main([str(run)])


def test_on_a_terminal_it_follows_the_run_to_its_end(run):
    (run / "owner.json").write_text("{}")
    ours, its = os.openpty()
    command = [sys.executable, "-m", "dcgan_dist", "watch", str(run), "--every", "0.1", "--no_pictures"]
    with subprocess.Popen(
        command, stdout=its, stderr=its, env=os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    ) as follower:
        os.close(its)
        seen, found = b"", threading.Event()

        def read():
            nonlocal seen
            try:
                while part := os.read(ours, 65_536):
                    seen += part
                    if b": running" in seen and not found.is_set():
                        report(run, 500, **{"loss/d": 0.25})
                        found.set()
                    if b"loss D 0.250" in seen:
                        (run / "DONE").touch()
            except OSError:  # the other end is closed
                pass

        reader = threading.Thread(target=read)
        reader.start()
        assert follower.wait(LIMIT) == 0
        reader.join(LIMIT)
    assert b": complete" in seen
    assert b"50.0 %  500 img of 1.0 kimg" in seen
