"""Chooses the number and kind of decoding workers from the free cores and the measured cost of decoding the images.

Part of the time of an image is spent with the GIL held, where threads wait for each other. Two threads that do twice
the work of one show how large it is. More threads than its inverse are of no use, and processes are worth their start.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dcgan_dist.config import Config
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.images.codecs import decode_into, netpbm_header
from dcgan_dist.data.reading.decode_pool import DecodePlan
from dcgan_dist.data.shards.files import read_together
from dcgan_dist.data.system.workers import available_cores
from dcgan_dist.errors import UserError
from dcgan_dist.text import Say, counted

TRIED = 64  # images
FEW = 4  # cores: threads of so few are never in one another's way
MOST_THREADS, MOST_PROCESSES = 16, 32
LEAST_GIL_SHARE = 0.02  # what a short measurement can tell from nothing


def choose_decode_plan(config: Config, corpus: Corpus, *, local_ranks: int, on_gpu: bool, say: Say) -> DecodePlan:
    """The plan for one rank; the choice is reported with its reason."""
    data, shape = config.data, (config.model.image_size, config.model.channels)
    cores = max(1, available_cores() // local_ranks - (0 if on_gpu else 1))  # one is for networks on the CPU
    count, kind, reason = data.workers, data.decode, ""
    if not count and _all_pixels(corpus, shape):
        count, reason = 1, "pixels at training size are only copied"
    elif kind == "auto" and cores > FEW:
        seconds, gil_share = measure_decoding(_files(corpus), shape)
        useful = round(1 / max(gil_share, LEAST_GIL_SHARE))
        kind = "processes" if (count or cores) > min(useful, MOST_THREADS) else "threads"
        reason = f"{seconds * 1e6:.0f} us an image, {gil_share:.0%} of it with the GIL held"
    kind = "threads" if kind == "auto" else kind
    count = count or min(cores, MOST_THREADS if kind == "threads" else MOST_PROCESSES)
    if not (data.workers and data.decode != "auto"):
        where = f"{counted(available_cores(), 'core')}, {counted(local_ranks, 'rank')} on this node"
        say(f"data: decoding {kind} per rank: {count} ({'; '.join(filter(None, [reason, where]))})")
    return DecodePlan(kind=kind, count=count, prefetch=data.prefetch, pinned=on_gpu)


def _all_pixels(corpus: Corpus, shape: tuple[int, int]) -> bool:
    """Whether the first shard holds nothing but pixels at training size; the others are taken to be like it."""
    index = corpus.index(0)
    length = len(netpbm_header(shape[0], *shape)) + shape[0] ** 2 * shape[1]
    return set(index.suffixes) <= {"ppm", "pgm"} and bool((index.length == length).all())


def _files(corpus: Corpus) -> list[tuple[bytes, str]]:
    """Some image files of the first shard."""
    index, file = corpus.index(0), corpus.opener.open(corpus.shards[0])
    members = range(min(TRIED, len(index)))
    blobs = read_together([(file, int(index.offset[member]), int(index.length[member])) for member in members])
    return list(zip(blobs, [index.suffixes[index.suffix[member]] for member in members], strict=True))


def measure_decoding(files: list[tuple[bytes, str]], shape: tuple[int, int]) -> tuple[float, float]:
    """Decodes files in one thread, then in each of two; takes some 10 ms. `shape`: height (and width), channels.

    Returns the seconds that an image takes, and the part of them with the GIL held, 0 to 1.
    """
    size, channels = shape

    def decode_all() -> None:
        out = np.empty((size, size, channels), dtype=np.uint8)
        for data, suffix in files:
            try:
                decode_into(data, suffix, out, "")
            except UserError:  # it is named when it is trained on
                continue

    def seconds(threads: int) -> float:
        begun = time.perf_counter()
        list(pool.map(lambda _: decode_all(), range(threads)))
        return time.perf_counter() - begun

    decode_all()  # the first time is slower
    with ThreadPoolExecutor(2) as pool:
        alone, together = seconds(1), seconds(2)
    return alone / len(files), min(max(together / alone - 1, 0.0), 1.0)
