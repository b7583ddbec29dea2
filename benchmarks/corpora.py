"""The same images three ways: a folder of JPEG files, shards of those very files, and `.ppm` shards of their pixels."""

import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from dcgan_dist.data import faces
from dcgan_dist.data.codecs import decode_into, encode
from dcgan_dist.data.index import ShardIndex, ShardWriter, read_index
from dcgan_dist.data.storage import cache_folder


def face_corpus(size: int, count: int) -> Path:
    """The embedded faces as `folder/all/*.jpg`, `jpg/*.tar` and `ppm/*.tar`; made on first use, then kept."""
    corpus = cache_folder() / "benchmarks" / f"faces-v{faces.VERSION}-{size}px-n{count}"
    if not corpus.exists():
        print(f"making {corpus} ...", flush=True)
        temporary = corpus.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        for name in ("folder/all", "jpg", "ppm"):
            (temporary / name).mkdir(parents=True)
        for drawn in faces.ensure(temporary / "drawn", size=size, channels=3, count=count, seed=0):
            index = read_index(drawn)
            assert index is not None
            _convert(index, temporary, size)
        shutil.rmtree(temporary / "drawn")
        temporary.rename(corpus)
    return corpus


def _convert(drawn: ShardIndex, corpus: Path, size: int) -> None:
    """One shard of the embedded set to JPEG files in a shard and in a folder, and to a shard of what they decode to."""
    data = drawn.path.read_bytes()
    pixels = np.empty((size, size, 3), dtype=np.uint8)
    with ExitStack() as stack:
        jpg, ppm = (stack.enter_context(ShardWriter(corpus / kind / drawn.path.name)) for kind in ("jpg", "ppm"))
        for number, key in enumerate(drawn.keys):
            where = drawn.describe(number)
            start, length = drawn.offset[number], drawn.length[number]
            decode_into(data[start : start + length], drawn.suffixes[drawn.suffix[number]], pixels, where)
            _, encoded = encode(Image.fromarray(pixels), "jpg")
            jpg.add(key, "jpg", encoded)
            (corpus / "folder" / "all" / f"{key}.jpg").write_bytes(encoded)
            decode_into(encoded, "jpg", pixels, where)
            ppm.add(key, *encode(Image.fromarray(pixels), "ppm"))
