"""The live display of a run on a terminal: a bar with the numbers that matter, and lines above it, drawn by rich.

It has one line, because what other processes write on the same terminal would be lost if it had more: the next drawing
clears the line of the cursor, which theirs has left.
"""

import sys
from collections.abc import Callable, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BARS = ((100, 20), (60, 10))  # columns of a terminal, and from there on of the bar
GAP = "  "


def fitting(parts: Sequence[str], width: int) -> str:
    """As many of the parts, from the first on, as fit into so many columns; the first is cut if it alone does not."""
    text = parts[0][:width] if parts else ""
    for part in parts[1:]:
        if len(text) + len(GAP) + len(part) > width:
            break
        text += GAP + part
    return text


class _Line:
    """What is drawn, as wide as the terminal is at that moment."""

    def __init__(self) -> None:
        self.fraction, self.parts = 0.0, list[str]()
        self.length = 0  # columns, when it was drawn last

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(options.max_width - 1, 1)  # a line as wide as the terminal may wrap
        columns = next((bar for least, bar in BARS if width >= least), -1)
        text = fitting(self.parts, width - columns - 1)
        cells = [ProgressBar(1.0, self.fraction, width=columns)] if columns > 0 else []
        self.length = len(text) + columns + 1
        line = Table.grid(padding=(0, 1, 0, 0))
        line.add_row(*cells, Text(text, no_wrap=True, overflow="crop"))
        yield line


class LiveDisplay:
    """The progress, and above it everything that this process prints meanwhile."""

    def __init__(self, write: Callable[[str], None]) -> None:
        """`write` gets text with control codes, and never raises."""
        file = _Writer(write)
        self._console = Console(file=file, force_terminal=True, highlight=False, markup=False, emoji=False)  # pyright: ignore[reportArgumentType]
        self._line = _Line()
        self._live: Live | None = None
        self._width = self._console.width

    def print(self, text: str, *, warning: bool = False) -> None:
        """Prints lines; warnings in another colour."""
        self._follow_width()
        self._console.print(Text(text, "yellow" if warning else ""), soft_wrap=True)

    def show(self, fraction: float, parts: Sequence[str]) -> None:
        """Draws the progress, 0 to 1, and as many of the parts as fit, the most important first."""
        self._line.fraction, self._line.parts = fraction, [*parts]
        if self._live is None:
            others = sys.stderr is not None and sys.stderr.isatty()
            self._live = Live(self._line, console=self._console, auto_refresh=False, redirect_stderr=others)
            self._live.start()
            self._console.show_cursor(True)  # a process that is killed could not show it again
        self._follow_width()
        self._live.refresh()

    def close(self) -> None:
        """Leaves the last state on the screen."""
        if self._live is not None:
            self._follow_width()
            self._live.stop()
            self._live = None

    def _follow_width(self) -> None:
        """Terminals wrap what is on the screen when they become narrower, so that it takes several lines."""
        before, self._width = self._width, self._console.width
        if self._live is not None and self._width < before:
            rows = max(1, -(-self._line.length // self._width))
            self._live._live_render._shape = self._width, rows  # what rich moves up over before it draws again


class _Writer:
    """As much of a file as rich needs."""

    encoding = "utf-8"

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write

    def flush(self) -> None:
        """Nothing is held back."""
