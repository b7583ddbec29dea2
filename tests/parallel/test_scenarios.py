"""Faults that a run meets on real ranks, each injected, survived or told, and followed by the next attempt."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.capture import train_and_capture
from support.disk import no_file_larger_than
from support.launching import ROOT, call, environment
from support.ranks import ends_of_ranks, run_ranks
from support.recording import options
from support.shards import write_ours
from support.training import before_each_iteration
from support.waiting import LIMIT

from dcgan_dist.parallel import rendezvous
from dcgan_dist.run import checkpoint
from dcgan_dist.run.session import Session
from dcgan_dist.train import main

pytestmark = [pytest.mark.dist, pytest.mark.slow]

RANKS, LENGTH = 2, 72
OFTEN = f"--world_size 2 --images {LENGTH} --checkpoint.every 12 --checkpoint.keep 9"


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run_ranks(RANKS, main, options(shards, run, OFTEN)) == [0, 0]
    return run


def bits(run: Path, images: int = LENGTH) -> dict[str, bytes]:
    """Networks, average, optimisers and running statistics of a checkpoint."""
    files = {path.name: path.read_bytes() for path in (run / "checkpoints" / f"{images:09}").glob("*.safetensors")}
    assert len(files) == 6
    return files


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


# ---- what a killed attempt left behind


def test_leftovers_of_a_killed_attempt_do_not_block_the_next(undisturbed, shards, tmp_path):
    """Half a checkpoint under a temporary name, half a one under its own, and a newest one that was cut."""
    run = shutil.copytree(undisturbed, tmp_path / "run")
    checkpoints = run / "checkpoints"
    for images in (60, 72):
        shutil.rmtree(checkpoints / f"{images:09}")
    (checkpoints / "latest").write_text("000000048")
    cut = checkpoints / "000000048" / "netd.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    for name in (".tmp-1-000000060", "000000060"):
        (checkpoints / name).mkdir()
        (checkpoints / name / "netg.safetensors").write_bytes(b"half")
    (run / "DONE").unlink()
    (first, second) = run_ranks(RANKS, train_and_capture, options(shards, run, OFTEN))
    assert [(code, err) for code, _, err in (first, second)] == [(0, "")] * 2
    assert [f"{images:09}" in first[1] for images in (60, 48)] == [True, True]  # both are told of
    assert f"resuming from {checkpoints / '000000036'}" in first[1]
    assert bits(run) == bits(undisturbed)
    assert names(run) == names(undisturbed)
    assert all(checkpoint.verify(path) is None for path in checkpoint.all_checkpoints(checkpoints))


# ---- disks


def train_on_a_full_disk(given: list[str], full: list[int]) -> tuple[int, str, str]:
    """The command; the main rank's disk takes no checkpoint at these numbers of images."""
    true = checkpoint.save

    def save(folder, images, *others, **named):
        if images in full:
            with no_file_larger_than(300):
                return true(folder, images, *others, **named)
        return true(folder, images, *others, **named)

    checkpoint.save = save
    return train_and_capture(given)


def test_a_disk_that_is_full_on_the_main_rank_costs_no_rank_anything_until_the_last_save(undisturbed, shards, tmp_path):
    run = tmp_path / "run"
    # one after the other, else two are refused at once: the limit is the process's
    given = options(shards, run, f"{OFTEN} --checkpoint.blocking")
    ends = run_ranks(RANKS, train_on_a_full_disk, given, [24, 36, LENGTH])
    (code, said, errors), (other_code, _, other_errors) = ends
    assert (code, other_code, other_errors) == (1, 1, "")
    assert [line.rpartition(" (")[2] for line in said.splitlines() if "WARNING" in line] == [
        "failure 1 of 3)",
        "failure 2 of 3)",
        "failure 1 of 3)",
    ]
    assert errors.startswith(f"error: {run / 'checkpoints' / '000000072'}: the checkpoint could not be saved (File too")
    assert (errors.count("\n"), " MB free); " in errors) == (1, True)
    assert names(run) == ["000000012", "000000048", "000000060", "latest"]
    assert bits(run, 60) == bits(undisturbed, 60)
    assert not (run / "DONE").exists()
    assert run_ranks(RANKS, main, given) == [0, 0]  # there is room again
    assert bits(run) == bits(undisturbed)


