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
from support.capture import train_and_capture
from support.clock import Clock, never
from support.launching import ROOT, environment
from support.processes import decoders
from support.ranks import ends_of_ranks, run_ranks
from support.recording import begin, join, options
from support.shards import write_ours
from support.waiting import LIMIT, until

from dcgan_dist import train
from dcgan_dist.gan import step as gan_step
from dcgan_dist.parallel import batchnorm, store, watchdog
from dcgan_dist.parallel.activity import Activity
from dcgan_dist.parallel.shutdown import rank_lost
from dcgan_dist.parallel.store import Alarms
from dcgan_dist.parallel.world import World
from dcgan_dist.run import checkpoint
from dcgan_dist.run.saving import Saver

pytestmark = pytest.mark.dist

SECONDS = 60  # of the watchdogs; their clocks stand still, and leap when the fault has happened
WATCHED = f"--watchdog.seconds {SECONDS}"
FAULTY = 5  # the iteration with the fault
CPU = torch.device("cpu")
PLACE = "iteration 5 after 48 images, section d for "
HOST = socket.gethostname()


class Clocks:
    """Of the watchdog in this process, and of what it asks others."""

    own: Clock
    peers: Clock


def sleeps_for_ever(stays):
    stays.touch()
    threading.Event().wait()


def is_stopped(stays):
    os.setsid()  # the system hangs up on a group without a terminal that has a stopped process
    Clocks.own.over = never
    stays.touch()
    os.kill(os.getpid(), signal.SIGSTOP)


def holds_pythons_lock(stays):
    sys.setswitchinterval(LIMIT)  # no other thread comes in between
    with_lock = ctypes.PyDLL(None)
    with_lock.creat(os.fsencode(stays), 0o600)
    with_lock.sleep(LIMIT)


def is_killed(stays):
    del stays
    os.kill(os.getpid(), signal.SIGKILL)


def loses_a_decoder(stays):
    """Its reader will notice, a few batches later."""
    decoders()[0].kill()


def train_with(given, fault, signs, healthy, meanwhile=lambda: None):
    """The command; `fault` happens on rank 1 in the middle of D's step, and `meanwhile` there on the others.

    Limits of time are over as soon as every rank stays where it is for ever: each says so by a file in the folder
    `signs`. Whoever asks which ranks are gone waits for the answers of the `healthy` ones.
    """
    rank, step, answer = int(os.environ["RANK"]), gan_step.discriminator_step, Alarms.answer
    stays = [signs / f"{one} stays" for one in range(int(os.environ["WORLD_SIZE"]))]
    answered = [signs / f"{one} answers" for one in healthy]
    stand_still(lambda: all(sign.exists() for sign in stays), lambda: all(sign.exists() for sign in answered))
    calls = itertools.count(1)

    def faulty(*args):
        if next(calls) == FAULTY:
            if rank == 1:
                fault(stays[rank])
            else:
                meanwhile()
                mock.patch.object(Activity, "collective", _after(stays[rank].touch)).start()
        return step(*args)

    def answers(peers):
        answer(peers)
        (signs / f"{rank} answers").touch()

    with mock.patch.object(gan_step, "discriminator_step", faulty), mock.patch.object(Alarms, "answer", answers):
        return train.main(given)


def stand_still(over=never, answered=None):
    """The clocks of this process's watchdog, until what it waits for can only be a hang; and for answers of others."""
    Clocks.own, Clocks.peers = Clock(over), Clock(answered or over)
    mock.patch.object(watchdog, "time", Clocks.own).start()
    mock.patch.object(store, "time", Clocks.peers).start()
    store.ANSWER_TIMEOUT = LIMIT


def _after(act, collective=Activity.collective):
    """Activity.collective that begins a call, then acts, then waits."""

    def waiting(activity, name, call, *args, **named):
        def act_and_call(*args, **named):
            act()
            return call(*args, **named)

        return collective(activity, name, act_and_call, *args, **named)

    return waiting


def stacks(run, rank):
    return (run / "stacks" / f"rank-{rank}.txt").read_text()


def idle(line):
    """Seconds without progress, as a rank says it."""
    return float(line.removeprefix("no progress for ").partition(" s ")[0])


def line_of(end, rank):
    """What a rank wrote on standard error: one line, that begins with its number."""
    assert end.error.count("\n") == 1, end.error
    assert end.error.startswith(f"rank {rank}: ")
    return end.error.removeprefix(f"rank {rank}: ").rstrip()


