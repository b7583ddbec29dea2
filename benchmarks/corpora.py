"""The same images three ways: a folder of JPEG files, shards of those very files, and `.ppm` shards of their pixels."""

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from dcgan_dist.data import faces
from dcgan_dist.data.codecs import decode_into, encode
from dcgan_dist.data.index import ShardWriter, read_index
from dcgan_dist.data.storage import cache_folder

SHARDS = 8  # enough for every loading worker to have some


def face_corpus(size: int, count: int) -> Path:
    """The embedded faces as `folder/all/*.jpg`, `jpg/*.tar` and `ppm/*.tar`; made on first use, then kept."""
    corpus = cache_folder() / "benchmarks" / f"faces-v{faces.VERSION}-{size}px-n{count}"
    if not corpus.exists():
        print(f"making {corpus} ...", flush=True)
        temporary = corpus.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        for name in ("folder/all", "jpg", "ppm"):
            (temporary / name).mkdir(parents=True)
        drawn = faces.ensure(temporary / "drawn", size=size, channels=3, count=count, seed=0)
        images = _read(drawn, np.empty((size, size, 3), dtype=np.uint8))
        for shard in range(SHARDS):
            part = islice(images, count * (shard + 1) // SHARDS - count * shard // SHARDS)
            _write_shard(temporary, f"{shard:05d}.tar", part)
        shutil.rmtree(temporary / "drawn")
        temporary.rename(corpus)
    return corpus


def _read(shards: list[Path], pixels: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Key and pixels of every image; each takes the place of the one before in `pixels`."""
    for path in shards:
        index, data = read_index(path), path.read_bytes()
        assert index is not None
        for number, key in enumerate(index.keys):
            start, length = index.offset[number], index.length[number]
            suffix = index.suffixes[index.suffix[number]]
            decode_into(data[start : start + length], suffix, pixels, index.describe(number))
            yield key, pixels


def _write_shard(corpus: Path, name: str, images: Iterator[tuple[str, np.ndarray]]) -> None:
    """JPEG files in a shard and in the folder, and a shard of what they decode to."""
    with ShardWriter(corpus / "jpg" / name) as jpg, ShardWriter(corpus / "ppm" / name) as ppm:
        for key, pixels in images:
            _, encoded = encode(Image.fromarray(pixels), "jpg")
            jpg.add(key, "jpg", encoded)
            (corpus / "folder" / "all" / f"{key}.jpg").write_bytes(encoded)
            decoded = np.empty_like(pixels)
            decode_into(encoded, "jpg", decoded, key)
            ppm.add(key, *encode(Image.fromarray(decoded), "ppm"))
