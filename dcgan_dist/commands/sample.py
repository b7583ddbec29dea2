"""`dcgan-dist sample RUN`: pictures from a run's newest checkpoint, or from any checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from dcgan_dist import cli
from dcgan_dist.commands.output import check_output, picture_path, save_picture, write_picture
from dcgan_dist.config import Range
from dcgan_dist.config.groups import Seed
from dcgan_dist.errors import UsageError

GRID = "samples.png"
IN_ONE = 10_000  # pictures in a grid


@dataclass(frozen=True, kw_only=True)
class SampleOptions(cli.CommandOptions):
    """Draw pictures from a trained generator: one grid, or a folder of single pictures."""

    source: tyro.conf.Positional[Path]
    """A run's folder (its newest intact checkpoint is used) or a checkpoint's."""
    out: Path | None = None
    """A picture for one grid, by its ending: .png, .jpg, .webp ..; a name without ending is a folder for single
    pictures 000000.png, 000001.png, .. Default: samples.png, or samples-2.png and so on if it exists."""
    overwrite: bool = False
    """Let --out replace files."""
    count: Annotated[int, Range(least=1, most=10**6)] = 64
    """Number of pictures."""
    seed: Seed = 0
    """Seed of the latents; picture i of a seed is the same whatever the count, and a run's own grid has the seed of
    the run."""
    network: Literal["netg_ema", "netg"] = "netg_ema"
    """netg_ema: the moving average of G. netg: G itself."""
    device: str = "auto"
    """auto: the GPU if there is one; or cpu, cuda, cuda:1 .."""


def main(argv: list[str]) -> int:
    """Runs the command. Raises UsageError and UserError."""
    options = cli.parse(SampleOptions, argv, "dcgan-dist sample")
    singles = _singles(options)
    # only now: importing torch takes seconds
    from dcgan_dist.run.generator import draw, find_checkpoint, load_generator
    from dcgan_dist.run.grid import grid

    path = find_checkpoint(options.source)
    netg, model, images = load_generator(path, options.network, options.device)
    parts = draw(netg, model, options.count, options.seed)
    out = options.out
    if singles:
        pictures = (picture for part in parts for picture in part)
        for picture, single in zip(pictures, singles, strict=True):
            write_picture(grid(picture[None], pad=0), single, options.overwrite)
    else:
        out = save_picture(grid(np.concatenate(list(parts))), options.out, GRID, options.overwrite)
    print(f"{options.count} pictures of {options.network} at {images:,} images ({path}) in {out}")
    return 0


def _singles(options: SampleOptions) -> list[Path]:
    """The files of single pictures; none for a grid. Raises UsageError if one exists, or is no picture."""
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
