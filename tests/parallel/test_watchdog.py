"""Hangs and deaths of ranks in real trainings: all ranks end, and say what they were doing and who is gone."""

import contextlib
import ctypes
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from unittest import mock

import psutil
import pytest
import torch
import torch.distributed as dist
from support.launching import ROOT, environment
from support.processes import decoders
from support.ranks import ends_of_ranks, run_ranks
from support.recording import begin, join, options
from support.shards import write_ours
from support.telling import train_and_tell

from dcgan_dist import train
from dcgan_dist.parallel import batchnorm
from dcgan_dist.parallel.ending import rank_lost
from dcgan_dist.parallel.world import World
from dcgan_dist.run import checkpoint
from dcgan_dist.run.saving import Saver

pytestmark = pytest.mark.dist

SHORT = "--watchdog.seconds 2 --timeout 30"
FAULTY = 5  # the iteration with the fault
PLACE = "iteration 5 after 48 images, section d for "
HOST = socket.gethostname()


def sleeps_for_ever():
    threading.Event().wait()


def is_stopped():
    os.kill(os.getpid(), signal.SIGSTOP)


def holds_pythons_lock():
    ctypes.PyDLL(None).sleep(60)


def is_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def loses_a_decoder():
    """Its reader will notice, a few batches later."""
    decoders()[0].kill()


def train_with(given, fault, world_size):
    """The command; `fault` happens on rank 1 in the middle of D's step."""
    calls, true = itertools.count(1), train.discriminator_step

    def faulty(*args):
        if next(calls) == FAULTY and os.environ["RANK"] == "1":
            fault()
        return true(*args)

    assert int(os.environ["WORLD_SIZE"]) == world_size
    with mock.patch.object(train, "discriminator_step", faulty):
        return train.main(given)


def stacks(run, rank):
    return (run / "stacks" / f"rank-{rank}.txt").read_text()


def line_of(end, rank):
    """What a rank wrote on standard error: one line, that begins with its number."""
    assert end.error.count("\n") == 1, end.error
    assert end.error.startswith(f"rank {rank}: ")
    return end.error.removeprefix(f"rank {rank}: ").rstrip()


def test_a_rank_that_hangs_ends_the_job_with_the_stacks_of_all(shards, tmp_path):
    given = options(shards, tmp_path / "run", SHORT)
    ends = ends_of_ranks(2, train_with, given, sleeps_for_ever, 2)
    assert [end.code for end in ends] == [1, 1]
    victim, culprit = (line_of(end, rank) for rank, end in enumerate(ends))
    for line, rank in ((victim, 0), (culprit, 1)):
        assert re.match(r"no progress for [23]\.\d s \(", line)
        assert f"({PLACE}" in line
        assert line.endswith(f"; stacks: {tmp_path}/run/stacks/rank-{rank}.txt")
    assert re.search(r", waiting in BatchNorm for \d+\.\d s\)", victim)
    assert "waiting in" not in culprit
    assert "no answer from" not in victim + culprit
    assert "in sum_over_ranks\n" in stacks(tmp_path / "run", 0)
    assert "in sleeps_for_ever\n" in stacks(tmp_path / "run", 1)
    assert re.search(r"^0x[0-9a-f]+ is MainThread$", stacks(tmp_path / "run", 1), re.MULTILINE)


def test_a_rank_that_is_stopped_is_named_by_the_others(shards, tmp_path):
    ends = ends_of_ranks(3, train_with, options(shards, tmp_path / "run", SHORT), is_stopped, 3, stuck=1)
    assert [end.code for end in ends] == [1, -signal.SIGKILL, 1]
    lines = [line_of(ends[rank], rank) for rank in (0, 2)]
    assert all(f"({PLACE}" in line for line in lines)
    assert sum(f"; no answer from rank 1 on {HOST}; stacks: " in line for line in lines) == 1
    assert all("in sum_over_ranks\n" in stacks(tmp_path / "run", rank) for rank in (0, 2))


def test_a_rank_that_holds_pythons_lock_writes_its_stacks_all_the_same(shards, tmp_path):
    """No thread of Python can run there: neither its watchdog nor the handler of a signal."""
    ends = ends_of_ranks(2, train_with, options(shards, tmp_path / "run", SHORT), holds_pythons_lock, 2)
    assert [end.code for end in ends] == [1, 1]
    assert f"; no answer from rank 1 on {HOST}; stacks: " in line_of(ends[0], 0)
    assert "in sum_over_ranks\n" in stacks(tmp_path / "run", 0)
    assert ends[1].error == ""
    assert "in holds_pythons_lock\n" in stacks(tmp_path / "run", 1)


