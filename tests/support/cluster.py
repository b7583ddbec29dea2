"""A SLURM cluster, as its users see it."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.launching import ROOT, environment
from support.waiting import LIMIT


@dataclass(frozen=True)
class Cluster:
    """Its commands. A job's log lies in `logs`."""

    state: Path
    logs: Path

    def call(self, *command: object, **variables: object) -> str:
        """What a client command says: sbatch, squeue, scontrol, scancel, srun, dcs-node."""
        variables |= {"SLURM_CONF": self.state / "etc/slurm.conf", "PATH": f"{self.state}/bin:{environment()['PATH']}"}
        return subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env=environment(**variables),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=True,
        ).stdout.strip()

    def train(self, sbatch_options: str, *options: object, **variables: object) -> str:
        """Submits slurm/train.sh; returns the job's number."""
        log = ["--output", self.logs / "%j.log"]
        command = ["sbatch", "--parsable", *log, *sbatch_options.split(), "slurm/train.sh", *options]
        return self.call(*command, **variables)

    def log(self, job: str) -> str:
        return (self.logs / f"{job}.log").read_text()

    def job(self, job: str) -> dict[str, str]:
        """The fields of scontrol, such as JobState, Restarts, ExitCode."""
        fields = self.call("scontrol", "show", "job", "-o", job).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait(self, job: str, happened: Callable[[], object]) -> None:
        """Waits until something has happened in a job that must not end before."""
        deadline = time.monotonic() + LIMIT
        while not happened():
            state = self.call("squeue", "--noheader", f"--jobs={job}", "--format=%T")
            assert state, f"job {job} ended too early:\n{self.log(job)}"
            assert time.monotonic() < deadline, f"job {job} is still {state} after {LIMIT} s:\n{self.log(job)}"
            time.sleep(0.5)

    def end(self, job: str) -> dict[str, str]:
        """Waits for the end of a job; its fields."""
        deadline = time.monotonic() + LIMIT
        while self.call("squeue", "--noheader", f"--jobs={job}"):
            assert time.monotonic() < deadline, f"job {job} has not ended after {LIMIT} s:\n{self.log(job)}"
            time.sleep(0.5)
        return self.job(job)
