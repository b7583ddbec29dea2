"""What a finished shard holds, kept in a small file beside it until all shards are published.

It is written after its shard: whoever finds it knows that the shard is whole, and need not read the shard's images
again to describe the corpus. Numbers of images are positions in the source.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from dcgan_dist.data.images.statistics import PixelCounts
from dcgan_dist.data.shards.index import read_index
from dcgan_dist.data.system.storage import write_atomically
from dcgan_dist.errors import UserError

VERSION = 2
NAMES = "surrogatepass"  # file names that are not UTF-8 survive it


@dataclass(kw_only=True)
class Receipt:
    """One shard and the images in it."""

    bytes: int = 0
    """Size of the shard's file."""
    checksum: str = ""
    """xxh3-128 of the shard's file, hexadecimal."""
    fingerprint: int = 0
    """That of the shard's index."""
    samples: int = 0
    """Images in it."""
    several: int = 0
    """Images made of files that hold several pictures, of which the first is used."""
    labels: Counter[int] = field(default_factory=Counter)
    """Images of each label; those without one do not count."""
    stored_sizes: Counter[str] = field(default_factory=Counter)
    """Stored images of each 'WIDTHxHEIGHT'."""
    source_sizes: Counter[str] = field(default_factory=Counter)
    """The same for the images that they were made of."""
    bad: list[tuple[int, str]] = field(default_factory=list)
    """Number and message of every image that could not be read and was left out."""
    pixels: PixelCounts
    """Levels of the stored images."""
    numbers: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Number of each sample, in their order; empty when nobody looks for duplicates."""
    digests: NDArray[np.uint64] = field(default_factory=lambda: np.empty((0, 2), dtype=np.uint64))
    """(samples, 2): xxh3-128 of the original file of each; empty like `numbers`."""
    names: list[str] = field(default_factory=list)
    """Where each original file lies; empty like `numbers`."""


def receipt_path(shard: Path) -> Path:
    """The file beside a shard."""
    return shard.with_suffix(".receipt")


def write_receipt(shard: Path, receipt: Receipt) -> None:
    """Writes the receipt of a shard that is on disk."""
    plain = ("bytes", "checksum", "fingerprint", "samples", "several", "labels", "stored_sizes", "source_sizes", "bad")
    about = {"version": VERSION} | {name: getattr(receipt, name) for name in plain}
    arrays = {
        "pixels": receipt.pixels.counts,
        "numbers": receipt.numbers,
        "digests": receipt.digests,
        "names": np.frombuffer("\n".join(receipt.names).encode(errors=NAMES), dtype=np.uint8),
    }
    write_atomically(receipt_path(shard), safetensors.numpy.save(arrays, metadata={"receipt": json.dumps(about)}))


def read_receipt(path: Path) -> Receipt | None:
    """The inverse of write_receipt, by the receipt's own path; None when there is none or it is no receipt."""
    try:
        blob = path.read_bytes()
        arrays = safetensors.numpy.load(blob)
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        about = json.loads(header["__metadata__"]["receipt"])
        if about.pop("version") != VERSION:
            return None
        text = arrays["names"].tobytes().decode(errors=NAMES)
        return Receipt(
            **about
            | {name: Counter(about[name]) for name in ("stored_sizes", "source_sizes")}
            | {"labels": Counter({int(label): count for label, count in about["labels"].items()})}
            | {"bad": [(number, message) for number, message in about["bad"]]},
            pixels=PixelCounts(len(arrays["pixels"]), arrays["pixels"]),
            numbers=arrays["numbers"],
            digests=arrays["digests"],
            names=text.split("\n") if text else [],
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def matches(receipt: Receipt, shard: Path) -> bool:
    """Whether the shard is the one that the receipt describes, by its size and its index."""
    try:
        size, index = shard.stat().st_size, read_index(shard)
    except (OSError, UserError):
        return False
    wanted = (receipt.bytes, receipt.samples, receipt.fingerprint)
    return index is not None and (size, len(index), index.fingerprint) == wanted
