"""What the page of a long run takes: seconds to write, bytes, and seconds until a browser has drawn it.

    python -m benchmarks.page          two minutes on 2 cores; writes results/page.json

The run has REPORTS reports of 30 scalars and GRIDS grids of 64 faces of 64 x 64 pixels, under noise that decreases. The
browser is Chromium without a window; `draw` counts from the request until the last chart is there. Both are pairs of
seconds and seconds of CPU time.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measure import RESULTS, save
from benchmarks.turns import cpu_seconds
from dcgan_dist.config import Config, flatten
from dcgan_dist.data.faces.dataset import draw_face
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.grid import grid, save_png
from dcgan_dist.run.report.facts import read_run
from dcgan_dist.run.report.page import write_page

REPORTS, GRIDS, FACES, SIZE = 10_000, 500, 256, 64
EVERY = 2_560  # images between two reports
SCALARS = (
    *(
        "loss/d",
        "loss/g",
        "d/real",
        "d/fake",
        "d/real_after",
        "d/fake_after",
        "logit/real",
        "logit/fake",
        "grad_norm/d",
    ),
    *("grad_norm/g", "time/data", "time/g", "time/d", "time/other", "time/data_percent", "time/save_seconds", "epoch"),
    *("speed/images_per_second", "data/substituted", "data/bytes_per_image", "lr/g", "lr/d", "health/pixel_std"),
    *("health/ms_ssim", "health/saturation", "health/gradient_ratio", "save/write_seconds", "scale/g", "scale/d"),
    "time/run_hours",
)


def make_run(root: Path, reports: int, grids: int) -> None:
    """The folder of a run that never was."""
    folder, random = RunFolder(root), np.random.default_rng(0)
    folder.samples.mkdir(parents=True)
    folder.environment.write_text(json.dumps({"world_size": 1, "device": "cpu"}))
    values = 0.5 + random.normal(0, 0.1, (reports, len(SCALARS))).cumsum(0) / math.sqrt(reports)
    values[:, -1] = np.arange(reports) / 100
    with folder.metrics.open("w") as file:
        for number, row in enumerate(values.tolist(), 1):
            file.write(json.dumps({"images": EVERY * number, **dict(zip(SCALARS, row, strict=True))}) + "\n")
    faces = np.stack([np.asarray(draw_face(0, number, SIZE).convert("RGB")) for number in range(FACES)])
    for number in range(grids):
        noise = random.normal(0, 60 / (1 + number / 3), (64, SIZE, SIZE, 3))
        chosen = np.clip(faces[random.integers(0, FACES, 64)] + noise, 0, 255).astype(np.uint8)
        save_png(grid(chosen.transpose(0, 3, 1, 2)), folder.sample(EVERY * (reports // grids) * (number + 1)))
    save_png(grid(faces[:64].transpose(0, 3, 1, 2)), folder.real)


def drawn(page: Path) -> tuple[float, float]:
    """Seconds, and seconds of CPU time, until a browser has drawn everything that is open."""
    from playwright.sync_api import sync_playwright

    from tests.support.browser import OPTIONS, chromium

    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium(), args=OPTIONS) as browser,
    ):
        view = browser.new_page()
        view.set_default_timeout(600_000)
        begun, cpu = time.perf_counter(), cpu_seconds()
        view.goto(page.as_uri())
        view.wait_for_selector("html[data-ready]", state="attached")
        return time.perf_counter() - begun, cpu_seconds() - cpu


def main() -> None:
    """Prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=int, default=REPORTS)
    parser.add_argument("--grids", type=int, default=GRIDS)
    parser.add_argument("--keep", type=Path, help="where to leave the page")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "run"
        make_run(root, given.reports, given.grids)
        page = given.keep or root / "report.html"
        begun, cpu = time.perf_counter(), cpu_seconds()
        result = write_page([read_run(root, flatten(Config()), [])], page)
        written = time.perf_counter() - begun, cpu_seconds() - cpu
        row = {"reports": given.reports, "grids": given.grids, "shown": result.grids, "bytes": page.stat().st_size}
        row |= {"write": written, "draw": min(drawn(page) for _ in range(3))}
    print(json.dumps(row, indent=1))
    save(given.out, "page", "benchmarks.page", row)


if __name__ == "__main__":
    main()
