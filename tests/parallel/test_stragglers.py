"""A rank that is slower than the others is named, with what it is slow in; nothing else happens to the run."""

import itertools
import json
import os
import re
import socket
import time
from unittest import mock

import pytest
from support.capture import train_and_capture
from support.output import unstamped
from support.ranks import run_ranks
from support.recording import options

from dcgan_dist.gan import step as gan_step
from dcgan_dist.parallel import activity
from dcgan_dist.parallel.activity import SAMPLED, Waits
from dcgan_dist.run import clock
from dcgan_dist.run.session import Session

USUAL, SLOW = 0.01, 0.1  # seconds of an iteration's work


class OwnTime:
    """In the place of the module `time`: nothing passes but the work that a test says, and waits for other ranks.

    Whatever else keeps this machine busy makes no rank slow.
    """

    def __init__(self):
        self.now, self._begun = 0.0, 0.0
        self.monotonic = time.monotonic
        begin, end = Waits.begin, Waits.end

        def begins(waits):
            self._begun = time.perf_counter()
            begin(waits)

        def ends(waits):
            if waits._begun is not None:
                self.now += time.perf_counter() - self._begun
            end(waits)

        mock.patch.multiple(Waits, begin=begins, end=ends).start()

    def perf_counter(self):
        return self.now

    def work(self, seconds):
        time.sleep(seconds)
        self.now += seconds


def slow(given, rank, section):
    """The command, where a rank is slow in this."""
    mine = os.environ["RANK"] == str(rank)
    seconds = {"data": 0.0, "compute": USUAL, "report": 0.0} | ({section: SLOW} if mine else {})
    own = activity.time = clock.time = OwnTime()  # pyright: ignore[reportAttributeAccessIssue]
    step, inputs, report = gan_step.discriminator_step, Session.inputs, Session.report

    def slow_step(*args):
        own.work(seconds["compute"])
        return step(*args)

    def slow_inputs(session):
        for batch in inputs(session):
            own.work(seconds["data"])
            yield batch

    def slow_report(session):
        own.work(seconds["report"])
        report(session)

    with (
        mock.patch.object(gan_step, "discriminator_step", slow_step),
        mock.patch.object(Session, "inputs", slow_inputs),
        mock.patch.object(Session, "report", slow_report),
    ):
        return train_and_capture(given)


def told(rank, section, shards, run, changes="", ranks=3):
    """What ranks that come to their end in order say of slowness, and the records of their reports."""
    given = options(shards, run, f"--watchdog.slow_factor 3 {changes}", iterations=12)
    results = run_ranks(ranks, slow, given, rank, section)
    assert [(code, err) for code, _, err in results] == [(0, "")] * ranks
    assert results[1][1] == ""
    lines = [
        line
        for line in unstamped(results[0][1]).splitlines()
        if line.startswith(("WARNING: slow: ", "WARNING: uneven: "))
    ]
    return lines, [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.dist
@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("compute", ""),
        ("compute", "--sync_batchnorm none"),  # the others wait inside of torch, for gradients
        ("data", ""),
    ],
)
def test_a_slow_rank_is_named_once_with_what_it_is_slow_in(section, changes, shards, tmp_path):
    (line,), records = told(1, section, shards, tmp_path / "run", changes)
    pattern = (
        rf"WARNING: slow: rank 1 on {re.escape(socket.gethostname())} takes (\d+\.\d) times as long as the "
        rf"median rank for its own work, mostly in {section}: (\d+\.\d) ms an iteration instead of \d+\.\d"
    )
    match = re.fullmatch(pattern, line)
    assert match
    assert float(match[1]) > 3
    assert float(match[2]) == pytest.approx(SLOW * 1e3)
    assert len(records) == 6
    assert all(record["rank/slowest"] == 1 and record["rank/slowest_factor"] > 3 for record in records[1:])


@pytest.mark.dist
def test_no_rank_is_named_where_all_are_alike(shards, tmp_path):
    """What the main rank does for all is none of its own iterations."""
    lines, records = told(0, "report", shards, tmp_path / "run", ranks=2)
    assert lines == []
    assert all(record["rank/slowest_factor"] >= 1 for record in records)


def test_a_single_rank_is_not_compared(shards, tmp_path):
    (result,) = run_ranks(1, train_and_capture, options(shards, tmp_path / "run"))
    assert result[0] == 0
    assert "rank/" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_on_a_gpu_one_iteration_of_many_is_measured(monkeypatch):
    """By events, each here at the number of its recording: 2 ms between begin and end."""
    times = itertools.count(step=2)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(times)

        def elapsed_time(self, end):
            return float(end.at - self.at)

    monkeypatch.setattr(activity.torch.cuda, "Event", Event)
    waits = Waits(on_gpu=True)
    for _ in range(2):
        for _ in range(SAMPLED + 1):
            for _ in range(3):
                waits.begin()
                waits.end()
            waits.tick()
        assert next(times) == 2 * 2 * 2 * 3
        assert waits.read() == pytest.approx(3 * 2e-3)
        times = itertools.count(step=2)
    waits.end()  # what did not begin
    assert waits.read() == 0.0
