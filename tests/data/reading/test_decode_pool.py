"""Processes around a ring of shared memory: when one dies it is said, and nothing is left when the trainer does."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.disk import no_file_larger_than
from support.processes import decoders as workers
from support.shards import open_corpus, write_ours
from support.waiting import LIMIT, until

from dcgan_dist.data.order import Split
from dcgan_dist.data.reading.decode_pool import DecodePlan, shares
from dcgan_dist.data.reading.fetch import Fetcher
from dcgan_dist.data.reading.reader import IndexedReader
from dcgan_dist.errors import UserError

ALONE = Split(batch=8, micro_batches=1, rank=0, world_size=1)


def make_batches(path, kind: Any = "processes", count=2):
    corpus = open_corpus([str(path)])
    plan = DecodePlan(kind=kind, count=count, prefetch=1)
    return IndexedReader(Fetcher(corpus, (32, 3)), seed=0, plan=plan).batches(0, ALONE)


@pytest.mark.parametrize(("count", "parts"), [(1, 1), (8, 3), (7, 7), (3, 16), (100, 8)])
def test_rows_are_shared_out_once_each(count, parts):
    found = shares(count, parts)
    assert len(found) == min(count, parts)
    lengths = [rows.stop - rows.start for rows in found]
    assert max(lengths) - min(lengths) <= 1
    assert list(itertools.chain.from_iterable(range(rows.start, rows.stop) for rows in found)) == list(range(count))


def test_a_worker_that_is_killed_ends_the_reading_in_one_line(tmp_path):
    batches = make_batches(write_ours(tmp_path / "shard.tar", 30, "jpg"))
    next(batches)
    victim = workers()[0]
    victim.kill()
    problem = r"^a decoding process ended, perhaps out of memory; try fewer --data\.workers$"
    with pytest.raises(UserError, match=problem):
        list(batches)
    assert workers() == []


def test_memory_that_the_system_refuses_is_one_line(tmp_path):
    """As on a full /dev/shm, although the ring needs none."""
    batches = make_batches(write_ours(tmp_path / "shard.tar", 30, "jpg"))
    problem = (
        r"^2 decoding processes with 0 MB of shared memory could not start \(File too large\); try --data\.decode "
    )
    with no_file_larger_than(4096), pytest.raises(UserError, match=problem):
        next(batches)
    assert workers() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_to_all_processes_of_a_job_is_the_trainers_to_handle(tmp_path, number):
    batches = make_batches(write_ours(tmp_path / "shard.tar", 30, "jpg"))
    next(batches)
    for worker in workers():
        worker.send_signal(number)
    for _ in range(10):
        next(batches)
    batches.close()
    assert workers() == []


TRAINER = """
import itertools, sys, time
sys.path.insert(0, sys.argv[2])
from data.reading.test_decode_pool import make_batches
batches = make_batches(sys.argv[1])
next(batches)
print("reading", flush=True)
time.sleep(600)
"""


def test_nothing_is_left_of_a_reader_whose_process_is_killed(tmp_path):
    """Neither a process nor a name in shared memory."""
    shard = write_ours(tmp_path / "shard.tar", 30, "jpg")
    shared = Path("/dev/shm")
    before = set(shared.iterdir())
    tests = Path(__file__).parents[2]
    command = [sys.executable, "-c", TRAINER, str(shard), str(tests)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(tests)}) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == b"reading\n"
        decoding = workers(trainer.pid)
        assert len(decoding) == 2
        trainer.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(decoding, timeout=LIMIT)
    assert alive == []
    new = set(shared.iterdir()) - before
    until(lambda: not any(path.exists() for path in new))  # those of other programs go


def own_memory(pid):
    """Bytes that a process has for itself, without the libraries that it may share with others."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_memory_is_flat_over_50_epochs(tmp_path, kind):
    """Of the reader's process; those that decode are the same over all epochs, and counted by their memory too."""
    for suffix in ("ppm", "jpg", "png"):
        write_ours(tmp_path / f"{suffix}.tar", 64, suffix)
    batches = make_batches(tmp_path / "*.tar", kind)
    epoch = 3 * 64 // ALONE.batch

    def read(epochs):
        for _ in range(epochs * epoch):
            next(batches)
        decoding = [own_memory(child.pid) for child in workers()]
        return own_memory("self"), psutil.Process().num_fds(), sum(decoding)

    begun = read(10)
    ended = read(50)
    assert ended[1] == begun[1]
    # an image of 3 kB that was kept from every read would be 28 MB
    assert ended[0] - begun[0] < 3e6
    assert ended[2] - begun[2] < 3e6
    batches.close()


class Counting(Fetcher):
    """Knows how many images it has read."""

    images = 0

    def fill(self, samples, pixels, labels):
        read = super().fill(samples, pixels, labels)
        self.images += read.images
        return read


def test_the_reader_waits_for_a_slow_trainer_with_a_bounded_number_of_batches(tmp_path):
    corpus = open_corpus([str(write_ours(tmp_path / "shard.tar", 64))])
    fetcher = Counting(corpus, (32, 3))
    reader = IndexedReader(fetcher, seed=0, plan=DecodePlan(prefetch=3))
    batches = reader.batches(0, ALONE)
    next(batches)
    until(lambda: fetcher.images >= 5 * 8)
    assert fetcher.images == 5 * 8  # one with the trainer, three ahead, one in the making
    assert reader.counters.images == 8  # the trainer's
    batches.close()
