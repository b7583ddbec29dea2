"""CPU time per image of our indexed reader against plain webdataset on the same tars.

    python -m benchmarks.reader                               the embedded faces, .jpg and .ppm shards, 64 px
    python -m benchmarks.reader --shards 'DIR/*.tar' --size 96

Each turn is a process of its own that delivers shuffled batches of 256 and adds up the user and system time of itself
and its workers, from the opening of the shards on; starting Python is not counted. Rounds rotate the order; ratios are
medians within rounds. CPU time, because it is what loading takes away from training, and because other programs disturb
it less.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from webdataset.compat import WebDataset

from benchmarks.corpora import face_corpus
from benchmarks.measure import RESULTS, Turn, interleave, save, summary, table
from dcgan_dist.data.corpus import expand, open_corpus
from dcgan_dist.data.reader import IndexedReader, Split

BATCH = 256
SHUFFLE = 1_000  # webdataset's buffer, as in its documentation
REPOSITORY = Path(__file__).parent.parent

Loader = Callable[[list[str], int, int], Iterator[Tensor]]  # shards, size, workers -> batches of BATCH images


# ---- the contenders


def ours(shards: list[str], size: int, workers: int) -> Iterator[Tensor]:
    """The indexed reader; `workers`: decoding threads."""
    reader = IndexedReader(
        open_corpus(shards), shape=(size, 3), seed=0, threads=max(workers, 1), prefetch=4, pinned=False
    )
    for batch in reader.batches(0, Split(batch=BATCH, micro_batches=1, rank=0, world_size=1)):
        yield batch.images


def documented(shards: list[str], _size: int, workers: int) -> Iterator[Tensor]:
    """webdataset as its documentation shows it: PIL images, ToTensor, Normalize, a DataLoader."""
    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])
    yield from _webdataset(shards, workers, decode="pil", prepare=prepare)


def pil(shards: list[str], _size: int, workers: int) -> Iterator[Tensor]:
    """webdataset with PIL, delivering uint8 as ours does."""
    yield from _webdataset(shards, workers, decode="pil", prepare=_to_uint8)


def fast(shards: list[str], size: int, workers: int) -> Iterator[Tensor]:
    """The most that is known to be made of webdataset: simplejpeg for .jpg, the pixels themselves from .ppm."""
    yield from _webdataset(shards, workers, decode=None, prepare=partial(_decode, size=size))


def _webdataset(shards: list[str], workers: int, decode: str | None, prepare: Callable[[Any], Any]) -> Iterator[Tensor]:
    warnings.simplefilter("ignore", ResourceWarning)  # webdataset never closes the files that it reads
    dataset: Any = WebDataset(shards, shardshuffle=100).shuffle(SHUFFLE)
    if decode is not None:
        dataset = dataset.decode(decode)
    dataset = dataset.to_tuple("jpg;jpeg;ppm").map_tuple(prepare)
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True)
    for _ in count():
        for (images,) in loader:
            yield images


def _to_uint8(image: Any) -> np.ndarray:
    return np.array(image, dtype=np.uint8)


def _decode(data: bytes, size: int) -> np.ndarray:
    if data[:2] == b"P6":
        return np.frombuffer(data, dtype=np.uint8, offset=len(data) - size * size * 3).reshape(size, size, 3).copy()
    return simplejpeg.decode_jpeg(data)


LOADERS: dict[str, Loader] = {
    "webdataset, documented": documented,
    "webdataset, PIL, uint8": pil,
    "webdataset, fastest": fast,
    "ours": ours,
}


# ---- one turn, in a process of its own


def deliver(loader: str, shards: list[str], size: int, workers: int, images: int) -> Turn:
    """Takes `images` images from a loader and throws them away."""
    torch.set_num_threads(1)
    wall, cpu = time.perf_counter(), _cpu()
    batches, seen = LOADERS[loader](shards, size, workers), 0
    while seen < images:
        batch = next(batches)
        assert len(batch) == BATCH
        assert batch.numel() == BATCH * size * size * 3
        seen += BATCH
    wall = time.perf_counter() - wall
    batches.close()  # type: ignore[attr-defined]
    return Turn(seen, wall, _cpu() - cpu)


def _cpu() -> float:
    """User and system seconds of this process, all its threads, and its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _turn(loader: str, pattern: str, size: int, workers: int, images: int) -> Turn:
    task = json.dumps({"loader": loader, "pattern": pattern, "size": size, "workers": workers, "images": images})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.reader", "--turn", task],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return Turn(**json.loads(done.stdout.splitlines()[-1]))


# ---- the comparison


def compare(kind: str, pattern: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rounds over all loaders on one set of shards; one row for each."""
    shards = expand([pattern])
    for shard in shards:
        Path(shard).read_bytes()  # from here on all of them read from memory
    print(f"{kind}: {open_corpus(shards).size:,} images in {len(shards)} shards", flush=True)
    contenders = {
        f"{loader}, {f'{max(workers, 1)} threads' if loader == 'ours' else f'{workers} workers'}": partial(
            _turn, loader, pattern, args.size, workers, args.images
        )
        for loader in LOADERS
        for workers in args.workers
    }
    turns = interleave(contenders, args.rounds)
    reference = turns[next(iter(contenders))]
    return [{"shards": kind, "loader": name, "size": args.size} | summary(turns[name], reference) for name in turns]


def show(rows: list[dict[str, Any]]) -> str:
    """The table."""
    best = {
        kind: min(row["cpu_us_per_image"] for row in rows if row["shards"] == kind and row["loader"].startswith("ours"))
        for kind in {row["shards"] for row in rows}
    }
    cells = [
        [
            f"{row['shards']}  {row['loader']}",
            f"{row['cpu_us_per_image']:,.1f}",
            f"{row['images_per_second']:,.0f}",
            f"{row['cpu_ratio']:.1f}",
            f"{row['cpu_us_per_image'] / best[row['shards']]:.1f}",
        ]
        for row in rows
    ]
    return table(["", "CPU us/image", "images/s", "x less than first", "x ours"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", help="pattern of shards to use instead of the embedded faces")
    parser.add_argument("--size", type=int, default=64, help="size of the images, pixels")
    parser.add_argument("--faces", type=int, default=10_000, help="images of the embedded faces")
    parser.add_argument("--images", type=int, default=9_216, help="images of a turn, within one epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 2], help="worker processes; our threads, at least 1"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--name", default="reader", help="the results are OUT/NAME.json")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turn:
        task = json.loads(args.turn)
        turn = deliver(task["loader"], expand([task["pattern"]]), task["size"], task["workers"], task["images"])
        print(json.dumps(vars(turn)))
        return
    if args.shards:
        sets = {"given": args.shards}
    else:
        corpus = face_corpus(args.size, args.faces)
        sets = {kind: str(corpus / kind / "*.tar") for kind in ("jpg", "ppm")}
    rows = [row for kind, pattern in sets.items() for row in compare(kind, pattern, args)]
    print(show(rows))
    print(f"written: {save(args.out, args.name, 'benchmarks.reader', rows)}")


if __name__ == "__main__":
    main()