def test_a_folder_that_cannot_be_written_ends_all_ranks_before_training(shards):
    (code, _, errors), (other_code, _, other_errors) = run_ranks(
        RANKS, train_and_capture, options(shards, Path("/proc/run"))
    )
    assert (code, other_code, other_errors) == (2, 2, "")
    assert errors == "error: --run_dir /proc/run: cannot be written (No such file or directory)\n"


def test_other_networks_are_refused_on_all_ranks_and_the_run_stays_as_it_is(undisturbed, shards, tmp_path):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file() and path.name != "owner.json"}
    given = options(shards, run, f"{OFTEN} --model.ngf 8")
    (code, _, errors), (other_code, _, other_errors) = run_ranks(RANKS, train_and_capture, given)
    assert (code, other_code, other_errors) == (2, 2, "")
    assert errors.count("\n") == 1
    assert "--model.ngf 4 -> 8" in errors
    assert {path: path.read_bytes() for path in before} == before


NO_ROOM = 'mount -t tmpfs -o size=4k none /dev/shm && head -c 4096 /dev/zero >/dev/shm/full && exec "$@"'


def test_training_with_decoding_processes_needs_no_dev_shm(tmp_path):
    """Their ring has no name: containers with a small /dev/shm are no trap. What would use it fails by its name."""
    shard = write_ours(tmp_path / "shard.tar", 30, "jpg")
    given = options(shard, tmp_path / "run", "--data.decode processes --data.workers 2 --images 48")
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", NO_ROOM, "sh", sys.executable, "-m"]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*command, *launcher, "dcgan_dist.train", *given],
        cwd=ROOT,
        env=environment(GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS=1),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 ranks on cpu" in done.stdout
    assert (tmp_path / "run" / "DONE").read_text() == "48\n"


# ---- clocks and ports


def with_a_jumping_clock(given: list[str]) -> int:
    """The wall clock goes an hour back after 24 images, and two hours forward after 48; the steady one does not."""
    true_time, jump = time.time, 0.0

    def look(session: Session) -> None:
        nonlocal jump
        jump = {24: -3600.0, 48: 3600.0}.get(session.state.images, jump)

    time.time = lambda: true_time() + jump
    before_each_iteration(look)
    return main(given)


def test_jumps_of_the_clock_change_nothing(undisturbed, shards, tmp_path):
    run = tmp_path / "run"
    given = options(shards, run, f"{OFTEN} --log.every 12")
    assert run_ranks(RANKS, with_a_jumping_clock, given) == [0, 0]
    for name in (f"{part}.safetensors" for part in ("netg", "netd", "netg_ema", "optimizer_g", "optimizer_d")):
        assert bits(run)[name] == bits(undisturbed)[name]
    assert names(run) == names(undisturbed)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    hours = [row["time/run_hours"] for row in rows]
    assert hours == sorted(set(hours))
    seconds = [value for row in rows for name, value in row.items() if name.startswith(("time/", "speed/", "save/"))]
    assert len(seconds) > 5 * len(rows)
    assert all(0 <= value < 3600 for row in rows for name, value in row.items() if name.startswith("time/"))
    assert min(seconds) >= 0


def join_at(port: int, given: list[str]) -> int:
    """The command as ranks that are started by hand: the first one opens the meeting point itself."""
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(port)}
    rendezvous.MARGIN = 1.0
    return main(given)


def test_a_port_that_is_in_use_ends_the_job_before_training(shards, tmp_path):
    """Of the launcher, which then starts no rank; and of ranks that are started by hand."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        launcher = ["torch.distributed.run", "--nproc-per-node", 2, "--master-addr", "127.0.0.1", "--master-port", port]
        train = ["-m", "dcgan_dist.train", *options(shards, tmp_path / "launched")]
        done = call(sys.executable, "-m", *launcher, *train, OMP_NUM_THREADS=1)
        # the program that has the port takes calls, and never answers
        by_hand = ends_of_ranks(RANKS, join_at, port, options(shards, tmp_path / "by_hand", "--timeout 2"))
    assert done.returncode == 1
    assert f"port: {port}" in done.stderr
    for end, where, why in zip(
        by_hand, ("error", "rank 1: error"), ("address already in use", "no answer"), strict=True
    ):
        assert (end.code, end.error.count("\n")) == (1, 1), end.error
        assert end.error.startswith(f"{where}: the 2 launched ranks do not find each other at 127.0.0.1:{port} (")
        assert why in end.error
    assert list(tmp_path.iterdir()) == []
