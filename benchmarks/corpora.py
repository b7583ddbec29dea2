"""The same images in every form: JPEG files in a folder, shards of those very files, shards and an array of pixels."""

import shutil
import tarfile
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image

from dcgan_dist.data.faces import dataset as faces
from dcgan_dist.data.images.codecs import decode_into, encode, fit
from dcgan_dist.data.shards.index import ShardWriter
from dcgan_dist.data.system.storage import cache_folder

FORMAT = 2  # of a corpus, part of its name
SHARDS = 8  # enough for every loading worker to have some
LEAST_PART = 0.7  # of a photograph's height and width that a picture shows

Named = tuple[str, Image.Image]


def face_corpus(size: int, count: int) -> Path:
    """The embedded faces, as make_corpus makes them."""
    folder = cache_folder() / "benchmarks" / f"faces-v{faces.FACES_VERSION}-{size}px-n{count}"
    drawn = folder.with_suffix(".drawn")
    corpus = make_corpus(folder, size, count, _faces(drawn, size, count))
    shutil.rmtree(drawn, ignore_errors=True)
    return corpus


def photograph_corpus(photographs: Path, size: int, count: int) -> Path:
    """Square parts of the photographs in a folder and its sub-folders, at random places, as make_corpus makes them."""
    files = sorted(path for path in photographs.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise SystemExit(f"{photographs}: no .jpg or .png files in it")
    folder = cache_folder() / "benchmarks" / f"photographs-{photographs.resolve().name}-{size}px-n{count}"
    return make_corpus(folder, size, count, _parts(files, size))


def make_corpus(folder: Path, size: int, count: int, images: Iterator[Named]) -> Path:
    """`folder/all/*.jpg`, `jpg/*.tar`, `ppm/*.tar` and `pixels.npy` (n, H, W, 3); made on first use, then kept."""
    corpus = folder.with_name(f"{folder.name}-f{FORMAT}")
    if not corpus.exists():
        print(f"making {corpus} ...", flush=True)
        temporary = corpus.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        for name in ("folder/all", "jpg", "ppm"):
            (temporary / name).mkdir(parents=True)
        shape = (count, size, size, 3)
        pixels = np.lib.format.open_memmap(temporary / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)
        for shard, rows in enumerate(np.array_split(pixels, SHARDS)):
            _write_shard(temporary, f"{shard:05d}.tar", islice(images, len(rows)), rows)
        pixels.flush()
        temporary.rename(corpus)
    return corpus


def many_shards(shards: int, images: int, size: int) -> Path:
    """A folder of small indexed shards of pixels."""
    folder = cache_folder() / "benchmarks" / f"shards-{shards}x{images}-{size}px-f{FORMAT}"
    if not folder.exists():
        print(f"making {folder} ...", flush=True)
        temporary = folder.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        noise = np.random.default_rng(0).integers(0, 256, (images, size, size, 3), dtype=np.uint8)
        encoded = [encode(Image.fromarray(pixels), "ppm") for pixels in noise]
        for number in range(shards):
            with ShardWriter(temporary / f"{number:05d}.tar") as shard:
                for row, image in enumerate(encoded):
                    shard.add(f"{number * images + row:08d}", *image)
        temporary.rename(folder)
    return folder


def _faces(drawn: Path, size: int, count: int) -> Iterator[Named]:
    for path in faces.ensure(drawn, size=size, channels=3, count=count, seed=0):
        with tarfile.open(path) as tar:
            for member in tar:
                name, file = Path(member.name), tar.extractfile(member)
                if name.suffix and file is not None:
                    yield name.stem, Image.open(file).convert("RGB")


def _parts(files: list[Path], size: int) -> Iterator[Named]:
    random = np.random.default_rng(0)
    for number, path in enumerate(cycle(files)):
        with Image.open(path) as photograph:
            image = photograph.convert("RGB")
        side = round(min(image.size) * random.uniform(LEAST_PART, 1))
        left, top = (round((length - side) * random.uniform()) for length in image.size)
        yield f"{number:08d}", fit(image.crop((left, top, left + side, top + side)), size)


def _write_shard(corpus: Path, name: str, images: Iterator[Named], pixels: np.ndarray) -> None:
    """JPEG files in a shard and in the folder, and what they decode to in a shard and in `pixels`."""
    with ShardWriter(corpus / "jpg" / name) as jpg, ShardWriter(corpus / "ppm" / name) as ppm:
        for row, (key, image) in zip(pixels, images, strict=True):
            _, encoded = encode(image, "jpg")
            jpg.add(key, "jpg", encoded)
            (corpus / "folder" / "all" / f"{key}.jpg").write_bytes(encoded)
            decode_into(encoded, "jpg", row, key)
            ppm.add(key, *encode(Image.fromarray(row), "ppm"))
