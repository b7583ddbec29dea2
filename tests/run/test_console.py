import io
import subprocess
import sys
from types import SimpleNamespace
from typing import TextIO
from unittest import mock

import pytest

from dcgan_dist.run.console import Console, human_images, human_time, progress_line

REPORT = {
    "d/real": 0.7123, "d/real_after": 0.749, "d/fake": 0.312, "d/fake_after": 0.2801, "loss/d": 0.91234, "loss/g": 1.8,
    "time/data_percent": 2.4, "grad_norm/d": 3.0,
}  # fmt: skip


class Clock:
    seconds = 1000.0

    def __call__(self):
        return self.seconds


class Terminal(io.StringIO):
    """Remembers what a terminal would show: the finished lines, and the one the cursor is in."""

    def isatty(self):
        return True

    def screen(self):
        lines = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for text in line.split("\r"):  # from the line's beginning, over what is there
                shown = text + shown[len(text) :]
            lines.append(shown.rstrip())
        return lines


def console_on(stream: TextIO, enabled: bool = True) -> Console:
    with mock.patch.object(sys, "stdout", stream):
        return Console(enabled)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("dcgan_dist.run.console.time", SimpleNamespace(monotonic=clock))
    return clock


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")


def test_a_report_that_is_not_on_a_terminal_is_a_plain_line(clock):
    stream = io.StringIO()
    console = console_on(stream)
    console.say("W&B: disabled")
    console.begin(0, 2_000_000)
    clock.seconds += 20
    console.progress(6_400)  # between reports: nothing
    clock.seconds += 20
    console.progress(12_800, REPORT)
    console.close()
    assert stream.getvalue() == (
        "W&B: disabled\n0.6 %  12.8 kimg of 2.0 Mimg  320.0 img/s  ETA 1 h 43 min  "
        "D(x) 0.71/0.75  D(G(z)) 0.31/0.28  loss D 0.912  loss G 1.800  data 2 %\n"
    )


def test_only_what_is_known_is_shown(clock):
    stream = io.StringIO()
    console = console_on(stream)
    console.begin(0, 1000)
    console.progress(250, {"d/real": 0.5})
    clock.seconds += 50
    console.progress(1000, {"loss/g": float("nan")})
    assert stream.getvalue() == (
        "25.0 %  250 img of 1.0 kimg  D(x) 0.50\n100.0 %  1.0 kimg of 1.0 kimg  20.0 img/s  loss G nan\n"
    )


LOADER = {
    "waits for data": ({"time/data_percent": 3.4}, ["data 3 %"]),
    "never waits": ({"time/data_percent": 0.0}, ["data 0 %"]),
    "from the cache": ({"data/cache_percent": 97.6}, ["cache 98 %"]),
    "nothing from the cache yet": ({"data/cache_percent": 0.0}, ["cache 0 %"]),
    "substitutes": ({"data/substituted": 2.0}, ["substituted 2"]),
    "no substitute": ({"data/substituted": 0.0, "data/bytes_per_image": 3085.0}, []),
    "all": (
        {"data/substituted": 12.0, "data/cache_percent": 100.0, "time/data_percent": 51.0},
        ["data 51 %", "cache 100 %", "substituted 12"],
    ),
}


@pytest.mark.parametrize(("values", "shown"), LOADER.values(), ids=LOADER)
def test_of_the_loader_is_shown_what_there_is_to_say(values, shown):
    assert progress_line(500, 1_000, None, values).split("  ") == ["50.0 %", "500 img of 1.0 kimg", *shown]


def test_the_speed_is_of_this_attempt_and_of_the_last_minute(clock):
    stream = io.StringIO()
    console = console_on(stream)
    console.begin(500_000, 1_000_000)  # a resumed run has not shown half a million images in no time
    images = 500_000
    for seconds, per_second in ((10, 100), (100, 100), (30, 2000), (30, 2000)):
        clock.seconds += seconds
        images += seconds * per_second
        console.progress(images, {"loss/d": 1.0})
    speeds = [line.split("  ")[2] for line in stream.getvalue().splitlines()]
    # the window reaches back to the last report that is at least a minute old
    assert speeds == ["100.0 img/s", "100.0 img/s", f"{(100 * 100 + 30 * 2000) / 130:.1f} img/s", "2.0 kimg/s"]


@pytest.mark.parametrize(
    ("total", "lines"),
    [
        (
            100_000,
            [
                "speed: 300.0 img/s at the start; the remaining 98.2 kimg take about 5 min 27 s, "
                "the next pictures about 5 s"
            ],
        ),
        (3_000, ["speed: 300.0 img/s at the start; the remaining 1.2 kimg take about 4 s"]),
        (1_800, []),  # done within the first seconds
    ],
)
def test_the_first_seconds_give_the_time_of_the_rest(clock, total, lines):
    stream = io.StringIO()
    console = console_on(stream)
    console.begin(0, total)
    console.estimate(3_200)
    for seconds, images in ((60, 300), (4, 1_500), (1, 1_800), (10, 4_800)):  # the first iteration is slow
        clock.seconds += seconds
        console.progress(images)
    assert stream.getvalue().splitlines() == lines


