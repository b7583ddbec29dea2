"""Requests to stop and to save, at every moment of a run on two ranks: real processes, real signals, real command."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.ranks import run_ranks
from support.recording import metrics, options
from support.training import before_each_iteration

from dcgan_dist.run import checkpoint, session, signals, start
from dcgan_dist.run.session import Session
from dcgan_dist.train import main

pytestmark = [pytest.mark.dist, pytest.mark.slow]

LENGTH = 720  # 60 iterations of 12 images; the ranks ask each other after 0, 1, 3, 7 .. of them, or more often
OPTIONS = f"--images {LENGTH} --checkpoint.every 240 --log.samples_every 120"


def before(place, name: str, act) -> None:
    """Puts `act` in front of a function, in this process for good: it is a rank's, and ends with it."""
    true = getattr(place, name)

    def both(*args, **settings):
        act(*args)
        return true(*args, **settings)

    setattr(place, name, both)


def at_images(images: int, act):
    def look(attempt: Session, *_) -> None:
        if attempt.state.images == images:
            act(attempt)

    return look


MOMENTS = {
    "opening shards": (start, "open_data"),
    "building networks": (start, "create"),
    "sampling": (session, "save_png"),
    "saving": (checkpoint, "sealed"),
}


def stopped_attempt(given: list[str], victim: int, moment: str, numbers: list[int]) -> tuple[int, list[int], int]:
    """Exit code, images where this rank stopped, and how many saves were ever going on at once."""
    assert os.environ["WORLD_SIZE"] == "2"
    ends, depth, deepest, true_save = [], 0, 0, checkpoint.save

    def send(*_) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    def save(*args, **settings):
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        path = true_save(*args, **settings)
        depth -= 1
        return path

    checkpoint.save = save
    before(Session, "finish", lambda attempt, *_: ends.append(attempt.state.images))
    if int(os.environ["RANK"]) == victim:
        if moment in MOMENTS:
            before(*MOMENTS[moment], send)
        else:
            before_each_iteration(at_images(60, send))
    return main(given), ends, deepest


def newest(run: Path) -> int | None:
    path = checkpoint.find_newest(run / "checkpoints", pytest.fail)
    return int(path.name) if path else None


def train(given: list[str]) -> None:
    assert run_ranks(2, main, given) == [0, 0]


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train(options(shards, run, OPTIONS))
    return run


def learnt(run: Path) -> list[dict[str, float]]:
    """Of the reports, what does not tell of this attempt's reading."""
    return [{name: value for name, value in row.items() if not name.startswith("data/")} for row in metrics(run)]


def assert_same_bits(run: Path, undisturbed: Path) -> None:
    ours, theirs = (
        {path.name: path.read_bytes() for path in folder.glob(f"checkpoints/{LENGTH:09}/*.safetensors")}
        for folder in (run, undisturbed)
    )
    assert len(ours) == 6
    assert ours == theirs
    for found, wanted in zip(learnt(run), learnt(undisturbed), strict=True):
        assert found == pytest.approx(wanted, rel=1e-12)  # a save adds the numbers of a report up in another order


ONE_RANK = [
    (1, "an iteration", ["SIGTERM"]),
    (1, "an iteration", ["SIGTERM", "SIGTERM"]),
    (1, "an iteration", ["SIGUSR1", "SIGUSR1"]),
    (1, "an iteration", ["SIGUSR2"]),
    (1, "an iteration", ["SIGHUP", "SIGHUP"]),
    (0, "an iteration", ["SIGINT"]),
    (1, "opening shards", ["SIGUSR1"]),
    (1, "building networks", ["SIGINT", "SIGINT"]),
    (0, "sampling", ["SIGUSR2", "SIGUSR2"]),
    (0, "saving", ["SIGTERM", "SIGTERM"]),
]