def test_a_rank_that_hangs_ends_the_job_with_the_stacks_of_all(shards, tmp_path):
    given = options(shards, tmp_path / "run", WATCHED)
    ends = ends_of_ranks(2, train_with, given, sleeps_for_ever, tmp_path, [0, 1])
    assert [end.code for end in ends] == [1, 1]
    victim, culprit = (line_of(end, rank) for rank, end in enumerate(ends))
    for line, rank in ((victim, 0), (culprit, 1)):
        assert idle(line) > SECONDS
        assert f" s ({PLACE}" in line
        assert line.endswith(f"; stacks: {tmp_path}/run/stacks/rank-{rank}.txt")
    assert re.search(r", waiting in BatchNorm for \d+\.\d s\)", victim)
    assert "waiting in" not in culprit
    assert "no answer from" not in victim + culprit
    assert "in sum_over_ranks\n" in stacks(tmp_path / "run", 0)
    assert "in sleeps_for_ever\n" in stacks(tmp_path / "run", 1)
    assert re.search(r"^0x[0-9a-f]+ is MainThread$", stacks(tmp_path / "run", 1), re.MULTILINE)


def test_a_rank_that_is_stopped_is_named_by_the_others(shards, tmp_path):
    given = options(shards, tmp_path / "run", WATCHED)
    ends = ends_of_ranks(3, train_with, given, is_stopped, tmp_path, [0, 2], stuck=1)
    assert [end.code for end in ends] == [1, -signal.SIGKILL, 1]
    lines = [line_of(ends[rank], rank) for rank in (0, 2)]
    assert all(f"({PLACE}" in line for line in lines)
    assert sum(f"; no answer from rank 1 on {HOST}; stacks: " in line for line in lines) == 1
    assert all("in sum_over_ranks\n" in stacks(tmp_path / "run", rank) for rank in (0, 2))


def test_a_rank_that_holds_pythons_lock_writes_its_stacks_all_the_same(shards, tmp_path):
    """No thread of Python can run there: neither its watchdog nor the handler of a signal.

    A timer of C ends it, by the true clock: after 16 s, when the other rank has long seen that it does not answer.
    """
    given = options(shards, tmp_path / "run", "--watchdog.seconds 12")
    ends = ends_of_ranks(2, train_with, given, holds_pythons_lock, tmp_path, [0])
    assert [end.code for end in ends] == [1, 1]
    assert f"; no answer from rank 1 on {HOST}; stacks: " in line_of(ends[0], 0)
    assert "in sum_over_ranks\n" in stacks(tmp_path / "run", 0)
    assert ends[1].error == ""
    assert "in holds_pythons_lock\n" in stacks(tmp_path / "run", 1)


def test_a_killed_rank_ends_the_others_at_once(shards, tmp_path):
    """Without the launcher's help, and before any limit of time is over."""
    given = options(shards, tmp_path / "run", "--checkpoint.every 48")
    ends = ends_of_ranks(3, train_with, given, is_killed, tmp_path, [0, 2])
    assert [end.code for end in ends] == [1, -signal.SIGKILL, 1]
    lines = [line_of(ends[rank], rank) for rank in (0, 2)]
    begun = f"another rank ended or does not answer ({PLACE}"
    assert all(line.startswith(begun) and ", waiting in BatchNorm for " in line for line in lines)
    assert not any("imed out" in line for line in lines)
    assert sum(f", no answer from rank 1 on {HOST}: " in line for line in lines) == 1
    newest = checkpoint.find_newest(tmp_path / "run" / "checkpoints", pytest.fail)
    assert newest is not None
    assert newest.name == "000000048"


def train_with_a_slow_disk(given, signs, answers):
    """The main rank tells when it begins to wait for a save, which ends a moment later, or never."""
    really_save, really_close, waits = checkpoint.save, Saver.close, threading.Event()

    def save(*args):
        path = really_save(*args)
        waits.wait()
        if not answers:
            Clocks.own.over = waits.is_set
            threading.Event().wait()
        return path

    def close(saver):
        sys.stderr.write("waits for the disk\n")
        waits.set()
        really_close(saver)

    with mock.patch.object(checkpoint, "save", save), mock.patch.object(Saver, "close", close):
        return train_with(given, is_killed, signs, [0])