def test_a_terminal_line_is_redrawn_in_place(clock):
    stream = Terminal()
    console = console_on(stream)
    console.begin(0, 10_000)
    clock.seconds += 10
    console.progress(1_000, {"loss/d": 0.5, "loss/g": 123456.0})
    assert (
        stream.getvalue()
        == "\r10.0 %  1.0 kimg of 10.0 kimg  100.0 img/s  ETA 1 min 30 s  loss D 0.500  loss G 123456.000"
    )
    clock.seconds += 10
    console.progress(2_000, {"loss/d": 0.25, "loss/g": 1.0})
    now = "20.0 %  2.0 kimg of 10.0 kimg  100.0 img/s  ETA 1 min 20 s  loss D 0.250  loss G 1.000"
    assert stream.screen() == [now]
    console.say("saved")
    assert stream.screen() == ["saved", now]
    console.close()
    console.say("done")
    assert stream.screen() == ["saved", now, "done", ""]


def test_between_reports_a_terminal_moves_twice_a_second(clock):
    stream = Terminal()
    console = console_on(stream)
    console.begin(0, 10_000)
    console.progress(100, {"loss/d": 0.5})
    for step in range(1, 16):
        clock.seconds += 0.125
        console.progress(100 + 10 * step)
    drawn = stream.getvalue().split("\r")[1:]
    assert [line.split("  ")[1].split()[0] for line in drawn] == ["100", "140", "180", "220"]
    assert all(line.rstrip().endswith("loss D 0.500") for line in drawn)


@pytest.mark.parametrize("columns", ["1", "2", "30"])
def test_a_narrow_terminal_clips_and_never_wraps(clock, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    stream = Terminal()
    console = console_on(stream)
    console.begin(0, 10_000)
    console.progress(100, REPORT)
    console.say("text")
    assert stream.screen()[0] == "text"
    assert stream.screen()[1] == "1.0 %  100 img of 10.0 kimg  D(x) 0.71/0.75"[: int(columns) - 1].rstrip()


def test_an_unknown_terminal_gets_plain_lines(clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    console = console_on(stream)
    console.begin(0, 100)
    console.progress(50)
    console.progress(50, {})
    assert stream.getvalue() == "50.0 %  50 img of 100 img\n"


def test_the_other_ranks_are_silent(clock):
    stream = Terminal()
    console = console_on(stream, enabled=False)
    console.begin(0, 100)
    console.progress(50, REPORT)
    console.say("text")
    console.close()
    assert stream.getvalue() == ""


def test_a_reader_that_goes_away_does_not_end_the_training():
    code = """
from dcgan_dist.run.console import Console
console = Console()
console.begin(0, 100_000)
for images in range(0, 100_000, 5):
    console.progress(images, {"loss/d": 0.5})
    console.say("line " * 20)
console.close()
import sys
print("trained", file=sys.stderr)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"0.0 %  0 img of 100.0 kimg  loss D 0.500\n"
        process.stdout.close()
        assert process.stderr.read() == b"trained\n"
    assert process.returncode == 0


def test_what_a_stream_cannot_encode_is_escaped(tmp_path):
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        console = console_on(stream)
        console.say("runs/Gemälde")
    assert (tmp_path / "out").read_text() == "runs/Gem\\xe4lde\n"
    console.say("after the end")  # the stream is closed: nothing happens


class Hiccup(io.StringIO):
    """A stream that fails once, in a way that passes or does not."""

    def __init__(self, error):
        super().__init__()
        self.errors_left = [error]

    def flush(self):
        if self.errors_left:
            raise self.errors_left.pop()

    def fileno(self):
        raise ValueError


@pytest.mark.parametrize(
    ("error", "later"),
    [
        (OSError(28, "No space left on device"), True),
        (BlockingIOError(11, "Resource temporarily unavailable"), True),
        (OSError(5, "Input/output error"), True),
        (BrokenPipeError(32, "Broken pipe"), False),
        (ValueError("closed"), False),
    ],
)
def test_one_failure_to_print_is_no_reason_to_be_silent_for_ever(error, later):
    stream = Hiccup(error)
    console = console_on(stream)
    console.say("one")
    console.say("two")
    assert ("two" in stream.getvalue()) == later


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (0, "0 img"), (999, "999 img"), (1000, "1.0 kimg"), (12_800, "12.8 kimg"), (999_949, "999.9 kimg"),
        (999_950, "1.0 Mimg"), (1_234_567, "1.2 Mimg"), (6.44, "6.4 img"), (999.96, "1.0 kimg"),
    ],
)  # fmt: skip
def test_images_for_people(images, text):
    assert human_images(images) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"), (86399.9, "1 d 00 h"), (100_000, "1 d 03 h"),
    ],
)  # fmt: skip
def test_time_for_people(seconds, text):
    assert human_time(seconds) == text
