"""The console: lines, and one line of progress."""

import contextlib
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping

from dcgan_dist.errors import discard
from dcgan_dist.location import redacted

RATE_WINDOW = 60.0  # seconds over which images/s is measured
REDRAW_EVERY = 0.5  # seconds between two drawings of the live line
ESTIMATE_AFTER = 5.0  # seconds of training after which the time for the rest of it is estimated
MINUTE, HOUR, DAY = 60, 3600, 86400


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


def progress_line(images: int, total: int, rate: float | None, values: Mapping[str, float]) -> str:
    """The line of progress, without what is unknown. `rate`: images/s; `total`: images at which training ends.

    D(x) and D(G(z)) are the mean probabilities of being real, before/after D's update.
    """
    parts = [f"{100 * images / total:.1f} %", f"{human_images(images)} of {human_images(total)}"]
    parts += [f"epoch {values['epoch']:.2f}"] if "epoch" in values else []
    if rate:
        parts += [f"{human_images(rate)}/s"]
        parts += [f"ETA {human_time((total - images) / rate)}"] if images < total else []
    parts += [f"running {human_time(3600 * values['time/run_hours'])}"] if "time/run_hours" in values else []
    for label, name in (("D(x)", "d/real"), ("D(G(z))", "d/fake")):
        both = [f"{values[key]:.2f}" for key in (name, f"{name}_after") if key in values]
        parts += [f"{label} {'/'.join(both)}"] if both else []
    parts += [f"loss {name.upper()} {values[f'loss/{name}']:.3f}" for name in "dg" if f"loss/{name}" in values]
    parts += [f"data {values['time/data_percent']:.0f} %"] if "time/data_percent" in values else []
    parts += [f"cache {values['data/cache_percent']:.0f} %"] if "data/cache_percent" in values else []
    parts += [f"substituted {values['data/substituted']:.0f}"] if values.get("data/substituted") else []
    return "  ".join(parts)


class Console:
    """Standard output of the main rank.

    On a terminal the progress is one line, redrawn in place; elsewhere each report is a line. A closed pipe (`| head`)
    ends the output, and a full disk loses lines; neither ends the training.
    """

    def __init__(self, enabled: bool = True) -> None:
        """`enabled`: only on the main rank."""
        self._stream, self._enabled = sys.stdout, enabled
        self._live = self._enabled and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._line = ""  # the progress line on the screen
        self._drawn = -REDRAW_EVERY
        self._total, self._epoch_size = 1, 0
        self._values: dict[str, float] = {}
        self._marks: deque[tuple[float, int]] = deque()
        self._pictures_every: int | None = None  # absent also where the estimate has been printed
        self._warm: tuple[float, int] | None = None  # seconds and images after the first iteration

    def say(self, text: str) -> None:
        """Prints lines, without secrets, above the progress line if there is one."""
        line = self._line
        self._draw("", end="\r")
        self._write(f"{redacted(text)}\n")
        self._draw(line)

    def begin(self, images: int, total: int, epoch_size: int | None = None) -> None:
        """Training starts at `images` of `total`. `epoch_size`: images of the data set."""
        self._total, self._epoch_size = total, epoch_size or 0
        self._marks = deque([(time.monotonic(), images)])

    def estimate(self, pictures_every: int) -> None:
        """Has the console print once, after the first seconds of training, how long the rest takes on this machine.

        `pictures_every`: images from one sample grid to the next.
        """
        self._pictures_every = pictures_every

    def progress(self, images: int, values: Mapping[str, float] | None = None) -> None:
        """Shows the progress.

        With `values`, the scalars of a report, always; without them only on a terminal and at most twice a second, so
        that it may be called after every iteration.
        """
        now = time.monotonic()
        if self._pictures_every is not None:
            self._estimate(now, images, self._pictures_every)
        if values is None and not (self._live and now - self._drawn >= REDRAW_EVERY):
            return
        self._values = dict(values or self._values)
        epoch = {"epoch": images / self._epoch_size} if self._epoch_size else {}
        line = progress_line(images, self._total, self._rate(now, images), self._values | epoch)
        if self._live:
            self._drawn = now
            self._draw(line)
        else:
            self._write(f"{line}\n")

    def close(self) -> None:
        """Ends the progress line."""
        if self._line:
            self._write("\n")
            self._line = ""

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

    def _rate(self, now: float, images: int) -> float | None:
        while len(self._marks) > 1 and self._marks[1][0] <= now - RATE_WINDOW:
            self._marks.popleft()
        since, done = self._marks[0] if self._marks else (now, images)
        self._marks.append((now, images))
        return (images - done) / (now - since) if now > since else None

    def _draw(self, line: str, end: str = "") -> None:
        if not self._live:
            return
        # a line as wide as the terminal would wrap, and then not be redrawn in place
        line = line[: max(shutil.get_terminal_size().columns - 1, 0)]
        if line or self._line:
            self._write(f"\r{line.ljust(len(self._line))}{end}")
        self._line = line

    def _write(self, text: str) -> None:
        if not self._enabled:
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except (BrokenPipeError, ValueError):  # a closed pipe or file
            self._enabled = self._live = False
            with contextlib.suppress(OSError, ValueError):
                discard(self._stream)
        except OSError:  # a full disk, or a slow reader: later lines may succeed
            pass
