"""What a run prints: lines and its progress, on a terminal, as plain lines or as JSON. RUN/log.txt keeps all of it."""

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from dcgan_dist.errors import discard
from dcgan_dist.location import redacted
from dcgan_dist.run.jsonl import json_line
from dcgan_dist.run.terminal import GAP, LiveDisplay

RATE_WINDOW = 60.0  # seconds over which images/s is measured
REDRAW_EVERY = 0.5  # seconds between two drawings of the live display
ESTIMATE_AFTER = 5.0  # seconds of training after which the time for the rest of it is estimated
MINUTE, HOUR, DAY = 60, 3600, 86400
WARNING = "WARNING"  # how warnings begin
IMPORTANCE = (  # of the parts on a terminal, which may be too narrow for all
    "percent", "eta", "loss_d", "loss_g", "real", "fake", "rate", "images", "substituted", "data", "cache", "epoch",
)  # fmt: skip


def human_images(images: float) -> str:
    """640 img, 12.8 kimg, 1.2 Mimg; a float keeps a decimal: 6.4 img."""
    if images < 999.95:
        return f"{images} img" if isinstance(images, int) else f"{images:.1f} img"
    return f"{images / 1e3:.1f} kimg" if images < 999_950 else f"{images / 1e6:.1f} Mimg"


def human_bytes(count: float) -> str:
    """Bytes for people."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def human_time(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 05 min, 1 d 03 h."""
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE:02} s"
    if whole < DAY:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE:02} min"
    return f"{whole // DAY} d {whole % DAY // HOUR:02} h"


def progress_parts(images: int, total: int, rate: float | None, values: Mapping[str, float]) -> dict[str, str]:
    """The parts of the line of progress, without what is unknown.

    `rate`: images/s; `total`: images at which training ends. D(x) and D(G(z)) are the mean probabilities of being real,
    before/after D's update.
    """

    def form(name: str, show: Callable[[float], str]) -> str:
        return show(values[name]) if name in values else ""

    def both(label: str, name: str) -> str:
        found = [f"{values[key]:.2f}" for key in (name, f"{name}_after") if key in values]
        return f"{label} {'/'.join(found)}" if found else ""

    parts = {
        "percent": f"{100 * images / total:.1f} %",
        "images": f"{human_images(images)} of {human_images(total)}",
        "epoch": form("epoch", "epoch {:.2f}".format),
        "rate": f"{human_images(rate)}/s" if rate else "",
        "eta": f"ETA {human_time((total - images) / rate)}" if rate and images < total else "",
        "running": form("time/run_hours", lambda hours: f"running {human_time(3600 * hours)}"),
        "real": both("D(x)", "d/real"),
        "fake": both("D(G(z))", "d/fake"),
        "loss_d": form("loss/d", "loss D {:.3f}".format),
        "loss_g": form("loss/g", "loss G {:.3f}".format),
        "data": form("time/data_percent", "data {:.0f} %".format),
        "cache": form("data/cache_percent", "cache {:.0f} %".format),
        "substituted": form("data/substituted", lambda count: f"substituted {count:.0f}" if count else ""),
    }
    return {key: part for key, part in parts.items() if part}


