"""Trainings started by a script, as a person starts them, and what they leave behind."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from support.waiting import LIMIT
from torch import Tensor

ROOT = Path(__file__).parents[2]

# float64 and a small learning rate: rounding stays rounding over any number of iterations
TINY = shlex.split(
    "--precision fp64 --model.image_size 32 --model.nz 8 --model.ngf 8 --model.ndf 8 --batch_size 16 "
    "--optimizer.g_lr 1e-5 --optimizer.d_lr 1e-5 --data.faces 64 --trackers=wandb --log.no_page"
)


def environment(**variables: object) -> dict[str, str]:
    """Variables for a script that is to use the Python of the tests, on the CPU."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    fixed = {"PATH": path, "VIRTUAL_ENV": sys.prefix, "CUDA_VISIBLE_DEVICES": ""}
    return kept | fixed | {name: str(value) for name, value in variables.items()}


def call(*command: object, cwd: Path = ROOT, **variables: object) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, whatever its exit code."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def train_alone(run_dir: Path, *options: object) -> None:
    """The same training in one process, without a launcher."""
    done = call(sys.executable, "-m", "dcgan_dist.train", *TINY, "--run_dir", run_dir, *options)
    assert done.returncode == 0, done.stderr


def newest_tensors(run_dir: Path, images: int | None = None) -> dict[str, Tensor]:
    """Networks, average and optimisers of the newest checkpoint, or of that with so many images."""
    checkpoints = run_dir / "checkpoints"
    folder = checkpoints / ((checkpoints / "latest").read_text() if images is None else f"{images:09d}")
    files = [folder / f"{name}.safetensors" for name in ("netg", "netd", "netg_ema", "optimizer_g", "optimizer_d")]
    return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


def deviation(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of any tensor, relative to the tensor's largest number."""
    assert ours.keys() == theirs.keys()
    assert ours
    pairs = [(ours[name].double(), theirs[name].double()) for name in ours]
    return max(float((x - y).abs().max() / y.abs().max().clamp_min(torch.finfo(torch.float64).tiny)) for x, y in pairs)
