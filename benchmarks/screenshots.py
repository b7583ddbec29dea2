"""The page of a run, and `dcgan-dist watch`, as pictures for the documentation.

    python -m benchmarks.screenshots RUN        half a minute; writes docs/images/page*.png and watch.png

Chromium without a window opens RUN/report.html, wide and light, and as dark as on a phone. What `watch` shows on a
terminal becomes a picture by rich.
"""

import argparse
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console
from rich.text import Text

from benchmarks.gan_curves import PICTURES, shrink
from tests.support.browser import OPTIONS, chromium

VIEWS: dict[str, dict[str, Any]] = {
    "page": {"viewport": {"width": 1100, "height": 1720}, "color_scheme": "light"},
    "page_phone": {
        "viewport": {"width": 390, "height": 844},
        "color_scheme": "dark",
        "is_mobile": True,
        "has_touch": True,
    },
}
PROGRAM = shlex.quote(str(Path(sys.executable).with_name("dcgan-dist")))
COLUMNS, ROWS = 84, 60  # of the terminal
HIDES, SHOWS = "\x1b[?25l", "\x1b[?25h"  # the cursor: a live display begins and ends with them
CLEARS = "\x1b[2K"  # a line, before it is drawn again
WIDTH, COLOURS = 720, 96  # pixels and colours of a picture


def page(browser: Browser, file: Path, name: str, folder: Path) -> None:
    """A picture of the upper part of a page, as one of VIEWS."""
    view = browser.new_context(**VIEWS[name]).new_page()
    view.set_default_timeout(300_000)
    view.goto(file.as_uri())
    view.wait_for_selector("html[data-ready]", state="attached")
    if name == "page_phone":
        view.evaluate("location.hash = 'images'")
    _write(view.screenshot(), folder / f"{name}.png")


def watch(browser: Browser, run: Path, folder: Path) -> None:
    """A picture of what `dcgan-dist watch` leaves on a terminal."""
    command = f"stty cols {COLUMNS} rows {ROWS}; exec {PROGRAM} watch {run.name}"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        cwd=run.parent,
        env=os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"},
        check=True,
        capture_output=True,
    )
    shown = done.stdout.decode().partition(HIDES)[2].rpartition(SHOWS)[0].rpartition(CLEARS)[2].replace("\r", "")
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(shown))
    view = browser.new_page()
    view.set_content(console.export_svg(title=f"dcgan-dist watch {run.name}"))
    _write(view.locator("svg").first.screenshot(), folder / "watch.png")


def _write(png: bytes, path: Path) -> None:
    with Image.open(io.BytesIO(png)) as image:
        image.thumbnail((WIDTH, 10_000), Image.Resampling.LANCZOS)
        image.save(path)
    shrink(path, COLOURS)
    print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pictures", type=Path, default=PICTURES)
    args = parser.parse_args()
    run = args.run.resolve()
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium(), args=OPTIONS) as browser,
    ):
        for name in VIEWS:
            page(browser, run / "report.html", name, args.pictures)
        watch(browser, run, args.pictures)


if __name__ == "__main__":
    main()
