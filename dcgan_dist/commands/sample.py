"""`dcgan-dist sample RUN`: pictures from a run's newest checkpoint, or from any checkpoint."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from dcgan_dist import cli
from dcgan_dist.commands.output import check_output, picture_path, save_picture, write_picture
from dcgan_dist.config import ModelConfig, Range, Seed
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.gan.images import to_pixels
from dcgan_dist.gan.networks import NetG
from dcgan_dist.parallel.noise import sample_latents
from dcgan_dist.run import checkpoint, resume
from dcgan_dist.run.grid import grid

AT_ONCE = 64  # images in one forward pass; they do not depend on each other
GRID = "samples.png"
IN_ONE = 10_000  # pictures in a grid


@dataclass(frozen=True, kw_only=True)
class SampleOptions(cli.CommandOptions):
    """Draw pictures from a trained generator: one grid, or a folder of single pictures."""

    source: tyro.conf.Positional[Path]
    """A run's folder (its newest whole checkpoint is used) or a checkpoint's."""
    out: Path | None = None
    """A picture for one grid, by its ending: .png, .jpg, .webp ..; a name without ending is a folder for single
    pictures 000000.png, 000001.png, .. Absent: samples.png, or samples-2.png and so on where that is there already."""
    overwrite: bool = False
    """Let --out replace files."""
    count: Annotated[int, Range(least=1, most=10**6)] = 64
    """Number of pictures."""
    seed: Seed = 0
    """Seed of the latents; picture i of a seed is the same whatever the count, and a run's own grid has the seed of
    the run."""
    network: Literal["netg_ema", "netg"] = "netg_ema"
    """The moving average of G, or G as it was trained last."""
    device: str = "auto"
    """auto: the GPU if there is one; or cpu, cuda, cuda:1 .."""


def main(argv: list[str]) -> int:
    """Runs the command. Raises UsageError and UserError."""
    options = cli.parse(SampleOptions, argv, "dcgan-dist sample")
    singles = _singles(options)
    path = find_checkpoint(options.source)
    weights, state = checkpoint.load_network(path, options.network)
    model = model_config(path, state)
    netg = NetG(model).to(device=_device(options.device), dtype=weights["layers.0.weight"].dtype).eval()
    netg.load_state_dict(weights)
    parts = draw(netg, model, options.count, options.seed)
    out = options.out
    if singles:
        pictures = (picture for part in parts for picture in part)
        for picture, single in zip(pictures, singles, strict=True):
            write_picture(grid(picture[None], pad=0), single, options.overwrite)
    else:
        out = save_picture(grid(torch.cat(list(parts))), options.out, GRID, options.overwrite)
    print(f"{options.count} pictures of {options.network} at {state['images']:,} images ({path}) in {out}")
    return 0


def _singles(options: SampleOptions) -> list[Path]:
    """The files of single pictures; none for a grid. Raises UsageError for what is there already, or is no picture."""
    out = options.out
    if out is None or (not out.is_dir() and out.suffix and not out.suffix[1:].isdecimal()):  # runs/1.5 is no picture
        picture_path(out, GRID, options.overwrite)
        if options.count > IN_ONE:
            raise UsageError(f"--count {options.count}: one picture shows at most {IN_ONE:,}; --out FOLDER takes more")
        return []
    singles = [out / f"{number:06d}.png" for number in range(options.count)]
    for single in singles:
        check_output("--out", single, options.overwrite)
    return singles


def find_checkpoint(source: Path) -> Path:
    """The checkpoint that a run's or a checkpoint's folder stands for. Raises UsageError when it is neither."""
    try:
        found = resume.resolve(source, _warn)
    except OSError as error:
        raise UserError(f"{error.filename or source}: cannot be read ({error.strerror})") from error
    if found is None:
        raise UsageError(f"{source}: neither a run's folder with a checkpoint in it nor a checkpoint's folder")
    return found


def model_config(path: Path, state: dict[str, Any]) -> ModelConfig:
    """The networks that the state of the checkpoint at `path` describes. Raises UserError when it describes none."""
    try:
        options = {
            name.removeprefix("model."): value for name, value in state["config"].items() if name.startswith("model.")
        }
        return ModelConfig(**options)
    except (AttributeError, KeyError, TypeError) as error:
        problem = f"describes no networks that this version knows ({' '.join(str(error).split())})"
        raise UserError(f"{path / checkpoint.STATE}: {problem}; use the version that wrote it") from error


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: torch cannot use it ({str(error).partition(chr(10))[0]})") from error


@torch.no_grad()
def draw(netg: NetG, model: ModelConfig, count: int, seed: int) -> Iterator[Tensor]:
    """uint8 pictures (n, C, H, W) on the CPU, AT_ONCE at a time. In evaluation mode: none depends on the others."""
    weight = next(netg.parameters())
    for first in range(0, count, AT_ONCE):
        z = sample_latents(model, seed, first, min(AT_ONCE, count - first), weight)
        yield to_pixels(netg(z), model.output).cpu()


def _warn(line: str) -> None:
    sys.stderr.write(f"{line}\n")
