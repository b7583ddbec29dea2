"""`dcgan-dist shard SOURCE OUT --size 96`: images in, training shards out."""

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import tyro
from tqdm import tqdm

from dcgan_dist import cli
from dcgan_dist.config import ImageSize
from dcgan_dist.data.shard import Packing, Progress, Summary, write_shards
from dcgan_dist.data.sources import find_source

LISTED = 20  # bad images
PLAIN_EVERY = 5.0  # seconds between two lines of progress where there is no terminal
PLAIN_FORMAT = "shard: {n_fmt} of {total_fmt} images, {rate_fmt}, {remaining} to go"


@dataclass(frozen=True, kw_only=True)
class ShardOptions(Packing):
    """Pack images into shards for training: ordinary tars, with labels, mixed, all of one size."""

    source: tyro.conf.Positional[str]
    """A folder of images (with its sub-folders), a .zip of one, or torchvision:NAME as in torchvision:CIFAR10 or
    'torchvision:STL10?split=unlabeled'. Labels are the numbers of the class folders."""
    out: tyro.conf.Positional[Path]
    """Folder for shard-00000.tar, shard-00001.tar, ..."""
    root: Path = Path("data")
    """Folder of torchvision's data sets."""
    download: bool = False
    """Let torchvision download the data set into root."""


def main(argv: list[str]) -> int:
    """Runs the command. Raises UsageError and UserError."""
    options = cli.parse(ShardOptions, argv, "dcgan-dist shard")
    source = find_source(options.source, options.root, options.download)
    with _progress() as progress:
        summary = write_shards(source, options.out, options, progress)
    print(_text(summary, options))
    return 0


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal, else a line every few seconds."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    with tqdm(desc="shard", unit="img") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _lines() -> Progress:
    began = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done and now - last >= PLAIN_EVERY:
            last = now
            line = tqdm.format_meter(done, total, now - began, unit="img", bar_format=PLAIN_FORMAT)
            print(line, file=sys.stderr, flush=True)

    return show


def _text(summary: Summary, options: ShardOptions) -> str:
    rate = summary.images / max(summary.seconds, 1e-9)
    lines = [
        f"{summary.images:,} images in {summary.shards:,} shards, {summary.bytes / 1e6:,.1f} MB, in {summary.out}",
        f"{rate:,.0f} images/s ({summary.seconds:,.1f} s, {summary.processes} processes)",
    ]
    if summary.left_out:
        lines.append(f"left out: {summary.left_out:,} other files (hidden, or not named like images)")
    if summary.skipped:
        lines += [f"left out: {len(summary.skipped):,} images that cannot be read:"]
        lines += [f"  {message}" for message in summary.skipped[:LISTED]]
        more = len(summary.skipped) - LISTED
        lines += [f"  and {more:,} more"] if more > 0 else []
    return "\n".join([*lines, "", "Next:", f"  {_next_command(options)}"])


def _next_command(options: ShardOptions) -> str:
    sizes = get_args(ImageSize)
    size = options.size if options.size in sizes else min(sizes, key=lambda known: abs(known - (options.size or 64)))
    grey = " --model.channels 1" if options.channels == 1 else ""
    shards = shlex.quote(f"{options.out}/*.tar")
    return f"accelerate launch -m dcgan_dist.train --data.shards {shards} --model.image_size {size}{grey}"
