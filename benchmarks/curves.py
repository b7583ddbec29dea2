"""The same run on 1, 2 and 4 ranks, and with another seed, iteration by iteration: a picture for the documentation.

    python -m benchmarks.curves        some minutes on 2 cores; writes docs/images/curves.png and results/curves.json

In float64 any number of ranks gives the same losses to rounding. In float32 they part after about ten iterations: the
order of additions differs, and adversarial training amplifies rounding until runs differ as other seeds' runs do.
Float64 is amplified alike, but from 1e-16.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.measure import RESULTS, save

REPOSITORY = Path(__file__).parent.parent
PICTURE = REPOSITORY / "docs" / "images" / "curves.png"
BATCH = 24


class Run(NamedTuple):
    ranks: int
    precision: str = "fp32"
    seed: int = 0

    @property
    def name(self) -> str:
        """For the results."""
        return f"{self.precision}, {self.ranks} rank{'s' * (self.ranks > 1)}, seed {self.seed}"


SINGLES = [Run(1), Run(2), Run(4), Run(1, seed=1)]
DOUBLES = [Run(1, "fp64"), Run(2, "fp64"), Run(4, "fp64")]
COLOURS = {Run(1): "black", Run(2): "#0072b2", Run(4): "#d55e00", Run(1, seed=1): "#8a8a8a"}

Losses = dict[str, list[float]]  # "loss/d" and "loss/g" of every iteration


def train(run: Run, iterations: int, cache: str) -> Losses:
    """Trains small networks on the embedded faces and returns what metrics.jsonl says."""
    with tempfile.TemporaryDirectory() as folder:
        images = str(iterations * BATCH)
        options = [
            "--run_dir",
            f"{folder}/run",
            "--images",
            images,
            "--batch_size",
            str(BATCH),
            "--seed",
            str(run.seed),
        ]
        options += ["--precision", run.precision, "--world_size", str(run.ranks), "--data.faces", "512"]
        options += ["--model.image_size", "32", "--model.ngf", "16", "--model.ndf", "16", "--wandb.mode", "disabled"]
        options += ["--log.every", str(BATCH), "--log.samples_every", images, "--trackers=wandb"]
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={run.ranks}"]
        subprocess.run(
            [sys.executable, *launcher, "-m", "dcgan_dist.train", *options],
            cwd=REPOSITORY,
            # ranks that wait for one another must leave the cores to the others; one thread each, so that 4 fit
            env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "XDG_CACHE_HOME": cache},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == [BATCH * (number + 1) for number in range(iterations)]
    return {name: [row[name] for row in rows] for name in ("loss/d", "loss/g")}


def difference(one: Losses, other: Losses) -> np.ndarray:
    """The larger of the two losses' differences in every iteration; never 0, for the logarithm."""
    both = [np.abs(np.array(one[name]) - np.array(other[name])) for name in ("loss/d", "loss/g")]
    return np.maximum(np.max(both, axis=0), 1e-17)


def draw(losses: dict[Run, Losses], path: Path) -> None:
    """Two panels of curves above one of differences."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplot_mosaic([["loss/d", "loss/g"], ["gap", "gap"]], figsize=(10, 8), layout="constrained")
    for name, title in (("loss/d", "D's loss, float32"), ("loss/g", "G's loss, float32")):
        _curves(axes[name], losses, name)
        axes[name].set(title=title, xlabel="iteration", ylabel="loss")
    axes["loss/d"].legend(frameon=False)
    _gaps(axes["gap"], losses)
    figure.suptitle("One run on 1, 2 and 4 ranks, the same global batch", fontsize=14)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _label(run: Run) -> str:
    return "1 rank, another seed" if run.seed else f"{run.ranks} rank{'s' * (run.ranks > 1)}"


def _curves(axes: Axes, losses: dict[Run, Losses], name: str) -> None:
    for width, run in zip((3.5, 2, 1.2, 1.2), SINGLES, strict=True):
        values = losses[run][name]
        style = ":" if run.seed else "-"
        axes.plot(range(1, len(values) + 1), values, style, color=COLOURS[run], linewidth=width, label=_label(run))


def _gaps(axes: Axes, losses: dict[Run, Losses]) -> None:
    for run in [*SINGLES[1:], *DOUBLES[1:]]:
        single = run.precision == "fp32"
        gap = difference(losses[run], losses[Run(1, run.precision)])
        axes.semilogy(
            range(1, len(gap) + 1),
            gap,
            ":" if run.seed else "-" if single else "--",
            color=COLOURS[run._replace(precision="fp32")],
            label=f"{'float32' if single else 'float64'}, {_label(run)}",
        )
    axes.set(
        title="Difference from the run on 1 rank (the larger of both losses')",
        xlabel="iteration",
        ylabel="difference of losses",
        ylim=(1e-17, 30),
    )
    axes.grid(axis="y", color="#e0e0e0")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(0.15, 0.52))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=180)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--name", default="curves", help="the results are OUT/NAME.json")
    args = parser.parse_args()
    losses: dict[Run, Losses] = {}
    with tempfile.TemporaryDirectory() as cache:
        for run in [*SINGLES, *DOUBLES]:
            print(f"{run.name} ..", flush=True)
            losses[run] = train(run, args.iterations, cache)
    draw(losses, args.picture)
    rows: list[dict[str, Any]] = [{"run": run.name, **curves} for run, curves in losses.items()]
    print(f"written: {args.picture}, {save(args.out, args.name, 'benchmarks.curves', rows)}")


if __name__ == "__main__":
    main()
