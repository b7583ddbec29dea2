"""What a job reads over several attempts, each killed, each on other ranks with another batch: all of it, and once."""

import hashlib
import json
import os
import random
import signal
import threading
import time
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
import torch.distributed as dist
from support.ranks import run_ranks
from support.recording import begin, options
from support.shards import open_corpus, picture

from dcgan_dist import keyed
from dcgan_dist.data.order import Order, Split
from dcgan_dist.data.reading.decode_pool import DecodePlan
from dcgan_dist.data.reading.fetch import Fetcher
from dcgan_dist.data.reading.reader import IndexedReader
from dcgan_dist.data.system.storage import write_atomically
from dcgan_dist.train import train

pytestmark = [pytest.mark.dist, pytest.mark.slow]

SEED, SIZE = 3, 32
SHARDS = (23, 17)  # see conftest.py


class Log:
    """What one rank took in one attempt, a line for each batch, whole or not at all."""

    def __init__(self, folder, rank):
        self._file = os.open(folder / f"{rank}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, split, position, batch):
        """Position, number, mirroring, and digest of the pixels of every image."""
        count = split.per_rank_micro
        positions = [start + image for start in split.slices(position) for image in range(count)]
        digests = [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in batch.rows.pixels]
        rows = list(zip(positions, batch.rows.samples.tolist(), batch.flips.tolist(), digests, strict=True))
        os.write(self._file, json.dumps(rows).encode() + b"\n")


def taken(folder, batches):
    """The rows of the first batches of every rank of an attempt, and all others."""
    kept, lost = [], []
    for file in folder.iterdir():
        lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        for number, line in enumerate(lines):
            (kept if number < batches else lost).extend(tuple(row) for row in json.loads(line))
    return sorted(kept), lost


def undisturbed(count):
    """The rows of positions 0 .. count in one process; the pixels from the pictures that the shards were made of."""
    digests = [hashlib.sha256(np.asarray(picture(number)).tobytes()).hexdigest() for number in range(sum(SHARDS))]
    samples = Order(SHARDS, SEED).samples(0, count).tolist()
    flips = (keyed.words(keyed.key(SEED, "flip"), 0, count) % 2 == 1).tolist()
    return [(position, *row, digests[row[0]]) for position, row in enumerate(zip(samples, flips, strict=True))]


def assert_nothing_lost_or_repeated(folders, batches, starts):
    """`batches`: the global batch of every attempt; `starts`: where each attempt began, and the last one ended."""
    attempts = []
    for folder, batch, (start, end) in zip(folders, batches, pairwise(starts), strict=True):
        assert start < end
        assert (end - start) % batch == 0
        attempts.append((start, end, *taken(folder, (end - start) // batch)))
    wanted = undisturbed(1 + max(row[0] for _, _, kept, lost in attempts for row in kept + lost))
    for start, end, kept, lost in attempts:
        assert kept == wanted[start:end]
        # what came after the checkpoint was in vain, and is done again
        assert lost == [wanted[row[0]] for row in lost]
        assert all(row[0] >= end for row in lost)


def kill_after(changed, delay):
    """SIGKILL to this process, `delay` seconds after `changed` became true."""

    def kill():
        while not changed():
            time.sleep(0.001)
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()


def read(shards, root, attempt, batch, micro_batches, victims, delay, images):
    """Reads in step with the other ranks, and notes the position after every third batch."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1:
        dist.init_process_group("gloo")
    checkpoint = root / "position"
    start = int(checkpoint.read_text())
    if rank in victims:
        kill_after(lambda: int(checkpoint.read_text()) > start, delay)
    split = Split(batch=batch, micro_batches=micro_batches, rank=rank, world_size=world_size)
    fetcher = Fetcher(open_corpus([shards]), (SIZE, 3))
    reader = IndexedReader(fetcher, seed=SEED, plan=DecodePlan(count=2, prefetch=3))
    log, stream = Log(root / f"attempt{attempt}", rank), reader.batches(start, split)
    with suppress(RuntimeError):  # of a rank whose peer was killed
        for position in range(start, start + images, batch):
            log.write(split, position, next(stream))
            if (position - start) // batch % 3 == 2:
                if world_size > 1:
                    dist.barrier()
                if rank == 0:
                    write_atomically(checkpoint, str(position + batch).encode())
    stream.close()


# ranks, global batch, micro-batches, and who is killed; one after the other
READERS = [(2, 24, 1, [1]), (3, 36, 2, [0]), (1, 10, 1, [0]), (4, 40, 2, [0, 1, 2, 3]), (2, 14, 1, [0, 1])]
WITHOUT_END = 10**9


@pytest.mark.parametrize("seed", [1, 2])
def test_readers_killed_at_random_moments(seed, shards, tmp_path):
    chance, checkpoint = random.Random(seed), tmp_path / "position"
    checkpoint.write_text("0")
    folders, batches, starts = [], [], [0]
    for attempt, (world_size, batch, micro_batches, victims) in enumerate([*READERS, (3, 30, 1, [])]):
        batches.append(batch)
        folders.append(tmp_path / f"attempt{attempt}")
        folders[-1].mkdir()
        given = shards, tmp_path, attempt, batch, micro_batches, victims, chance.uniform(0, 0.1)
        if victims:
            with pytest.raises(AssertionError, match="died without a word"):
                run_ranks(world_size, read, *given, WITHOUT_END)
        else:
            run_ranks(world_size, read, *given, 9 * batch)
        starts.append(int(checkpoint.read_text()))
    assert_nothing_lost_or_repeated(folders, batches, starts)


def train_and_log(given, world_size, folder, victims, run_dir, delay):
    """Trains, and logs every batch when it is taken; SIGKILL comes `delay` seconds after a new checkpoint."""
    session = begin(given, world_size)
    batches, split, rank = session.reader.batches, session.split, session.world.rank
    start, log = session.state.images, Log(folder, rank)

    def logged(position, split):
        assert position == start
        for batch in batches(position, split):
            log.write(split, position, batch)
            position += split.batch
            yield batch

    session.reader.batches = logged
    if rank in victims:
        kill_after(lambda: newest(run_dir) > start, delay)
    assert train(session)
    assert split.world_size == world_size


def newest(run_dir):
    """What the next attempt goes on from; an attempt that is killed may not have come to write `latest`."""
    return max((int(path.name) for path in (run_dir / "checkpoints").glob("0*")), default=0)


def test_a_training_killed_and_gone_on_with_other_ranks_and_another_batch(shards, tmp_path):
    chance, run_dir = random.Random(5), tmp_path / "run"
    folders, batches, starts = [], [], [0]
    for attempt, (world_size, batch, victims) in enumerate([(2, 12, [0, 1]), (3, 18, [1]), (1, 36, [])]):
        batches.append(batch)
        folders.append(tmp_path / f"attempt{attempt}")
        folders[-1].mkdir()
        end = 36_000 if victims else newest(run_dir) + 108
        changes = f"--seed {SEED} --images {end} --checkpoint.every 36 --resume.allow_changes batch_size"
        given = options(shards, run_dir, changes, batch=batch)
        acted = (given, world_size, folders[-1], victims, run_dir, chance.uniform(0, 0.4))
        if victims:
            # under load a rank that is left may tell first
            with pytest.raises(AssertionError, match=r"died without a word|by peer"):
                run_ranks(world_size, train_and_log, *acted)
        else:
            run_ranks(world_size, train_and_log, *acted)
        starts.append(newest(run_dir))
    assert_nothing_lost_or_repeated(folders, batches, starts)
