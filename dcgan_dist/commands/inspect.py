"""`dcgan-dist inspect SHARDS`: their contents, in numbers and as one picture."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

from dcgan_dist import cli
from dcgan_dist.commands.output import check_output, picture_path, save_picture
from dcgan_dist.config import Range
from dcgan_dist.config.groups import DataConfig, Images, Retries, Seed, Timeout
from dcgan_dist.data.checking.checklist import shard_names
from dcgan_dist.data.checking.corpus_statistics import Counts, Decoded, Picture, count, decode, pictures, spread
from dcgan_dist.data.corpus import Corpus, open_shards
from dcgan_dist.data.images.codecs import to_rgb_or_grey
from dcgan_dist.data.shards.completeness import compare_with_manifests
from dcgan_dist.data.shards.index import NO_LABEL
from dcgan_dist.data.shards.manifest import Manifest, names_in
from dcgan_dist.data.system.storage import write_atomically
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.run.grid import grid
from dcgan_dist.text import counted

SHEET = "contact.png"
MOST_LISTED = 5  # sizes, modes, bad images
SMALLEST, LARGEST = 64, 128  # pixels of a tile's longer side
CAPTION = 12  # pixels


@dataclass(frozen=True, kw_only=True)
class InspectOptions(cli.CommandOptions):
    """Show what shards hold: counts, sizes, mean and spread of the pixels, labels, and a contact sheet."""

    shards: tyro.conf.Positional[tuple[str, ...]]
    """Paths, URLs, globs, brace lists, folders of .tar files, or a manifest.json."""
    out: Path | None = None
    """The contact sheet, a picture by its ending: .png, .jpg, .webp .. Absent: contact.png, or contact-2.png and so on
    where that is there already."""
    overwrite: bool = False
    """Let --out and --json replace files."""
    count: Annotated[int, Range(least=0, most=10_000)] = 64
    """Images on the contact sheet, spread evenly over all shards; 0: no sheet."""
    seed: Seed = 0
    """Another seed draws other images."""
    sample: Images = 1_000
    """Images that are decoded for sizes, mean and spread, spread evenly over all shards."""
    all: bool = False
    """Decode all images for them."""
    json: Path | None = None
    """File for the same facts, for programs."""
    image_key: str | None = None
    """As --data.image_key of training: the suffix of the image in the samples of other programs' tars."""
    label_key: str | None = None
    """As --data.label_key: the suffix or the .json field of the label."""
    allow_cut: bool = False
    """As --data.allow_cut: take tars that end without tar's end mark."""
    timeout: Timeout = 60
    """Seconds without an answer after which a remote read is tried again."""
    retries: Retries = 5
    """Further tries of a remote read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shards:
            raise UsageError("SHARDS is missing: paths, globs, URLs, a folder or a manifest.json")


def main(argv: list[str]) -> int:
    """Runs the command. Raises UsageError and UserError."""
    options = cli.parse(InspectOptions, argv, "dcgan-dist inspect")
    from dcgan_dist.data.loading import make_opener, unused_lines  # only now, for it imports torch, which takes seconds

    if options.json:
        check_output("--json", options.json, options.overwrite)
    if options.count:
        picture_path(options.out, SHEET, options.overwrite)
    shared = ("timeout", "retries", "image_key", "label_key", "allow_cut")
    opener = make_opener(DataConfig(**{name: getattr(options, name) for name in shared}))
    names = shard_names(options.shards, opener.remote)
    complete = compare_with_manifests(options.shards, names, opener.remote)
    manifest = complete.manifest
    corpus = Corpus(open_shards(names, opener), opener)
    counts = count(corpus)
    samples = spread(corpus.size, corpus.size if options.all else options.sample, options.seed)
    with tqdm(desc="inspect", total=len(samples), unit="img", disable=not sys.stderr.isatty()) as bar:
        decoded = decode(corpus, samples, lambda done: bar.update(done - bar.n))
    lines = facts(counts, decoded, manifest)
    lines += [f"shards:   {line}" for line in complete.missing + complete.notes]
    print(*lines, *unused_lines([*corpus.shards, *corpus.without_images], opener.choice), sep="\n")
    if options.json:
        found = json.dumps(as_dict(counts, decoded, manifest), indent=1) + "\n"
        write_atomically(options.json, found.encode(), new=not options.overwrite)
    if options.count:
        drawn = spread(corpus.size, options.count, options.seed)
        sheet = contact_sheet(pictures(corpus, drawn), names_in(manifest, names) or corpus.classes)
        out = save_picture(sheet, options.out, SHEET, options.overwrite)
        print(f"contact sheet: {counted(len(drawn), 'image')} in {out}")
    return 0


def facts(counts: Counts, decoded: Decoded, manifest: Manifest | None) -> list[str]:
    """Everything as lines of text."""
    mean = counts.image_bytes / counts.images
    suffixes = ", ".join(f"{images:,} .{suffix}" for suffix, images in counts.suffixes.most_common())
    others = counts.shards - counts.checked
    made = [f"{counts.checked:,} with an index and checksums"] * bool(counts.checked)
    made += [f"{others:,} made by other programs, no checksums"] * bool(others)
    lines = [
        f"shards:   {counts.shards:,} ({', '.join(made)}), {counts.file_bytes / 1e6:,.1f} MB",
        f"images:   {counts.images:,} ({suffixes}), {mean:,.0f} bytes each",
        f"epoch:    {counts.image_bytes / 1e6:,.1f} MB of images to read",
        f"labels:   {_labels(counts.labels, _names(counts, manifest))}",
    ]
    if manifest is not None:
        found = manifest.duplicates
        duplicates = "duplicates were not searched for" if found is None else counted(found, "duplicate")
        lines.append(f"manifest: {duplicates}; {counted(manifest.bad, 'unreadable image')} left out")
    total = decoded.images + len(decoded.bad)
    lines.append(f"of {'all' if total == counts.images else f'{total:,}'} images, decoded:")
    if decoded.images:
        lines += [f"  sizes:  {_sizes(decoded.sizes)}", f"  pixels: {_most(decoded.modes)}"]
        lines += [f"  mean:   {_numbers(decoded.pixels.mean())}", f"  std:    {_numbers(decoded.pixels.std())}"]
    if decoded.bad:
        lines.append(f"  cannot be decoded: {len(decoded.bad):,} (`dcgan-dist verify --deep` finds all)")
        lines += [f"    {line}" for line in decoded.bad[:MOST_LISTED]]
    return lines


def _names(counts: Counts, manifest: Manifest | None) -> Mapping[int, str | None]:
    return counts.classes if manifest is None else {entry.label: entry.name for entry in manifest.classes}


def _labels(labels: Counter[int], names: Mapping[int, str | None]) -> str:
    def named(label: int, images: int) -> str:
        return f"{label} ({names[label]}) with {images:,}" if names.get(label) else f"{label} with {images:,}"

    ranked = [(label, images) for label, images in labels.most_common() if label != NO_LABEL]
    if not ranked:
        return "none"
    text = counted(len(ranked), "class", "classes")
    if len(ranked) > 1:
        text += f", the largest {named(*ranked[0])}, the smallest {named(*ranked[-1])} images"
    without = counted(labels[NO_LABEL], "image without a label", "images without a label")
    return f"{text}; {without}" if labels[NO_LABEL] else text


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    text = _most(Counter({f"{width}x{height}": images for (width, height), images in sizes.items()}))
    sides = [side for size in sizes for side in size]
    return text if len(sizes) == 1 else f"{text}; sides from {min(sides):,} to {max(sides):,} pixels"


def _most(counts: Counter[str]) -> str:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if len(ranked) == 1:
        return f"all {ranked[0][0]}"
    rest = ranked[MOST_LISTED:]
    text = ", ".join(f"{name} ({images:,})" for name, images in ranked[:MOST_LISTED])
    return text + (f" and {counted(len(rest), 'other')} ({sum(images for _, images in rest):,})" if rest else "")


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values) + " (0 to 1)"


def as_dict(counts: Counts, decoded: Decoded, manifest: Manifest | None) -> dict[str, Any]:
    """The same for JSON."""
    names = {str(label): name for label, name in _names(counts, manifest).items()}
    labels = {str(label): images for label, images in sorted(counts.labels.items()) if label != NO_LABEL}
    return {
        "shards": counts.shards,
        "shards_with_checksums": counts.checked,
        "bytes": counts.file_bytes,
        "images": counts.images,
        "image_bytes": counts.image_bytes,
        "formats": dict(counts.suffixes.most_common()),
        "labels": labels,
        "unlabelled": counts.labels[NO_LABEL],
        "decoded": decoded.images,
        "sizes": {f"{width}x{height}": images for (width, height), images in decoded.sizes.most_common()},
        "modes": dict(decoded.modes.most_common()),
        "mean": decoded.pixels.mean() if decoded.images else None,
        "std": decoded.pixels.std() if decoded.images else None,
        "cannot_be_decoded": decoded.bad,
        "classes": None if manifest is None and not counts.classes else names,
        "duplicates": None if manifest is None else manifest.duplicates,
        "left_out": None if manifest is None else manifest.bad,
    }


def contact_sheet(drawn: Iterable[Picture], names: Mapping[int, str]) -> NDArray[np.uint8]:
    """The pictures in a grid (H, W, 3), each with the name of its class, its label, or its key if it has none."""
    tiles = [(_tile(picture.image), _caption(picture, names)) for picture in drawn]
    width, height = (max(tile.size[side] for tile, _ in tiles) for side in (0, 1))
    framed = [np.asarray(_framed(tile, caption, width, height)) for tile, caption in tiles]
    return grid(np.stack(framed).transpose(0, 3, 1, 2))


def _caption(picture: Picture, names: Mapping[int, str]) -> str:
    return picture.key if picture.label == NO_LABEL else names.get(picture.label, str(picture.label))


def _tile(image: Image.Image | UserError) -> Image.Image:
    """A picture at the size of the sheet: small ones enlarged by an integer factor, large ones reduced."""
    if isinstance(image, UserError):
        return Image.new("RGB", (SMALLEST, SMALLEST), "red")
    image = to_rgb_or_grey(image, 3)
    longest = max(image.size)
    if longest < SMALLEST:
        return ImageOps.scale(image, -(-SMALLEST // longest), Image.Resampling.NEAREST)
    image.thumbnail((LARGEST, LARGEST))
    return image


def _framed(tile: Image.Image, caption: str, width: int, height: int) -> Image.Image:
    canvas = Image.new("RGB", (width, height + CAPTION), "white")
    canvas.paste(tile, ((width - tile.width) // 2, height - tile.height))
    draw = ImageDraw.Draw(canvas)
    text = "".join(letter if letter.isprintable() else "?" for letter in caption)
    while len(text) > 1 and draw.textlength(text) > width:  # the end of a key is more specific than its beginning
        text = text[1:]
    draw.text((width // 2, height), text, fill="black", anchor="ma")
    return canvas
