"""`dcgan-dist shard SOURCE OUT --size 96`: images in, training shards out."""

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import tyro

from dcgan_dist import cli
from dcgan_dist.commands.progress import progress
from dcgan_dist.config.groups import ImageSize
from dcgan_dist.config.option_names import bare
from dcgan_dist.data.shards.manifest import BAD, DUPLICATES
from dcgan_dist.data.shards.samples import MemberChoice
from dcgan_dist.data.sources import find_source
from dcgan_dist.data.writing.packing import Packing, parse_part
from dcgan_dist.data.writing.publish import Summary
from dcgan_dist.data.writing.writer import Callbacks, merge_shards, write_shards
from dcgan_dist.errors import UsageError, to_stderr
from dcgan_dist.text import count_text, counted

BAD_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class ShardOptions(cli.CommandOptions, Packing):
    """Pack images into shards for training: ordinary tars, with labels, mixed, all of one size.

    A stopped command continues when it is run again; delete OUT/.partial to start from the beginning. Beside the shards
    are manifest.json, which describes them, and sizes.json and _info.json for open_clip and timm.
    """

    source: tyro.conf.Positional[str]
    """A folder of images (with its sub-folders), a .zip of one, tar shards or Parquet files (a folder, a brace list or
    URLs of them), a .csv or .jsonl list of paths, or torchvision:NAME as in torchvision:CIFAR10 or
    'torchvision:STL10?split=unlabeled'. Labels are the numbers of the class folders, or those of the source."""
    out: tyro.conf.Positional[Path]
    """Folder for shard-00000.tar, shard-00001.tar, ..."""
    root: Path = Path("data")
    """Folder of torchvision's data sets."""
    download: bool = False
    """Let torchvision download the data set into root."""
    image_column: str | None = None
    """Column of the images in Parquet files, or of the paths in a list; found by its name when not given."""
    label_column: str | None = None
    """The same for the labels."""
    image_key: str | None = None
    """Suffix of the image in other programs' tars: input.jpg, or several: 'png;jpg'. Absent: jpg, png and so on."""
    label_key: str | None = None
    """The same for the label, or the field of a .json member. Absent: cls, class, label, or such a field."""
    allow_cut: bool = False
    """Read other programs' tars that end without tar's end mark; a member that is cut is skipped and reported."""
    part: str | None = None
    """K/N: write only the K-th of N parts, each on a computer of its own that sees OUT; K from 1 to N. All with the
    same other options; --merge then completes the set."""
    merge: bool = False
    """Check that all parts are there, and complete the set: `dcgan-dist shard --merge OUT`, with no other option than
    --overwrite."""


@dataclass(frozen=True, kw_only=True)
class MergeOptions(cli.CommandOptions):
    """Complete the set of shards that several parts have written."""

    out: tyro.conf.Positional[Path]
    """Folder to which the parts were written."""
    merge: bool = False
    """Always given in this form of the command."""
    overwrite: bool = False
    """Replace the shards that OUT holds, by its manifest.json; other files stay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.merge:
            raise UsageError("--merge false: leave --merge out to pack images")


def main(argv: list[str]) -> int:
    """Runs the command. Raises UsageError and UserError."""
    if any(bare(word) == "merge" for word in argv if word.startswith("--")):
        merge = cli.parse(MergeOptions, argv, "dcgan-dist shard")
        print(_text(merge_shards(merge.out, merge.overwrite), 0))
        return 0
    options = cli.parse(ShardOptions, argv, "dcgan-dist shard")
    part = parse_part(options.part) if options.part else None
    columns = {"image_column": options.image_column, "label_column": options.label_column}
    choice = MemberChoice(options.image_key, options.label_key, options.allow_cut, options.skip_bad)
    source = find_source(options.source, options.root, options.download, **columns, choice=choice)
    for line in options.decisions():
        to_stderr(line)
    began = time.monotonic()
    try:
        with progress("duplicates", "img") as hashed, progress("shard", "img") as packed:
            callbacks = Callbacks(packed=packed, hashed=hashed, say=to_stderr)
            summary = write_shards(source, options.out, options, callbacks, part)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; run it again to continue with what is complete") from None
    print(f"part {options.part}: " * (part is not None) + _text(summary, time.monotonic() - began))
    return 0


def _text(summary: Summary, seconds: float) -> str:
    images, shards = counted(summary.samples, "image"), counted(len(summary.shards), "shard")
    lines = [f"{images} in {shards}, {summary.bytes / 1e6:,.1f} MB, in {summary.out}"]
    if summary.written:
        processes = counted(summary.processes, "process", "processes")
        lines.append(f"{summary.written / max(seconds, 1e-9):,.0f} images/s ({seconds:,.1f} s, {processes})")
    if summary.plan.left_out:
        lines.append(f"left out: {count_text(summary.plan.left_out, 'other file')}")
    if summary.several:
        lines.append(f"files with several pictures (GIF, TIFF ..), of which the first is used: {summary.several:,}")
    if summary.others:
        lines.append(f".tar files in {summary.out} that are not of this set, and stay: {summary.others:,}")
    if summary.duplicates:
        where = f", listed in {summary.out / DUPLICATES}" if summary.published else ""
        found = f"duplicates of another file: {counted(summary.duplicates, 'image')}{where}"
        dropped = summary.plan.options["duplicates"] == "drop"
        lines.append(f"left out: {found}" if dropped else f"{found}; --duplicates drop leaves them out")
    if summary.skipped:
        lines.append(f"left out: {counted(len(summary.skipped), 'unreadable image')}:")
        lines += [f"  {message}" for message in summary.skipped[:BAD_LISTED]]
        more = len(summary.skipped) - BAD_LISTED
        where = f", listed in {summary.out / BAD}" if summary.published else ""
        lines += [f"  and {more:,} more{where}"] if more > 0 else []
    return "\n".join([*lines, "", "Next:", f"  {_next_command(summary)}"])


def _next_command(summary: Summary) -> str:
    if not summary.published:
        return f"dcgan-dist shard --merge {shlex.quote(str(summary.out))}   # when all parts are done"
    size, channels = summary.plan.options["size"] or 64, summary.plan.options["channels"]
    nearest = min(get_args(ImageSize), key=lambda known: abs(known - size))
    grey = " --model.channels 1" if channels == 1 else ""
    shards = shlex.quote(f"{summary.out}/{'shard-' * bool(summary.others)}*.tar")
    return f"dcgan-dist launch --data.shards {shards} --model.image_size {nearest}{grey}"
