"""What may befall a job on a real SLURM: its time limit, preemption, a node's power cut, its cable. Only time is lost.

Nearly all of it is waiting, for grace times and for SLURM to notice: all stories begin at once, on nodes of their own.
"""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.cluster import Cluster
from support.launching import TINY, deviation, newest_tensors, train_alone
from support.waiting import LIMIT, until

from dcgan_dist.run import checkpoint

pytestmark = [pytest.mark.slurm, pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(4 * LIMIT)]

EVERY = 64  # images from one checkpoint to the next
WHOLE_NODE = "--cpus-per-task=4"


@dataclass(frozen=True)
class Job:
    """A training that goes on until `shorten` says how far."""

    cluster: Cluster
    run: Path
    number: str

    @classmethod
    def begin(cls, cluster: Cluster, folder: Path, sbatch_options: str, ranks: int = 1) -> "Job":
        """Submits it. Huge grids of samples slow it down, so that few images need to be trained again to compare."""
        folder.mkdir()
        length, run = folder / "length.yaml", folder / "run"
        length.write_text("images: 1000000\nlog: {samples: 2000, samples_every: 16, every: 16}\n")
        often = ["--checkpoint.every", EVERY, "--checkpoint.keep", 999]
        options = [*TINY, *often, "--config", length, "--run_dir", run]
        return cls(cluster, run, cluster.train(f"--time=60 {sbatch_options}", *options, RANKS_PER_NODE=ranks))

    def reaches(self, images: int) -> None:
        """Waits for a checkpoint."""
        self.cluster.wait(self.number, lambda: self.newest() >= images)

    def newest(self) -> int:
        latest = self.run / "checkpoints" / "latest"
        return int(latest.read_text()) if latest.exists() else 0

    def goes_back_to_the_queue(self) -> int:
        """Waits for that; what the next attempt is to begin from."""
        self.cluster.wait(self.number, lambda: self.restarts() == 1)
        return self.newest()

    def restarts(self) -> int:
        return int(self.cluster.job(self.number)["Restarts"])

    def shorten(self) -> int:
        """The next attempt ends soon after where this one was, with a checkpoint that the undisturbed run has, too."""
        images = (self.newest() // EVERY + 2) * EVERY
        self.run.with_name("length.yaml").write_text(f"images: {images}\n")
        return images

    def ends(self) -> str:
        """Waits for the end of its second attempt, which must complete the training; the log of both."""
        fields = self.cluster.end(self.number)
        log = self.cluster.log(self.number)
        assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), log
        return log

    def ranks(self) -> list[int]:
        """Their processes, of both attempts if both are there."""
        command = f"python[^ ]* (-u )?-m dcgan_dist.train .*{self.run}( |$)"
        return [int(pid) for pid in subprocess.check_output(["pgrep", "-f", command], text=True).split()]

    def says(self, text: str) -> None:
        """Waits for these words in its log."""
        until(lambda: text in self.cluster.log(self.number))


@contextmanager
def deaf(rank: int) -> Iterator[None]:
    """It does not run, for before it ends a job SLURM wakes up what sleeps; at the end it is killed.

    That is SLURM's work, where cgroups tell it what belongs to a job. Here it loses sight of ranks without launcher.
    """
    over = threading.Event()

    def hold() -> None:
        with suppress(ProcessLookupError):
            while not over.wait(0.002):
                os.kill(rank, signal.SIGSTOP)

    thread = threading.Thread(target=hold)
    thread.start()
    yield
    over.set()
    thread.join()
    with suppress(ProcessLookupError):
        os.kill(rank, signal.SIGKILL)


def want_urgently(cluster: Cluster, node: str) -> None:
    options = ["--partition=high", f"--nodelist={node}", WHOLE_NODE, "--output=/dev/null"]
    cluster.call("sbatch", *options, "--wrap", "sleep 3")


# ---- the stories; each returns its job, its log, and what is to be compared


