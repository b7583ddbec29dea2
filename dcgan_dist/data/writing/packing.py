"""The options of packing: how images are fitted, stored and divided among shards."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from PIL import ImageColor

from dcgan_dist.config import OptionGroup, Range
from dcgan_dist.config.groups import Channels, Seed, Workers
from dcgan_dist.data.images.codecs import Colour, Filter, Resize, StoreFormat
from dcgan_dist.errors import UsageError

AUTO_PPM = 48 * 1024  # bytes of pixels up to which --store auto takes ppm
LOSSY = ("jpg", "webp")
LARGEST = 8_192  # pixels a side; with many more, an image is taken for a decompression bomb wherever it is read
HOW_NOT_WHAT = ("skip_bad", "overwrite", "processes")  # options that change no byte of a finished shard


@dataclass(frozen=True, kw_only=True)
class Packing(OptionGroup):
    """How images are fitted, stored and packed."""

    size: Annotated[int, Range(least=1, most=LARGEST)] | None = None
    """Height and width of the stored images, pixels. Needed, except with --store keep."""
    resize: Resize = "crop"
    """crop: the central square, scaled. pad: the complete image on the background. stretch: proportions change."""
    filter: Filter = "lanczos"
    """How pixels are averaged in scaling."""
    channels: Channels = 3
    """Colour channels of the stored images: 3 (RGB) or 1 (grey)."""
    background: str = "#ffffff"
    """Colour behind transparent images and around padded ones: '#rrggbb' or a CSS name."""
    store: Literal["jpg", "png", "webp", "ppm", "keep", "auto"] = "jpg"
    """jpg: small. png: exact. webp: lossy too, smaller than jpg and slower to read. ppm: exact and fastest to read, 3
    bytes a pixel. keep: the files as they are. auto: ppm for images of at most 48 KiB of pixels (128 x 128 in colour),
    else jpg."""
    quality: Annotated[int, Range(least=1, most=100)] = 95
    """Quality of jpg and webp, 1 to 100; from 90 on the colours of jpg keep their full resolution (4:4:4)."""
    shard_size: Annotated[int, Range(least=1, most=10**7)] = 2_000
    """Images in a shard."""
    shuffle: bool = True
    """Shuffle the images once, over all shards, so that training need not shuffle folders that are sorted by class."""
    seed: Seed = 0
    """Seed of the shuffle."""
    duplicates: Literal["report", "drop", "keep"] = "report"
    """Files that are equal to the byte. report: pack them all and list them in OUT/duplicates.txt, at no cost. drop:
    pack the first of them only; reads every file once more, beforehand. keep: do not look."""
    skip_bad: bool = False
    """Leave unreadable images out and list them in OUT/bad.txt, instead of stopping at the first."""
    overwrite: bool = False
    """Replace the shards that OUT holds, by its manifest.json, after the new ones are complete; other files stay."""
    processes: Workers = 0
    """Processes that pack, each one shard at a time; 0: as many as CPU cores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is None and self.store != "keep":
            raise UsageError("--size is missing: height and width of the images in pixels, as in --size 64")
        if self.size is not None and self.store == "keep":
            raise UsageError("--size with --store keep: kept files keep their size; give only one of the two")
        self.colour()

    def colour(self) -> Colour:
        """The background as red, green and blue, 0 to 255."""
        try:
            return ImageColor.getrgb(self.background)[:3]
        except ValueError as error:
            raise UsageError(f"--background {self.background}: no colour; write it as '#rrggbb'") from error

    @property
    def encoding(self) -> StoreFormat | None:
        """How images are encoded, with auto decided; None: they are kept as they are."""
        if self.store == "keep":
            return None
        if self.store == "auto":
            return "ppm" if self._pixel_bytes <= AUTO_PPM else "jpg"
        return self.store

    @property
    def _pixel_bytes(self) -> int:
        return (self.size or 0) ** 2 * self.channels

    def decisions(self) -> list[str]:
        """What was chosen automatically, with the reason, and what is not used, a line each."""
        idle = ["quality"] * (self.encoding not in LOSSY) + ["resize", "filter"] * (self.store == "keep")
        idle = [f"--{name}" for name in idle if getattr(self, name) != getattr(Packing, name)]
        lines = [f"not used with --store {self.store}: {', '.join(idle)}"] if idle else []
        if self.store == "auto":
            kib, most = self._pixel_bytes / 1024, AUTO_PPM // 1024
            reason = f"(at most {most}) are read faster than decoded"
            reason = reason if self.encoding == "ppm" else f"(more than {most}) take much disk and bandwidth"
            lines.append(f"store: {self.encoding}, for {kib:,.1f} KiB of pixels an image {reason}")
        return lines

    def content(self) -> dict[str, Any]:
        """The options that decide what the shards hold, with auto decided."""
        names = (name for name in Packing.__dataclass_fields__ if name not in HOW_NOT_WHAT)
        return {name: getattr(self, name) for name in names} | {"store": self.encoding or "keep"}


class Part(NamedTuple):
    """A share of the shards, for one of several computers: every `parts`-th one, from the `number`-th on."""

    number: int  # 1 .. parts
    parts: int


def parse_part(text: str) -> Part:
    """The part that 'K/N' means. Raises UsageError for anything else."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"--part {text}: write K/N with K from 1 to N, as in --part 2/8")
    return Part(int(number), int(count))
