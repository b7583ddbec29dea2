"""How to read a GAN's curves: four real runs, each with a picture for the documentation.

    python -m benchmarks.gan_curves          some minutes on 2 cores

Trains CASES on the embedded faces, one thread each, and writes docs/images/NAME.png (curves, warnings, the last grid)
and results/gan_curves.json. docs/monitoring.md shows both.
"""

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from benchmarks.measure import RESULTS, save
from dcgan_dist.run.jsonl import NOT_FINITE

REPOSITORY = Path(__file__).parent.parent
PICTURES = REPOSITORY / "docs" / "images"
SMALL = "--images 40_000 --batch_size 32 --model.image_size 32 --model.ngf 16 --model.ndf 16 --log.every 640"
CASES = {
    "healthy": "",
    "collapsed": "--optimizer.d_every 16",
    "overpowered": "--optimizer.d_lr 2e-3 --optimizer.g_lr 2e-5",
    "diverged": "--model.d_norm none --loss.gp_weight 10 --optimizer.d_lr 0.1",
}
"""Name -> options in addition to SMALL."""
PROGRAM = ["-m", "dcgan_dist.train", "--log.format", "json", "--trackers", "none"]
COLOURS = {"d": "#0072b2", "g": "#d55e00"}
SIDE = 264  # pixels of the grid in the picture
SCALARS = (
    *("images", "loss/d", "loss/g", "d/real", "d/fake", "grad_norm/d", "grad_norm/g"),
    *("health/ms_ssim", "health/pixel_std", "health/saturation", "health/gradient_ratio"),
)

Record = dict[str, Any]


def train(name: str, folder: Path) -> Record:
    """Trains one case in `folder`, unless that was done; its reports, warnings and errors, with their images."""
    options = [*PROGRAM, *shlex.split(f"{SMALL} {CASES[name]}"), "--run_dir", str(folder)]
    output, errors = folder.with_suffix(".out"), folder.with_suffix(".err")
    if not output.exists():
        done = subprocess.run(
            [sys.executable, *options],
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
            check=False,
            capture_output=True,
        )
        output.write_bytes(done.stdout)
        errors.write_bytes(done.stderr)
    messages: list[Record] = []
    images = 0
    # a warning comes before the report of its images
    for line in map(json.loads, reversed(output.read_text().splitlines())):
        images = line.get("images", images)
        if line.get("level") == "warning":
            messages.insert(0, {"images": images, "text": line["message"]})
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    messages += [{"images": rows[-1]["images"], "text": line} for line in errors.read_text().splitlines()]
    curves = {scalar: [_short(row.get(scalar)) for row in rows] for scalar in SCALARS}
    command = f"dcgan-dist launch {SMALL} {CASES[name]}".strip()
    return {"run": name, "command": command, "messages": messages, "curves": curves}


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def draw(found: Record, grid: Path, picture: Path) -> None:
    """Losses, D's probabilities, gradient norms and likeness, beside the last grid."""
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.4})
    figure, axes = plt.subplot_mosaic(
        [["losses", "probabilities", "grid"], ["gradients", "likeness", "grid"]],
        figsize=(11, 4.4),
        width_ratios=[1, 1, 1.25],
        layout="constrained",
    )
    panels = {
        "losses": ("Losses", {"loss/d": "D", "loss/g": "G"}),
        "probabilities": ("D(x) and D(G(z))", {"d/real": "D(x)", "d/fake": "D(G(z))"}),
        "gradients": ("Norms of the gradients", {"grad_norm/d": "D", "grad_norm/g": "G"}),
        "likeness": ("MS-SSIM of G's images", {"health/ms_ssim": "MS-SSIM"}),
    }
    for place, (title, lines) in panels.items():
        _curves(axes[place], found, title, lines)
    _scale(axes["losses"], found, ("loss/d", "loss/g"))
    axes["gradients"].set_yscale("log")
    axes["probabilities"].axhline(0.5, color="#8a8a8a", linestyle="--", linewidth=1)
    for place in ("probabilities", "likeness"):
        axes[place].set_ylim(-0.03, 1.03)
    for place in ("gradients", "likeness"):
        axes[place].set_xlabel("thousand images")
    last = Image.open(grid)
    axes["grid"].imshow(last)
    axes["grid"].set_axis_off()
    axes["grid"].set_title(f"Samples at {int(grid.stem):,} images", fontsize=10)
    figure.savefig(picture, dpi=80)
    plt.close(figure)
    shrink(picture)


def _curves(axes: Axes, found: Record, title: str, lines: dict[str, str]) -> None:
    x = np.array(found["curves"]["images"]) / 1e3
    for name, label in lines.items():
        values = [NOT_FINITE.get(str(value), value) for value in found["curves"][name]]
        colour = COLOURS["g" if name in ("loss/g", "d/fake", "grad_norm/g") else "d"]
        axes.plot(x, np.array([math.nan if value is None else value for value in values]), color=colour, label=label)
    for message in found["messages"]:
        axes.axvline(message["images"] / 1e3, color="#b3263f", linestyle=":", linewidth=1.4)
    axes.set_title(title, fontsize=10)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9)


def _scale(axes: Axes, found: Record, names: tuple[str, ...]) -> None:
    """Powers of ten where losses grow over them."""
    values = [value for name in names for value in found["curves"][name] if isinstance(value, float)]
    if max(values) > 100:
        axes.set_yscale("log")


def shrink(picture: Path, colours: int = 256) -> None:
    """Few colours are enough for lines and cartoons."""
    with Image.open(picture) as image:
        small = image.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    small.save(picture, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--keep", type=Path, help="where to leave the run folders; what is there is drawn again")
    parser.add_argument("--pictures", type=Path, default=PICTURES)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    rows: list[Record] = []
    with tempfile.TemporaryDirectory() as place:
        for name in args.only:
            print(f"{name} ..", flush=True)
            folder = (args.keep or Path(place)) / name
            rows.append(train(name, folder))
            print("\n".join(f"  {message['images']:,}: {message['text']}" for message in rows[-1]["messages"]))
            draw(rows[-1], max((folder / "samples").glob("*.png")), args.pictures / f"{name}.png")
    if args.only == list(CASES):
        print(save(args.out, "gan_curves", "benchmarks.gan_curves", rows))


if __name__ == "__main__":
    main()
