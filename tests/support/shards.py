"""Pictures in shards, ours and others', and what the loader and plain webdataset read of them."""

import io
import tarfile
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from webdataset.compat import WebDataset

from dcgan_dist.data.corpus import Corpus, expand_shards, open_shards
from dcgan_dist.data.shards.index import ShardWriter
from dcgan_dist.data.shards.opener import Opener

FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "ppm": "PPM", "pgm": "PPM"}


def picture(seed, size=32, channels=3):
    """Smooth colours that are different for every seed, as a PIL image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, channels), dtype=np.uint8)
    image = Image.fromarray(coarse if channels == 3 else coarse[..., 0])
    return image.resize((size, size), Image.Resampling.BICUBIC)


def encoded(seed, suffix="ppm", size=32):
    """The file of a picture."""
    file = io.BytesIO()
    picture(seed, size, channels=1 if suffix == "pgm" else 3).save(file, FORMATS[suffix])
    return file.getvalue()


def write_ours(path, count, suffix="ppm", first=0, size=32, label=None):
    """A shard of our own format with pictures `first`, `first` + 1, ..; `label` makes a label of such a number."""
    with ShardWriter(path) as shard:
        for number in range(first, first + count):
            shard.add(f"{number:05}", suffix, encoded(number, suffix, size), label(number) if label else None)
    return path


def write_tar(path, members, tar_format=tarfile.PAX_FORMAT):
    """A tar of other people's, of (name, bytes) one after the other."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def open_corpus(patterns, opener=None):
    """The corpus of the shards that match."""
    opener = opener or Opener()
    return Corpus(open_shards(expand_shards(patterns, opener.remote), opener), opener)


def key_of(corpus, sample):
    """'shard.tar/KEY' of an image of a corpus."""
    shard, member = corpus.locate(sample)
    return f"{Path(corpus.shards[shard].name).name}/{corpus.index(shard).keys[member]}"


def by_webdataset(*paths: Path) -> list[dict]:
    """The samples of some shards, one after the other, as plain webdataset gives them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files to the garbage collector
        return list(WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False))


def by_index(index):
    """Key, suffix, bytes and label of every sample, cut out of the tar as the index says."""
    content = Path(index.name).read_bytes()
    return [
        (key, index.suffixes[suffix], content[offset : offset + length], label)
        for key, suffix, offset, length, label in zip(
            index.keys,
            index.suffix.tolist(),
            index.offset.tolist(),
            index.length.tolist(),
            index.label.tolist(),
            strict=True,
        )
    ]
