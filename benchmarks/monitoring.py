"""What monitoring costs: the loop's time in the trackers, and what a fault of W&B's server costs.

    python -m benchmarks.monitoring        six minutes on 2 cores, most of it waiting; writes results/monitoring.json

W&B and TensorBoard get REPORTS reports of 30 scalars and PICTURES grids of 64 pictures of 64 x 64 pixels with three
histograms. `blocked` is what the loop waits for in them, `cpu` what all processes compute, W&B's own included; both as
percent of the training between them: with the default intervals (a report every 2,560 images, a grid every 25,600), at
64 pixels, batch 64, ngf = ndf = 64, measured in the same run. The server is the tests' stand-in on this machine.

Then a server, or W&B's process, fails in each way: `open` and `close` are the seconds that W&B takes at the start and
at the end, `lost` and `double` are reports that the server lacks or has twice after `dcgan-dist wandb sync`.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: other programs may want the cores, too

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.measure import RESULTS, save, table
from benchmarks.step import Ours
from benchmarks.turns import cpu_seconds
from dcgan_dist import cli
from dcgan_dist.__main__ import main as dcgan_dist
from dcgan_dist.config import Config
from dcgan_dist.config.run_groups import WandbConfig
from dcgan_dist.parallel.world import launch
from dcgan_dist.run.jsonl import MetricsFile
from dcgan_dist.run.tracker_start import Start
from dcgan_dist.run.trackers import TRACKERS, Trackers
from dcgan_dist.run.wandb import open_wandb

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.fake_wandb import FakeWandb, Run  # pyright: ignore[reportMissingImports]

REPORTS, PICTURES, SCALARS = 100, 10, [f"group{n % 5}/scalar{n}" for n in range(30)]
FAULTS = [
    (when, fault) for when in ("start", "middle", "end") for fault in ("down", "401", "500", "slow", "killed")
    if (when, fault) != ("start", "killed")
]  # fmt: skip


def begin(folder: Path, server: FakeWandb) -> Start:
    """A run's folder, whose trackers go to the stand-in."""
    os.environ |= server.env() | dict.fromkeys(("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"), str(folder))
    config = Config(run_dir=folder, batch_size=64, wandb=WandbConfig(mode="online"))
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(cli.dump(config))
    return Start(config=config, images=0, say=lambda _: None, on_stop=lambda: None, environment={})


def overhead(folder: Path) -> dict[str, float]:
    """Seconds, wall and CPU, of a report and of a grid, and of an image's training."""
    random = np.random.default_rng(0)
    grids = random.integers(0, 256, (PICTURES, 528, 528, 3)).astype(np.uint8)
    pixels, outputs = grids[0].ravel(), random.normal(size=(2, 64))
    with FakeWandb() as server:
        start, trackers = begin(folder, server), Trackers(print)
        for name, make in TRACKERS.items():
            trackers.start(name, lambda make=make: make(start))
        before, reports = cpu_seconds(), time.perf_counter()
        for number in range(REPORTS):
            trackers.scalars(number, dict.fromkeys(SCALARS, random.random()))
        reports = time.perf_counter() - reports
        time.sleep(20)  # W&B sends every 15 s
        between, pictures = cpu_seconds(), time.perf_counter()
        for number, grid in enumerate(grids):
            trackers.picture(REPORTS + number, "samples", grid)
            trackers.histogram(REPORTS + number, "samples/pixels", pixels)
            for name, values in zip(("real", "fake"), outputs, strict=True):
                trackers.histogram(REPORTS + number, f"logit/{name}_histogram", values)
        pictures = time.perf_counter() - pictures
        time.sleep(20)
        after = cpu_seconds()
        trackers.close()
    world = launch(Config())
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    ours = Ours(start.config, world)
    for _ in range(3):
        ours.iterate()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(20):
        ours.iterate()
    images = 20 * start.config.batch_size
    wall, cpu = (time.perf_counter() - wall) / images, (time.process_time() - cpu) / images
    found = {"report": reports / REPORTS, "grid": pictures / PICTURES, "image": wall, "image_cpu": cpu}
    found |= {"report_cpu": (between - before) / REPORTS, "grid_cpu": (after - between) / PICTURES}
    log = start.config.log
    for name, share in (("blocked", ""), ("cpu", "_cpu")):
        each = found[f"report{share}"] / log.every + found[f"grid{share}"] / log.samples_every
        found[f"{name}_percent"] = 100 * each / found[f"image{share}"]
    return found


def fails(when: str, fault: str, folder: Path) -> dict[str, Any]:
    """What a fault costs a run of 100 reports."""
    with FakeWandb() as server:
        start = begin(folder, server)
        metrics, trackers = MetricsFile(folder / "metrics.jsonl"), Trackers(lambda _: None)

        def fail() -> None:
            if fault == "killed":
                (service,) = [child for child in psutil.Process().children() if "wandb-core" in child.name()]
                service.kill()
                service.wait()
            else:
                server.fault = fault

        def at(moment: str) -> None:
            if when == moment:
                fail()

        at("start")
        opened = timed(lambda: trackers.start("W&B", lambda: open_wandb(start)))
        blocked = 0.0
        for number in range(1, 101):
            if number == 50:
                at("middle")
            values = {"loss/d": number / 7}
            metrics.append({"images": number, **values})
            blocked = max(blocked, timed(lambda n=number, v=values: trackers.scalars(n, v)))
        at("end")
        closed = timed(trackers.close)
        server.fault = None
        row = {"when": when, "fault": fault, "open": opened, "report": blocked, "close": closed}
        return row | sent_later(folder, server)


def sent_later(folder: Path, server: FakeWandb) -> dict[str, Any]:
    """What of 100 reports the server lacks, and has twice, after the command that sends the rest; its seconds."""
    seconds = timed(lambda: dcgan_dist(["wandb", "sync", str(folder)]))
    (run,) = server.runs.values() or [Run("", "", "")]
    there = Counter(row["images"] for row in run.history if "loss/d" in row)
    return {"sync": seconds, "lost": 100 - len(there), "double": there.total() - len(there)}


def timed(act: Callable[[], object]) -> float:
    """Its seconds."""
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def main() -> None:
    """Prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--faults", type=int, default=len(FAULTS), help="how many of the faults, 0: none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        cost = overhead(Path(name, "overhead"))
        print(json.dumps(cost, indent=1), flush=True)
        rows = [fails(when, fault, Path(name, f"{when}-{fault}")) for when, fault in FAULTS[: options.faults]]
    save(options.out, "monitoring", "benchmarks.monitoring", {"overhead": cost, "faults": rows})
    if rows:
        cells = [[f"{x:.1f}" if isinstance(x, float) else str(x) for x in row.values()] for row in rows]
        print(table(list(rows[0]), cells))


if __name__ == "__main__":
    main()