@pytest.mark.parametrize(("victim", "moment", "names"), ONE_RANK)
def test_a_signal_to_one_rank_stops_both_at_the_same_image(victim, moment, names, undisturbed, shards, tmp_path):
    run = tmp_path / "run"
    given = options(shards, run, OPTIONS)
    numbers = [signal.Signals[name].value for name in names]
    attempts = run_ranks(2, stopped_attempt, given, victim, moment, numbers)
    (images,) = {images for _, ends, _ in attempts for images in ends}
    assert [(code, len(ends)) for code, ends, _ in attempts] == [(0, 1), (0, 1)]  # 0: under a launcher
    assert max(deepest for *_, deepest in attempts) <= 1
    begun = {"an iteration": 60, "sampling": 120, "saving": 240}.get(moment, 0)
    assert (images > 0) == (begun > 0)
    assert begun <= images < LENGTH
    who = "rank 1: " if victim else ""
    assert (run / "PREEMPTED").read_text() == f"{images}\n{who}{names[0]}\n"
    assert not (run / "DONE").exists()
    assert newest(run) == (images or None)  # an attempt that saw no image saves nothing
    if moment == "saving":
        train(given)
        assert_same_bits(run, undisturbed)
        assert not (run / "PREEMPTED").exists()


def attempt_with_files(given: list[str], run: Path, name: str) -> list[str]:
    """Rank 0 touches a file after five iterations; returns the checkpoints at the first iteration without it."""
    seen: list[list[str]] = []

    def look(attempt: Session) -> None:
        if attempt.state.images == 60:
            (run / name).touch()
        elif attempt.state.images > 60 and not (run / name).exists():
            seen.append(sorted(path.name for path in (run / "checkpoints").glob("0*")))

    if os.environ["RANK"] == "0":
        before_each_iteration(look)
    assert main(given) == 0
    return seen[0] if seen else []


def test_a_file_asks_for_a_checkpoint_and_the_run_goes_on(undisturbed, shards, tmp_path):
    run = tmp_path / "run"
    given = options(shards, run, OPTIONS)
    seen, _ = run_ranks(2, attempt_with_files, given, run, "SAVE")
    assert len(seen) == 1  # it is on disk when the file goes, and it is the only one
    assert 60 < int(seen[0]) < 240
    assert (run / "DONE").exists()
    assert not (run / "SAVE").exists()
    assert_same_bits(run, undisturbed)


def test_a_file_stops_exactly_one_attempt(shards, tmp_path):
    run = tmp_path / "run"
    given = options(shards, run, OPTIONS)
    run.mkdir()
    (run / "STOP").touch()
    train(given)
    why = f"{run / 'STOP'} exists"
    assert (run / "PREEMPTED").read_text().startswith(f"0\n{why}\n")
    os.utime(run / "STOP", (4_000_000_000, 4_000_000_000))  # a clock is years ahead
    (run / "PREEMPTED").unlink()
    train(given)
    assert newest(run) is None
    run_ranks(2, attempt_with_files, given, run, "STOP")  # begins, for the first one is not heard again
    images = newest(run) or 0
    assert 60 < images < 240
    assert (run / "PREEMPTED").read_text().startswith(f"{images}\n{why}\n")


def attempt_with_a_budget(given: list[str]) -> int:
    """Ten minutes pass during one iteration of this attempt: its sixth."""
    passed = 0.0

    def look(attempt: Session, *_) -> None:
        nonlocal passed
        passed = 600.0 if attempt.state.images == attempt.first + 60 else passed

    before_each_iteration(look)
    signals.time = SimpleNamespace(monotonic=lambda: time.monotonic() + passed)
    return main(given)


def test_the_budget_ends_an_attempt_and_the_hours_of_all_attempts_add_up(shards, tmp_path):
    run = tmp_path / "run"
    given = options(shards, run, "--images 1000000 --stop.after_minutes 9.5")
    spent, images = [0.0], [0]
    for _ in range(2):
        assert run_ranks(2, attempt_with_a_budget, given) == [0, 0]
        images.append(newest(run) or 0)
        assert (run / "PREEMPTED").read_text() == f"{images[-1]}\n--stop.after_minutes 9.5\n"
        spent.append(json.loads((run / f"checkpoints/{images[-1]:09}/state.json").read_text())["run_seconds"])
    assert images[1] > 60
    assert images[2] > images[1] + 60
    assert 600 < spent[1] < 1200 < spent[2]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    hours = [3600 * row["time/run_hours"] for row in rows]
    assert hours == sorted(set(hours))
    assert [hour > spent[1] for hour in hours] == [row["images"] > images[1] for row in rows]
    shutil.rmtree(run / "checkpoints" / f"{images[2]:09}")  # as if the second attempt had been killed before its save
    assert run_ranks(2, attempt_with_a_budget, given) == [0, 0]
    again = json.loads((run / f"checkpoints/{newest(run):09}/state.json").read_text())["run_seconds"]
    assert spent[1] + 600 < again < spent[1] + 1200  # what it took is lost, and no more