def test_a_killed_rank_ends_the_others_at_once(shards, tmp_path):
    """Without the launcher's help."""
    ends = ends_of_ranks(3, train_with, options(shards, tmp_path / "run", "--checkpoint.every 48"), is_killed, 3)
    assert [end.code for end in ends] == [1, -signal.SIGKILL, 1]
    lines = [line_of(ends[rank], rank) for rank in (0, 2)]
    begun = f"another rank ended or does not answer ({PLACE}"
    assert all(line.startswith(begun) and ", waiting in BatchNorm for " in line for line in lines)
    assert sum(f", no answer from rank 1 on {HOST}: " in line for line in lines) == 1
    assert max(ends[0].at, ends[2].at) - ends[1].at < 5
    newest = checkpoint.find_newest(tmp_path / "run" / "checkpoints", pytest.fail)
    assert newest is not None
    assert newest.name == "000000048"


def train_with_a_slow_disk(given, answers):
    """The main rank tells when it begins to wait for a save, which takes as long as that, or for ever."""
    really_save, really_close, waits = checkpoint.save, Saver.close, threading.Event()

    def save(*args):
        path = really_save(*args)
        waits.wait()
        threading.Event().wait(1 if answers else None)
        return path

    def close(saver):
        sys.stderr.write("waits for the disk\n")
        waits.set()
        really_close(saver)

    with mock.patch.object(checkpoint, "save", save), mock.patch.object(Saver, "close", close):
        return train_with(given, is_killed, 2)


def test_a_lost_rank_is_told_before_the_disk_is_waited_for(shards, tmp_path):
    """A launcher kills what is left half a minute after the first rank ended."""
    given = options(shards, tmp_path / "run", "--checkpoint.every 48")
    ends = ends_of_ranks(2, train_with_a_slow_disk, given, True)
    assert [end.code for end in ends] == [1, -signal.SIGKILL]
    told, waits = ends[0].error.splitlines()
    assert told.startswith(f"rank 0: another rank ended or does not answer ({PLACE}")
    assert waits == "waits for the disk"


def test_a_rank_that_lost_another_does_not_wait_for_ever_for_its_disk(shards, tmp_path):
    given = options(shards, tmp_path / "run", "--checkpoint.every 48 --watchdog.seconds 2 --timeout 4")
    ends = ends_of_ranks(2, train_with_a_slow_disk, given, False)
    assert [end.code for end in ends] == [1, -signal.SIGKILL]
    _, waits, ended = ends[0].error.splitlines()
    assert waits == "waits for the disk"
    assert ended.startswith(f"rank 0: has lost another rank, and does not end ({PLACE}")
    assert "in close\n" in stacks(tmp_path / "run", 0)


def test_a_killed_decoder_ends_all_ranks_by_its_name(tmp_path):
    """And leaves no file of stacks: nobody hung."""
    shard = write_ours(tmp_path / "shard.tar", 30, "jpg")
    given = options(shard, tmp_path / "run", "--data.decode processes --data.workers 2 --images 1200")
    ends = ends_of_ranks(2, train_with, given, loses_a_decoder, 2)
    assert [end.code for end in ends] == [1, 1]
    problem = "error: a decoding process ended, perhaps for want of memory; try fewer --data.workers"
    assert line_of(ends[1], 1) == problem
    assert f", no answer from rank 1 on {HOST}: " in line_of(ends[0], 0)
    assert not (tmp_path / "run" / "stacks").exists()


def skip_one(given, nth):
    """The command; rank 1 leaves out one of the maxima over all ranks."""
    calls, true = itertools.count(1), World.maximum

    def maximum(world, *values):
        return values if world.rank == 1 and next(calls) == nth else true(world, *values)

    with mock.patch.object(World, "maximum", maximum):
        return train.main(given)


def test_a_rank_that_skips_a_collective_ends_all_with_the_stacks_of_the_one_that_torch_aborts(shards, tmp_path):
    """Gloo ends a process that gets more bytes than it waits for, from a thread that Python does not know."""
    ends = ends_of_ranks(2, skip_one, options(shards, tmp_path / "run", SHORT), 4)
    assert [end.code for end in ends] == [-signal.SIGABRT, 1]
    assert "in maximum\n" in stacks(tmp_path / "run", 0)
    line = line_of(ends[1], 1)
    told = re.match(
        r"another rank ended or does not answer \(iteration (\d+) after (\d+) images, waiting in sum_ for ", line
    )
    assert told, line
    assert int(told[2]) == 12 * (int(told[1]) - 1)
    assert f", no answer from rank 0 on {HOST}: " in line


