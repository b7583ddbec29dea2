"""A run's folder: what lies where, and whether it is one."""

import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dcgan_dist.data.storage import write_atomically
from dcgan_dist.data.workers import available_cores
from dcgan_dist.errors import UsageError
from dcgan_dist.location import redacted
from dcgan_dist.run import signals

PACKAGES = (
    "dcgan_dist",
    "torch",
    "torchvision",
    "accelerate",
    "webdataset",
    "wandb",
    "numpy",
    "safetensors",
    "simplejpeg",
)


class RunFolder:
    """Paths inside `runs/NAME`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.environment = root / "environment.json"
        self.metrics = root / "metrics.jsonl"
        self.samples = root / "samples"
        self.checkpoints = root / "checkpoints"
        self.tensorboard = root / "tensorboard"
        self.stacks = root / "stacks"
        self.stop = root / "STOP"
        self.save = root / "SAVE"
        self.done = root / "DONE"
        self.preempted = root / "PREEMPTED"

    def sample(self, images: int) -> Path:
        """The grid of samples at that many images."""
        return self.samples / f"{images:09d}.png"

    def check(self) -> None:
        """Raises UsageError for a folder that is no run's, or can't be one. Writes nothing."""
        try:
            if self.root.exists() and not self.root.is_dir():
                raise UsageError(f"--run_dir {self.root}: is a file; name a folder")
            foreign = self.root.is_dir() and not self.config.exists() and any(map(self._foreign, self.root.iterdir()))
        except OSError as error:
            raise UsageError(f"--run_dir {self.root}: cannot be used ({error.strerror})") from error
        if foreign:
            raise UsageError(
                f"--run_dir {self.root}: holds other files and no {self.config.name} of a run; name a new folder"
            )

    def prepare(self, config_yaml: str, world: dict[str, Any], *, private: bool = False) -> None:
        """Makes the folder, or takes over one that an earlier life of the run made. Raises UsageError for any other.

        `private`: the configuration holds secrets, which the owner alone may read.
        """
        self.check()
        try:
            for folder in (self.root, self.samples, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
            self._remove_markers()
        except OSError as error:
            raise UsageError(f"--run_dir {self.root}: cannot be written ({error.strerror})") from error
        write_atomically(self.config, config_yaml.encode(), private=private)
        write_atomically(self.environment, json.dumps(environment() | world, indent=2).encode())

    def _foreign(self, path: Path) -> bool:
        """Whether it is nothing that a life, or a doctor, leaves that was killed before config.yaml was there."""
        own = (self.stop, self.save, self.samples, self.checkpoints, self.stacks, self.root / "owner.json")
        return path not in own and not path.name.startswith((f".{self.config.name}.", ".owner.", ".doctor-"))

    def mark(self, marker: Path, text: str) -> None:
        """The end of a life, which has obeyed the STOP that is there. Raises UserError."""
        write_atomically(marker, f"{text}\n{self._this_stop()}".encode())

    def asks_to_stop(self) -> bool:
        """Whether the next life is to stop at once: there is a STOP, and no life has obeyed it yet."""
        return signals.asks_to_stop(self.stop) and not self._was_obeyed(self._this_stop())

    def _was_obeyed(self, stop: str) -> bool:
        lines: list[str] = []
        for marker in (self.done, self.preempted):
            with suppress(OSError):
                lines += marker.read_text(errors="replace").splitlines(keepends=True)
        return stop in lines

    def _this_stop(self) -> str:
        """A line that tells the file STOP from one that is made later, empty without one; no clocks are compared."""
        with suppress(OSError):
            return f"STOP of {self.stop.stat().st_mtime_ns}\n"
        return ""

    def _remove_markers(self) -> None:
        """Removes those of an earlier life. A STOP that no life has obeyed yet is meant for this one: it stays."""
        stop = self._this_stop()
        stale = self._was_obeyed(stop) or signals.is_for_another_life(self.stop)
        if stale and stop == self._this_stop():  # none that came meanwhile
            self.stop.unlink(missing_ok=True)
        for marker in (self.done, self.preempted):
            marker.unlink(missing_ok=True)


def environment() -> dict[str, Any]:
    """What the run ran on: versions, commit, machine, devices, command. No environment variables: they hold secrets."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [redacted(word, word) for word in sys.argv],
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "machine": platform.node(),
        "system": platform.platform(),
        "cpu_cores": available_cores(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "slurm_restart": os.environ.get("SLURM_RESTART_COUNT"),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the source, if it runs from a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