def time_is_over(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """SLURM warns the two nodes of two ranks within half a minute of the limit being set."""
    job = Job.begin(cluster, folder, "--nodelist=node8,node9 --nodes=2 --time=10 --signal=B:USR1@60", ranks=2)
    job.reaches(EVERY)
    minutes = int(cluster.call("squeue", "--noheader", f"--jobs={job.number}", "--format=%M").split(":")[0])
    cluster.call("scontrol", "update", f"job={job.number}", f"TimeLimit={minutes + 2}")
    cluster.wait(job.number, lambda: (job.run / "PREEMPTED").exists())
    asked = int((job.run / "PREEMPTED").read_text().split()[0])
    images = job.shorten()
    saved = job.goes_back_to_the_queue()
    cluster.wait(job.number, lambda: cluster.job(job.number)["JobState"] == "PENDING")
    cluster.call("scontrol", "update", f"job={job.number}", "TimeLimit=10")
    return {"job": job, "saved": saved, "asked": asked, "images": images, "log": job.ends()}


def preempted(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """A more urgent job wants the node: the training saves, makes way and comes back."""
    job = Job.begin(cluster, folder, f"--nodelist=node1 --partition=low {WHOLE_NODE}")
    job.reaches(EVERY)
    want_urgently(cluster, "node1")
    cluster.wait(job.number, lambda: (job.run / "PREEMPTED").exists())
    saved = job.goes_back_to_the_queue()
    asked = int((job.run / "PREEMPTED").read_text().split()[0])
    images = job.shorten()
    return {"job": job, "saved": saved, "asked": asked, "images": images, "log": job.ends()}


def stubborn(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """The same with ranks that hear nothing: they are killed after the grace time."""
    job = Job.begin(cluster, folder, f"--nodelist=node2 --partition=low {WHOLE_NODE}")
    job.reaches(EVERY)
    (rank,) = job.ranks()
    with deaf(rank):
        want_urgently(cluster, "node2")
        saved = job.goes_back_to_the_queue()
    images = job.shorten()
    return {"job": job, "saved": saved, "images": images, "log": job.ends()}


def power_cut(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """The second of two nodes dies, which does not run the job's script."""
    return dies(cluster, folder, "--nodelist=node3,node4 --nodes=2", "node4")


def power_cut_of_the_batch_host(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """The node that runs the job's script dies."""
    return dies(cluster, folder, "--nodelist=node5", "node5")


def dies(cluster: Cluster, folder: Path, sbatch_options: str, node: str) -> dict[str, Any]:
    """The node does, and is started again when the job waits for it."""
    job = Job.begin(cluster, folder, sbatch_options)
    job.reaches(EVERY)
    cluster.call("dcs-node", "kill", node)
    saved = job.goes_back_to_the_queue()
    images = job.shorten()
    cluster.call("dcs-node", "start", node)
    return {"job": job, "saved": saved, "images": images, "log": job.ends()}


def cable(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """A node is cut off and frozen. When it wakes up, another has the job, but it could still write to the disk."""
    job = Job.begin(cluster, folder, "--exclude=node[1-5,8-9]")
    job.reaches(EVERY)
    node = cluster.job(job.number)["BatchHost"]
    (rank,) = job.ranks()
    os.kill(rank, signal.SIGSTOP)
    cluster.call("dcs-node", "net-down", node)
    saved = job.goes_back_to_the_queue()
    images = job.shorten()
    cluster.wait(job.number, lambda: json.loads((job.run / "owner.json").read_text())["attempt"] == 2)
    os.kill(rank, signal.SIGCONT)
    job.ends()
    job.says("a newer attempt of this run has taken over (attempt 2: ")
    cluster.call("dcs-node", "net-up", node)
    return {"job": job, "saved": saved, "images": images, "log": cluster.log(job.number)}


STORIES = (time_is_over, preempted, stubborn, power_cut, power_cut_of_the_batch_host, cable)


@pytest.fixture(scope="module")
def outcomes(slurm, tmp_path_factory) -> Iterator[dict[str, Future]]:
    folder = tmp_path_factory.mktemp("stories")
    with ThreadPoolExecutor(len(STORIES)) as pool:
        yield {story.__name__: pool.submit(story, slurm, folder / story.__name__) for story in STORIES}


@pytest.fixture(scope="module")
def undisturbed(outcomes, tmp_path_factory) -> Callable[[int], dict]:
    """The tensors of a run of one process, to which nothing happens, at any checkpoint that one of the others has."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    longest = max(future.result()["images"] for future in outcomes.values())
    train_alone(run, "--images", longest, "--checkpoint.every", EVERY, "--checkpoint.keep", 999)
    return lambda images: newest_tensors(run, images)


def assert_nothing_happened(story: dict[str, Any], undisturbed: Callable[[int], dict]) -> None:
    """But for the time that it took."""
    run, images = story["job"].run, story["images"]
    assert f"resuming from {run}/checkpoints/{story['saved']:09d}: " in story["log"]
    assert (run / "DONE").read_text() == f"{images}\n"
    assert deviation(newest_tensors(run), undisturbed(images)) < 1e-9
    assert [path.name for path in checkpoint.all_checkpoints(run / "checkpoints") if checkpoint.verify(path)] == []
    records = [json.loads(line)["images"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert records == sorted(set(records))
    assert [record for record in records if record <= story["saved"]] == list(range(16, story["saved"] + 1, 16))


def test_a_job_comes_back_after_its_time_limit(outcomes, undisturbed):
    story = outcomes["time_is_over"].result()
    assert story["saved"] == story["asked"]
    assert f"newest checkpoint: {story['saved']:09d}" in story["log"]
    assert_nothing_happened(story, undisturbed)


def test_a_preempted_job_saves_makes_way_and_comes_back(outcomes, undisturbed):
    story = outcomes["preempted"].result()
    assert story["saved"] == story["asked"]
    assert f"ended at checkpoint {story['saved']:09d} (exit code 0); requeueing" in story["log"]
    assert_nothing_happened(story, undisturbed)


@pytest.mark.parametrize("story", ["stubborn", "power_cut", "power_cut_of_the_batch_host"])
def test_a_job_that_is_ended_by_force_goes_on_from_its_last_checkpoint(story, outcomes, undisturbed):
    assert outcomes[story].result()["saved"] % EVERY == 0
    assert_nothing_happened(outcomes[story].result(), undisturbed)


def test_an_attempt_that_continues_after_the_next_has_begun_writes_nothing(outcomes, undisturbed):
    story = outcomes["cable"].result()
    owner = json.loads((story["job"].run / "owner.json").read_text())
    assert (owner["attempt"], owner["slurm_restart"], owner["ended"]) == (2, "1", True)
    assert_nothing_happened(story, undisturbed)