def slowly(given):
    """The command, with long iterations, and checkpoints that take longer than one of them may."""
    step, save = train.discriminator_step, checkpoint.save

    def slow_step(*args):
        time.sleep(0.7)
        return step(*args)

    def slow_save(*args):
        time.sleep(2.5)
        return save(*args)

    with mock.patch.object(train, "discriminator_step", slow_step), mock.patch.object(checkpoint, "save", slow_save):
        return train_and_tell(given)


def test_what_is_slow_but_goes_on_is_left_alone(shards, tmp_path):
    given = options(shards, tmp_path / "run", "--watchdog.seconds 1.5 --timeout 20", iterations=4)
    results = run_ranks(2, slowly, given)
    assert [(code, err) for code, _, err in results] == [(0, "")] * 2
    assert not (tmp_path / "run" / "stacks").exists()


def test_without_a_watchdog_torchs_own_timeout_ends_all(shards, tmp_path):
    """Of a group other than the first: BatchNorm's, for the ranks of a node."""
    given = options(shards, tmp_path / "run", "--watchdog.seconds 0 --timeout 3 --sync_batchnorm node")
    ends = ends_of_ranks(2, train_with, given, is_stopped, 2, stuck=1)
    assert [end.code for end in ends] == [1, -signal.SIGKILL]
    line = line_of(ends[0], 0)
    assert re.search(rf"\({PLACE}3\.\d s, waiting in BatchNorm for 3\.\d s: .*Timed out waiting 3000ms", line)
    assert not (tmp_path / "run" / "stacks").exists()


def timeouts_of_groups(given):
    session = begin([*given, "--sync_batchnorm", "node"], 2)
    cpu = torch.device("cpu")
    groups = (dist.group.WORLD, *batchnorm._own_node, session.engine.d.process_group)
    backends = [group._get_backend(cpu) for group in groups if isinstance(group, dist.ProcessGroup)]
    return [backend.options._timeout for backend in backends]


def test_every_group_has_the_configured_timeout(shards, tmp_path):
    """The first one, BatchNorm's and that of the gradients."""
    given = options(shards, tmp_path / "run", "--timeout 77")
    assert run_ranks(2, timeouts_of_groups, given) == [[timedelta(seconds=77)] * 3] * 2


def busy_main(given):
    """The main rank is busy for longer than the timeout, and is waited for; then the other one is not."""
    _, world = join(given, 2)

    def make():
        if world.main:
            time.sleep(4)
        return world.rank

    made = world.main_first(make)
    begun = time.monotonic()
    if world.rank == 1:
        time.sleep(4)
        return made, 0.0
    with pytest.raises(RuntimeError) as caught:
        world.maximum(1)
    assert rank_lost(caught.value)
    return made, time.monotonic() - begun


def test_ranks_wait_patiently_only_while_the_main_rank_prepares_data(shards, tmp_path):
    (first, waited), (second, _) = run_ranks(2, busy_main, options(shards, tmp_path / "run", "--timeout 2"))
    assert (first, second) == (0, 1)
    assert 2 <= waited < 4


@contextlib.contextmanager
def launched(run, *more):
    """The training under torchrun, as a group of processes that does not outlive this."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "dcgan_dist.train", *options("", run)[:2], *more]
    variables = environment(OMP_NUM_THREADS=1, GLOO_SOCKET_IFNAME="lo")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=variables, start_new_session=True, **pipes)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for rank in psutil.process_iter(["cmdline"]):
            if str(run) in (rank.info["cmdline"] or []):
                rank.kill()
        process.communicate()


def test_a_launched_job_ends_when_one_rank_is_stopped_from_outside(shards, tmp_path):
    given = options(shards, tmp_path / "run", f"{SHORT} --log.every 12", iterations=100_000)
    with launched(tmp_path / "run", *given[2:]) as launcher:
        assert launcher.stdout is not None
        while " img of " not in (line := launcher.stdout.readline()):
            assert line, launcher.communicate()
        ranks = psutil.Process(launcher.pid).children()
        main, victim = sorted(ranks, key=lambda rank: rank.environ()["RANK"])
        assert [rank.environ()["WORLD_SIZE"] for rank in ranks] == ["2", "2"]
        victim.suspend()
        main.wait(60)
        victim.resume()  # else the launcher waits 30 s for it
        _, errors = launcher.communicate(timeout=60)
        assert launcher.returncode == 1
        assert not any(rank.is_running() for rank in ranks)
    assert errors.count("rank 1: ") == 1  # it sees that it is late
    (line,) = [line for line in errors.splitlines() if line.startswith("rank 0: ")]
    assert re.match(r"rank 0: no progress for [23]\.\d s \(iteration \d+ after \d+ images, ", line)
    assert f"; no answer from rank 1 on {HOST}; stacks: " in line
    assert "in train\n" in stacks(tmp_path / "run", 0)
