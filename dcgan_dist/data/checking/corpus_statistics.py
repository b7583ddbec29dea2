"""Statistics of a corpus: exact counts from the indexes of all shards, sizes and pixels from some decoded images."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from dcgan_dist import keyed
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.images.codecs import open_image, to_rgb_or_grey
from dcgan_dist.data.images.statistics import PixelCounts
from dcgan_dist.data.shards.opener import Shard
from dcgan_dist.data.system.workers import available_cores
from dcgan_dist.errors import UserError, os_error_as_user_error

READ_THREADS = 16
AT_ONCE = 16  # decoded images in memory, each of up to 768 MiB


@dataclass
class Counts:
    """Counts of all shards."""

    shards: int = 0
    checked: int = 0  # shards with checksums; the others were made by other programs
    file_bytes: int = 0
    images: int = 0
    image_bytes: int = 0  # read in an epoch
    suffixes: Counter[str] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)  # images of each label; -1: without
    classes: dict[int, str] = field(default_factory=dict)  # names, where labels are words in tars of other programs


@dataclass
class Decoded:
    """Statistics of the decoded images."""

    images: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # by width and height
    modes: Counter[str] = field(default_factory=Counter)  # by Pillow's mode: RGB, L (grey), RGBA, P (palette), CMYK ..
    bad: list[str] = field(default_factory=list)  # one line for each image that cannot be decoded
    pixels: PixelCounts = field(default_factory=lambda: PixelCounts(3))
    """As training sees them, transparency over white; of 1 channel if all images are grey."""


@dataclass(frozen=True)
class Picture:
    """One image of a corpus, decoded."""

    key: str
    label: int
    image: Image.Image | UserError


def count(corpus: Corpus) -> Counts:
    """The counts in all indexes. Raises UserError for a damaged one."""
    counts = Counts(shards=len(corpus.shards), classes=corpus.classes)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for index in pool.map(corpus.read_index, range(len(corpus.shards))):
            counts.checked += index.checked
            counts.images += len(index)
            counts.image_bytes += int(index.length.sum())
            for number, images in enumerate(np.bincount(index.suffix, minlength=len(index.suffixes)).tolist()):
                counts.suffixes[index.suffixes[number]] += images
            labels, images = np.unique(index.label, return_counts=True)
            counts.labels.update(dict(zip(labels.tolist(), images.tolist(), strict=True)))
    counts.file_bytes = sum(map(_file_bytes, corpus.shards))
    return counts


def _file_bytes(shard: Shard) -> int:
    source = shard.source or Path(shard.name)
    return source.stat().st_size if isinstance(source, Path) else source.size


def spread(total: int, wanted: int, seed: int) -> list[int]:
    """`wanted` increasing numbers below `total`: one from each of as many equal parts; all if `wanted` >= `total`."""
    if wanted >= total:
        return list(range(total))
    edges = [total * part // wanted for part in range(wanted + 1)]
    words = keyed.words(keyed.key(seed, "spread"), 0, wanted)
    return [first + int(word) % (end - first) for first, end, word in zip(edges, edges[1:], words, strict=False)]


def pictures(corpus: Corpus, samples: Sequence[int]) -> Iterator[Picture]:
    """Decodes some images of a corpus in several threads, in their order."""
    with ThreadPoolExecutor(min(READ_THREADS, available_cores() + 1)) as pool:
        for first in range(0, len(samples), AT_ONCE):
            yield from pool.map(lambda sample: _picture(corpus, sample), samples[first : first + AT_ONCE])


def _picture(corpus: Corpus, sample: int) -> Picture:
    number, member = corpus.locate(sample)
    index = corpus.index(number)
    where, key, label = index.describe(member), index.keys[member], int(index.label[member])
    try:
        with os_error_as_user_error(where, "cannot be read"):
            file = corpus.opener.open(corpus.shards[number])
            image = open_image(file.read(int(index.offset[member]), int(index.length[member])), where)
    except UserError as error:
        image = error
    return Picture(key, label, image)


def decode(corpus: Corpus, samples: Sequence[int], report: Callable[[int], object]) -> Decoded:
    """Decodes images and counts their sizes and pixels; `report` gets the number of images done."""
    decoded = Decoded()
    grey = PixelCounts(1)
    for done, picture in enumerate(pictures(corpus, samples), start=1):
        report(done)
        if isinstance(picture.image, UserError):
            decoded.bad.append(str(picture.image))
            continue
        decoded.images += 1
        decoded.sizes[picture.image.size] += 1
        decoded.modes[picture.image.mode] += 1
        if picture.image.mode == "L":
            grey.add(picture.image)
        else:
            decoded.pixels.add(to_rgb_or_grey(picture.image, 3))
    if set(decoded.modes) == {"L"}:
        decoded.pixels = grey
    else:
        decoded.pixels.merge(PixelCounts(3, np.repeat(grey.counts, 3, axis=0)))
    return decoded
