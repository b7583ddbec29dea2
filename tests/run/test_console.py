import io
import json
import os
import re
import subprocess
import sys

import pytest
from support.output import STAMP

from dcgan_dist.run.console import Console, human_images, human_time, progress_parts

REPORT = {
    "d/real": 0.7123, "d/real_after": 0.749, "d/fake": 0.312, "d/fake_after": 0.2801, "loss/d": 0.91234, "loss/g": 1.8,
    "time/data_percent": 2.4, "grad_norm/d": 3.0,
}  # fmt: skip


class Clock:
    seconds = 1000.0

    def __call__(self):
        return self.seconds


CONTROL = re.compile(r"\x1b\[(\??)(\d*)(?:;[\d;]*)?([A-Za-z])")


def unstamped(text):
    """Plain lines without their times, which each has."""
    lines = text.splitlines()
    assert all(STAMP.match(line) for line in lines)
    return [STAMP.sub("", line) for line in lines]


class Terminal(io.StringIO):
    """What a terminal of so many columns shows: it wraps long lines, and wraps them again when it is resized."""

    columns = 200

    def isatty(self):
        return True

    def resize(self, monkeypatch, columns):
        monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((columns, 25)))
        self.columns = columns
        above, below = self.screen()[: self.row + 1], self.screen()[self.row + 1 :]
        self.rows = [part for line in above for part in self.wrapped(line)]
        self.row, self.column = len(self.rows) - 1, len(self.rows[-1])  # the cursor stays in its line
        self.rows += [part for line in below for part in self.wrapped(line)]

    def wrapped(self, line):
        return [line[at : at + self.columns] for at in range(0, len(line), self.columns)] or [""]

    def __init__(self):
        super().__init__()
        self.rows, self.row, self.column = [""], 0, 0

    def write(self, text):
        super().write(text)
        while text:
            control = CONTROL.match(text)
            if control:
                self.control(control[3], int(control[2] or 0), bool(control[1]))
                text = text[control.end() :]
            else:
                self.put(text[0])
                text = text[1:]
        return len(text)

    def control(self, kind, number, private):
        if kind == "A":
            self.row -= number
        elif kind == "K":
            assert number == 2
            self.rows[self.row] = ""
        else:
            assert kind == "m" or (private and kind in "hl"), kind

    def put(self, letter):
        if letter == "\r":
            self.column = 0
        elif letter == "\n":
            self.row, self.column = self.row + 1, 0
            self.rows += [""] * (self.row == len(self.rows))
        else:
            assert self.column < self.columns, "it wraps"
            line = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = line[: self.column] + letter + line[self.column + 1 :]
            self.column += 1

    def screen(self):
        return [line.rstrip() for line in self.rows]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")


def without_bar(line):
    return line.lstrip("━╸╺ ")


def test_a_report_that_is_not_on_a_terminal_is_a_plain_line(clock):
    stream = io.StringIO()
    console = Console(stream=stream, clock=clock)
    console.say("W&B: disabled")
    console.begin(0, 2_000_000)
    clock.seconds += 20
    console.progress(6_400)  # between reports: nothing
    clock.seconds += 20
    console.progress(12_800, REPORT)
    console.close()
    assert unstamped(stream.getvalue()) == [
        "W&B: disabled",
        "0.6 %  12.8 kimg of 2.0 Mimg  320.0 img/s  ETA 1 h 43 min  "
        "D(x) 0.71/0.75  D(G(z)) 0.31/0.28  loss D 0.912  loss G 1.800  data 2 %",
    ]


def test_only_what_is_known_is_shown(clock):
    stream = io.StringIO()
    console = Console(stream=stream, clock=clock)
    console.begin(0, 1000)
    console.progress(250, {"d/real": 0.5})
    clock.seconds += 50
    console.progress(1000, {"loss/g": float("nan")})
    assert unstamped(stream.getvalue()) == [
        "25.0 %  250 img of 1.0 kimg  D(x) 0.50",
        "100.0 %  1.0 kimg of 1.0 kimg  20.0 img/s  loss G nan",
    ]


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
    assert [*progress_parts(500, 1_000, None, values).values()] == ["50.0 %", "500 img of 1.0 kimg", *shown]