def test_a_lost_rank_is_reported_before_the_disk_is_waited_for(shards, tmp_path):
    """A launcher kills what is left half a minute after the first rank ended."""
    given = options(shards, tmp_path / "run", "--checkpoint.every 48")
    ends = ends_of_ranks(2, train_with_a_slow_disk, given, tmp_path, True)
    assert [end.code for end in ends] == [1, -signal.SIGKILL]
    told, waits = ends[0].error.splitlines()
    assert told.startswith(f"rank 0: another rank ended or does not answer ({PLACE}")
    assert waits == "waits for the disk"


def test_a_rank_that_lost_another_does_not_wait_for_ever_for_its_disk(shards, tmp_path):
    given = options(shards, tmp_path / "run", f"--checkpoint.every 48 {WATCHED}")
    ends = ends_of_ranks(2, train_with_a_slow_disk, given, tmp_path, False)
    assert [end.code for end in ends] == [1, -signal.SIGKILL]
    _, waits, ended = ends[0].error.splitlines()
    assert waits == "waits for the disk"
    assert ended.startswith(f"rank 0: has lost another rank, and does not end ({PLACE}")
    assert "in close\n" in stacks(tmp_path / "run", 0)


def test_a_killed_decoder_ends_all_ranks_by_its_name(tmp_path):
    """And leaves no file of stacks: nobody hung."""
    shard = write_ours(tmp_path / "shard.tar", 30, "jpg")
    given = options(shard, tmp_path / "run", "--data.decode processes --data.workers 2 --images 1200")
    ends = ends_of_ranks(2, train_with, given, loses_a_decoder, tmp_path, [0])
    assert [end.code for end in ends] == [1, 1]
    problem = "error: a decoding process ended, perhaps out of memory; try fewer --data.workers"
    assert line_of(ends[1], 1) == problem
    assert f", no answer from rank 1 on {HOST}: " in line_of(ends[0], 0)
    assert not (tmp_path / "run" / "stacks").exists()


def skip_one(given, nth):
    """The command; rank 1 leaves out one of the maxima over all ranks."""
    calls, true = itertools.count(1), World.maximum

    def maximum(world, *values):
        return values if world.rank == 1 and next(calls) == nth else true(world, *values)

    stand_still(answered=lambda: True)
    with mock.patch.object(World, "maximum", maximum):
        return train.main(given)


def test_a_rank_that_skips_a_collective_ends_all_with_the_stacks_of_the_one_that_torch_aborts(shards, tmp_path):
    """Gloo ends a process that gets more bytes than it waits for, from a thread that Python does not know."""
    ends = ends_of_ranks(2, skip_one, options(shards, tmp_path / "run"), 4)
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
    step, save = gan_step.discriminator_step, checkpoint.save
    stand_still()
    clock = Clocks.own

    def takes(seconds):
        clock.now += seconds
        seen = clock.readings
        until(lambda: clock.readings >= seen + 2)

    def slow_step(*args):
        takes(0.7 * SECONDS)
        return step(*args)

    def slow_save(*args):
        takes(2 * SECONDS)
        return save(*args)

    with mock.patch.object(gan_step, "discriminator_step", slow_step), mock.patch.object(checkpoint, "save", slow_save):
        return train_and_capture(given)


def test_what_is_slow_but_goes_on_is_left_alone(shards, tmp_path):
    given = options(shards, tmp_path / "run", f"{WATCHED} --checkpoint.blocking", iterations=4)
    results = run_ranks(2, slowly, given)
    assert [(code, err) for code, _, err in results] == [(0, "")] * 2
    assert not (tmp_path / "run" / "stacks").exists()


def wait_at_most(seconds):
    """Of all groups of this rank: not as long as healthy ranks may need."""
    for group in dist.distributed_c10d._world.pg_map:
        group._get_backend(CPU)._set_default_timeout(timedelta(seconds=seconds))


def train_impatiently(given, signs):
    def impatient():
        until((signs / "1 stays").exists)
        wait_at_most(1)

    return train_with(given, is_stopped, signs, [0], impatient)