class Console:
    """Standard output of the main rank, and RUN/log.txt.

    On a terminal the progress is a live display below the lines; elsewhere each report is a line. A closed pipe
    (`| head`) ends the output, and a full disk loses lines; neither ends the training.
    """

    def __init__(
        self,
        enabled: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        form: Literal["auto", "plain", "json"] = "auto",
        verbosity: Literal["quiet", "normal", "verbose"] = "normal",
    ) -> None:
        """`enabled`: only on the main rank; `stream`: default: standard output; `clock`: seconds."""
        self._stream = stream or sys.stdout
        self._enabled, self._json, self._verbosity = enabled, form == "json", verbosity
        self._open = enabled  # whether the stream still takes lines
        terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._stamped = form == "plain" or not self._stream.isatty()
        live = enabled and terminal and form == "auto" and verbosity != "quiet"
        self._live = LiveDisplay(self._write) if live else None
        self._clock = clock
        self._drawn = -REDRAW_EVERY
        self._total, self._epoch_size = 1, 0
        self._values: dict[str, float] = {}
        self._marks: deque[tuple[float, int]] = deque()
        self._pictures_every: int | None = None  # absent also where the estimate has been printed
        self._slow = ""  # advice for a run of days
        self._warm: tuple[float, int] | None = None  # seconds and images after the first iteration
        self._log: Path | None = None
        self._unlogged: list[str] = []  # lines of before log.txt could be written

    def keep(self, log: Path) -> None:
        """From here on, lines go to this file, too; those before are added."""
        self._log = log if self._enabled else None
        self._to_log(*self._unlogged)
        self._unlogged.clear()

    def say(self, text: str) -> None:
        """Prints lines, without secrets; with --quiet only warnings."""
        self._put(text, shown=self._verbosity != "quiet" or text.startswith(WARNING))

    def detail(self, text: str) -> None:
        """Prints lines with --verbose; log.txt has them in any case."""
        self._put(text, shown=self._verbosity == "verbose")

    def conclude(self, text: str) -> None:
        """Prints the result of the run, also with --quiet."""
        self._put(text, shown=True)

    def begin(self, images: int, total: int, epoch_size: int | None = None) -> None:
        """Training starts at `images` of `total`. `epoch_size`: images of the data set."""
        self._total, self._epoch_size = total, epoch_size or 0
        self._marks = deque([(self._clock(), images)])

    def estimate(self, pictures_every: int, slow: str = "") -> None:
        """Has the console print once, after the first seconds of training, how long the rest takes on this machine.

        `pictures_every`: images from one sample grid to the next; `slow`: what helps if it takes days.
        """
        self._pictures_every, self._slow = pictures_every, slow

    def progress(self, images: int, values: Mapping[str, float] | None = None) -> None:
        """Shows the progress.

        With `values`, the scalars of a report, always; without them only on a terminal and at most twice a second, so
        that it may be called after every iteration.
        """
        now = self._clock()
        if self._pictures_every is not None:
            self._estimate(now, images, self._pictures_every)
        due = self._live is not None and now - self._drawn >= REDRAW_EVERY
        if values is None and not due:
            return
        self._values = dict(values or self._values)
        epoch = {"epoch": images / self._epoch_size} if self._epoch_size else {}
        rate = self._rate(now, images)
        parts = progress_parts(images, self._total, rate, self._values | epoch)
        if self._live is not None:
            self._drawn = now
            self._live.show(images / self._total, [parts[key] for key in IMPORTANCE if key in parts])
        if values is not None:
            self._report(images, rate, GAP.join(parts.values()), values)

    def _report(self, images: int, rate: float | None, line: str, values: Mapping[str, float]) -> None:
        numbers = {"images": images, "of": self._total}
        numbers |= {"images_per_second": rate, "eta_seconds": (self._total - images) / rate} if rate else {}
        self._put(line, shown=self._live is None and self._verbosity != "quiet", numbers=numbers | dict(values))
        if self._verbosity == "verbose" and not self._json:
            self.detail("  ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def close(self) -> None:
        """Ends the live display."""
        if self._live is not None:
            self._live.close()
            self._live = None

    def _estimate(self, now: float, images: int, pictures_every: int) -> None:
        self._warm = self._warm or (now, images)  # the first iteration also sets things up
        seconds, seen = now - self._warm[0], images - self._warm[1]
        if seconds < ESTIMATE_AFTER or not seen:
            return
        self._pictures_every = None
        rate, left = seen / seconds, self._total - images
        if left <= 0:
            return
        line = f"speed: {human_images(rate)}/s at the start; the remaining {human_images(left)} take about "
        line += human_time(left / rate)
        if (until := pictures_every - images % pictures_every) <= left:
            line += f", the next pictures about {human_time(until / rate)}"
        self.say(line)
        if left / rate > DAY and self._slow:
            self.say(f"{WARNING}: this takes days: {self._slow}")

    def _rate(self, now: float, images: int) -> float | None:
        while len(self._marks) > 1 and self._marks[1][0] <= now - RATE_WINDOW:
            self._marks.popleft()
        since, done = self._marks[0] if self._marks else (now, images)
        self._marks.append((now, images))
        return (images - done) / (now - since) if now > since else None

    # ---- output

    def _put(self, text: str, *, shown: bool, numbers: Mapping[str, Any] | None = None) -> None:
        """A text for log.txt and, if it is shown, for the output; as JSON a report has numbers in its place."""
        if not self._enabled:
            return
        text, now = redacted(text), datetime.now().astimezone()
        stamped = f"{now:%Y-%m-%d %H:%M:%S}  {text}\n"
        self._to_log(stamped)
        if not shown:
            return
        if self._json:
            level = "warning" if text.startswith(WARNING) else "info"
            what = {"level": level, "message": text} if numbers is None else numbers
            self._write(json_line({"time": now.isoformat(timespec="milliseconds"), **what}))
        elif self._live is not None:
            self._live.print(text, warning=text.startswith(WARNING))
        else:
            self._write(stamped if self._stamped else f"{text}\n")

    def _to_log(self, *lines: str) -> None:
        if self._log is None:
            self._unlogged += lines
            return
        with contextlib.suppress(OSError), self._log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)

    def _write(self, text: str) -> None:
        if not self._open:
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except (BrokenPipeError, ValueError):  # a closed pipe or file
            self._open, self._live = False, None
            with contextlib.suppress(OSError, ValueError):
                discard(self._stream)
        except OSError:  # a full disk, or a slow reader: later lines may succeed
            pass