def test_the_speed_is_of_this_attempt_and_of_the_last_minute(clock):
    stream = io.StringIO()
    console = Console(stream=stream, clock=clock)
    console.begin(500_000, 1_000_000)  # a resumed run has not shown half a million images in no time
    images = 500_000
    for seconds, per_second in ((10, 100), (100, 100), (30, 2000), (30, 2000)):
        clock.seconds += seconds
        images += seconds * per_second
        console.progress(images, {"loss/d": 1.0})
    speeds = [line.split("  ")[2] for line in unstamped(stream.getvalue())]
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
    console = Console(stream=stream, clock=clock)
    console.begin(0, total)
    console.estimate(3_200)
    for seconds, images in ((60, 300), (4, 1_500), (1, 1_800), (10, 4_800)):  # the first iteration is slow
        clock.seconds += seconds
        console.progress(images)
    assert unstamped(stream.getvalue()) == lines


def test_a_run_of_days_says_what_would_help(clock):
    stream = io.StringIO()
    console = Console(stream=stream, clock=clock)
    console.begin(0, 100_000_000)
    console.estimate(3_200, slow="a GPU takes less")
    for images in (300, 1_800, 4_800):
        clock.seconds += 10
        console.progress(images)
    speed, warning = unstamped(stream.getvalue())
    assert speed.endswith("the remaining 100.0 Mimg take about 7 d 17 h, the next pictures about 9 s")
    assert warning == "WARNING: this takes days: a GPU takes less"


def test_a_terminal_line_is_redrawn_in_place(clock):
    stream = Terminal()
    console = Console(stream=stream, clock=clock)
    console.begin(0, 10_000)
    clock.seconds += 10
    console.progress(1_000, {"loss/d": 0.5, "loss/g": 123456.0})
    bar, line = stream.screen()[-1].split(" ", 1)
    assert (bar, line) == (
        "━" * 2 + "╺" + "━" * 17,
        "10.0 %  ETA 1 min 30 s  loss D 0.500  loss G 123456.000  100.0 img/s  1.0 kimg of 10.0 kimg",
    )
    clock.seconds += 10
    console.progress(2_000, {"loss/d": 0.25, "loss/g": 1.0})
    now = "20.0 %  ETA 1 min 20 s  loss D 0.250  loss G 1.000  100.0 img/s  2.0 kimg of 10.0 kimg"
    assert list(map(without_bar, stream.screen())) == [now]
    console.say("saved")
    assert list(map(without_bar, stream.screen())) == ["saved", now]
    console.close()
    console.say("done")
    assert list(map(without_bar, stream.screen())) == ["saved", now, "done", ""]


def test_between_reports_a_terminal_moves_twice_a_second(clock):
    stream, drawn = Terminal(), []
    console = Console(stream=stream, clock=clock)
    console.begin(0, 10_000)
    console.progress(100, {"loss/d": 0.5})
    for step in range(1, 16):
        clock.seconds += 0.125
        console.progress(100 + 10 * step)
        drawn += [line for line in stream.screen() if line not in drawn]
    assert [line.rsplit("  ", 1)[1] for line in drawn] == [
        f"{images} img of 10.0 kimg" for images in (100, 140, 180, 220)
    ]
    assert all("loss D 0.500" in line for line in drawn)


@pytest.mark.parametrize("columns", [1, 2, 30, 59, 61, 80, 120])
def test_a_narrow_terminal_shows_what_matters_and_never_wraps(clock, monkeypatch, columns):
    stream = Terminal()
    stream.columns = columns
    monkeypatch.setenv("COLUMNS", str(columns))
    console = Console(stream=stream, clock=clock)
    console.begin(0, 10_000)
    console.progress(100, REPORT)
    line = stream.screen()[-1]
    parts = ["1.0 %", "loss D 0.912", "loss G 1.800", "D(x) 0.71/0.75", "D(G(z)) 0.31/0.28", "100 img of 10.0 kimg"]
    shown = without_bar(line)
    assert len(line) < max(columns, 2)
    assert "  ".join([*parts, "data 2 %"]).startswith(shown)
    assert (columns < 80) or "D(G(z)) 0.31/0.28" in shown
    assert shown.split("  ")[-1] in (*parts, "data 2 %") or columns < 10
    assert line.startswith("━") == (columns >= 61)


def test_a_terminal_that_is_resized_shows_one_line(clock, monkeypatch):
    monkeypatch.delenv("COLUMNS")
    stream = Terminal()
    stream.resize(monkeypatch, 200)
    console = Console(stream=stream, clock=clock)
    console.say("before")
    console.begin(0, 10_000)
    for columns in (150, 70, 100, 30, 12, 80):
        console.progress(100, REPORT)
        stream.resize(monkeypatch, columns)
    console.progress(100, REPORT)
    console.say("text")
    screen = list(filter(None, stream.screen()))
    assert (len(screen), screen[:2]) == (3, ["before", "text"])
    assert "1.0 %  loss D" in screen[2]