def test_without_a_watchdog_torchs_own_timeout_ends_all(shards, tmp_path):
    """Of a group other than the first: BatchNorm's, for the ranks of a node."""
    given = options(shards, tmp_path / "run", "--watchdog.seconds 0 --sync_batchnorm node")
    ends = ends_of_ranks(2, train_impatiently, given, tmp_path, stuck=1)
    assert [end.code for end in ends] == [1, -signal.SIGKILL]
    line = line_of(ends[0], 0)
    assert re.search(rf"\({PLACE}\d+\.\d s, waiting in BatchNorm for \d+\.\d s: .*Timed out waiting 1000ms", line)
    assert not (tmp_path / "run" / "stacks").exists()


def timeouts_of_groups(given):
    session = begin([*given, "--sync_batchnorm", "node"], 2)
    groups = (dist.group.WORLD, batchnorm._node_group(session.world), session.engine.d.process_group)
    return [group._get_backend(CPU).options._timeout for group in groups if isinstance(group, dist.ProcessGroup)]


def test_every_group_has_the_configured_timeout(shards, tmp_path):
    """The first one, BatchNorm's and that of the gradients."""
    given = options(shards, tmp_path / "run", "--timeout 77")
    assert run_ranks(2, timeouts_of_groups, given) == [[timedelta(seconds=77)] * 3] * 2


def busy_main(given, over):
    """The main rank is busy for longer than the timeout, and is waited for; then the other one is not."""
    _, world = join(given, 2)
    wait_at_most(1)

    def make():
        if world.main:
            time.sleep(2)
        wait_at_most(LIMIT)
        return world.rank

    made = world.main_first(make)
    if world.rank == 1:
        until(over.exists)
        return made
    wait_at_most(1)
    with pytest.raises(RuntimeError, match="Timed out waiting 1000ms") as caught:
        world.maximum(1)
    assert rank_lost(caught.value)
    over.touch()
    return made


def test_ranks_wait_patiently_only_while_the_main_rank_prepares_data(shards, tmp_path):
    assert run_ranks(2, busy_main, options(shards, tmp_path / "run"), tmp_path / "over") == [0, 1]


# what torchrun starts: the trainer, whose watchdog's clock leaps once a file exists
TRAINER = """
import runpy, sys
from pathlib import Path
from parallel.test_watchdog import stand_still

stand_still(Path(sys.argv.pop(1)).exists)
runpy.run_module("dcgan_dist.train", run_name="__main__", alter_sys=True)
"""


@contextlib.contextmanager
def launched(given, signs):
    """The training under torchrun, as a group of processes that does not outlive this."""
    (signs / "trainer.py").write_text(TRAINER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [signs / "trainer.py", signs / "over", *given]
    variables = environment(OMP_NUM_THREADS=1, GLOO_SOCKET_IFNAME="lo", PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=variables, start_new_session=True, **pipes)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for rank in psutil.process_iter(["cmdline"]):
            if str(signs / "over") in (rank.info["cmdline"] or []):
                rank.kill()
        process.communicate()


def test_a_launched_job_ends_when_one_rank_is_stopped_from_outside(shards, tmp_path):
    given = options(shards, tmp_path / "run", f"--watchdog.seconds {LIMIT} --log.every 12", iterations=100_000)
    with launched(given, tmp_path) as launcher:
        assert launcher.stdout is not None
        while " img of " not in (line := launcher.stdout.readline()):
            assert line, launcher.communicate()
        ranks = psutil.Process(launcher.pid).children()
        main, victim = sorted(ranks, key=lambda rank: rank.environ()["RANK"])
        assert [rank.environ()["WORLD_SIZE"] for rank in ranks] == ["2", "2"]
        victim.suspend()
        until(lambda: victim.status() == psutil.STATUS_STOPPED)
        (tmp_path / "over").touch()
        main.wait(LIMIT)
        victim.resume()  # else the launcher waits 30 s for it
        _, errors = launcher.communicate(timeout=LIMIT)
        assert launcher.returncode == 1
        assert not any(rank.is_running() for rank in ranks)
    assert errors.count("rank 1: ") == 1  # it sees that it is late
    (line,) = [line for line in errors.splitlines() if line.startswith("rank 0: ")]
    assert idle(line.removeprefix("rank 0: ")) > LIMIT
    assert re.search(r" s \(iteration \d+ after \d+ images, ", line)
    assert f"; no answer from rank 1 on {HOST}; stacks: " in line
    assert "in train\n" in stacks(tmp_path / "run", 0)