@pytest.mark.parametrize("also", ["stdout", "stderr"])
def test_what_others_print_stands_above_the_progress(clock, monkeypatch, also):
    stream = Terminal()
    monkeypatch.setattr(sys, also, stream)
    console = Console(stream=stream, clock=clock)
    console.begin(0, 10_000)
    console.progress(100, REPORT)
    print("UserWarning: of another package", file=getattr(sys, also))
    assert stream.screen()[0] == "UserWarning: of another package"
    assert "1.0 %" in stream.screen()[1]
    console.close()
    assert getattr(sys, also) is stream


def test_json_lines_hold_messages_and_numbers(clock):
    stream = io.StringIO()
    console = Console(stream=stream, clock=clock, form="json")
    console.say("data: 100 images")
    console.say("WARNING: a disk is full")
    console.begin(0, 1_000)
    clock.seconds += 10
    console.progress(250, {"loss/d": 0.5, "loss/g": float("nan")})
    console.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    times = [line.pop("time") for line in lines]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", time) for time in times)
    assert lines == [
        {"level": "info", "message": "data: 100 images"},
        {"level": "warning", "message": "WARNING: a disk is full"},
        {"images": 250, "of": 1_000, "images_per_second": 25.0, "eta_seconds": 30.0, "loss/d": 0.5, "loss/g": "NaN"},
    ]


def test_quiet_prints_warnings_and_the_result_and_the_log_has_all(clock, tmp_path):
    stream, log = io.StringIO(), tmp_path / "log.txt"
    console = Console(stream=stream, clock=clock, verbosity="quiet")
    console.say("data: 100 images")  # before there is a folder
    console.keep(log)
    console.detail("NetG: 3 layers")
    console.say("WARNING: a disk is full")
    console.begin(0, 1_000)
    console.progress(250, {"loss/d": 0.5})
    console.close()
    console.conclude("done: 1,000 images")
    assert unstamped(stream.getvalue()) == ["WARNING: a disk is full", "done: 1,000 images"]
    report = "25.0 %  250 img of 1.0 kimg  loss D 0.500"
    all_lines = ["data: 100 images", "NetG: 3 layers", "WARNING: a disk is full", report, "done: 1,000 images"]
    assert unstamped(log.read_text()) == all_lines


def test_verbose_prints_details_and_every_scalar(clock):
    stream = io.StringIO()
    console = Console(stream=stream, clock=clock, verbosity="verbose")
    console.detail("NetG: 3 layers")
    console.begin(0, 1_000)
    console.progress(250, {"loss/d": 0.5, "grad_norm/d": 3.0})
    lines = ["NetG: 3 layers", "25.0 %  250 img of 1.0 kimg  loss D 0.500", "loss/d 0.5  grad_norm/d 3"]
    assert unstamped(stream.getvalue()) == lines


def test_a_log_that_cannot_be_written_does_not_end_the_training(clock, tmp_path):
    stream = io.StringIO()
    console = Console(stream=stream, clock=clock)
    console.keep(tmp_path)  # a folder
    console.say("text")
    assert unstamped(stream.getvalue()) == ["text"]


def test_an_unknown_terminal_gets_plain_lines(clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    console = Console(stream=stream, clock=clock)
    console.begin(0, 100)
    console.progress(50)
    console.progress(50, {})
    assert stream.getvalue() == "50.0 %  50 img of 100 img\n"  # without times, as a person watches


def test_the_other_ranks_are_silent(clock):
    stream = Terminal()
    console = Console(enabled=False, stream=stream, clock=clock)
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
        assert process.stdout.readline().endswith(b"  0.0 %  0 img of 100.0 kimg  loss D 0.500\n")
        process.stdout.close()
        assert process.stderr.read() == b"trained\n"
    assert process.returncode == 0


def test_the_log_goes_on_when_the_reader_of_the_output_is_gone(tmp_path):
    console = Console(stream=Hiccup(BrokenPipeError(32, "Broken pipe")))
    console.keep(tmp_path / "log.txt")
    console.say("one")
    console.say("two")
    assert unstamped((tmp_path / "log.txt").read_text()) == ["one", "two"]


def test_what_a_stream_cannot_encode_is_escaped(tmp_path):
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        console = Console(stream=stream)
        console.say("runs/Gemälde")
    assert unstamped((tmp_path / "out").read_text()) == ["runs/Gem\\xe4lde"]
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
    console = Console(stream=stream)
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
