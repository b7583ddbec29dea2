"""A run's folder: its paths, and the checks before it is used."""

import errno
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from dcgan_dist.data.system.storage import make_folder, sync_folder, write_atomically
from dcgan_dist.data.system.workers import available_cores
from dcgan_dist.errors import UsageError, UserError, os_error_as_user_error
from dcgan_dist.location import redacted
from dcgan_dist.run import signals
from dcgan_dist.run.checkpoint_manifest import is_checkpoint
from dcgan_dist.text import Say

FSTAB = Path("/etc/fstab")
PACKAGES = (
    "dcgan_dist", "torch", "torchvision", "accelerate", "webdataset", "wandb", "numpy", "safetensors", "simplejpeg",
)  # fmt: skip


class RunFolder:
    """Paths inside `runs/NAME`."""

    def __init__(self, root: Path) -> None:
        self.root, self.option = root, f"--run_dir {root}"
        self.config = root / "config.yaml"
        self.environment = root / "environment.json"
        self.metrics = root / "metrics.jsonl"
        self.log = root / "log.txt"
        self.attempts = root / "attempts.jsonl"
        self.page = root / "report.html"
        self.real = root / "real.png"
        self.samples = root / "samples"
        self.checkpoints = root / "checkpoints"
        self.first_checkpoint = root / "first_checkpoint"
        self.earlier = root / "earlier"
        self.tensorboard = root / "tensorboard"
        self.trackers = root / "trackers"
        self.stacks = root / "stacks"
        self.stop = root / "STOP"
        self.save = root / "SAVE"
        self.done = root / "DONE"
        self.preempted = root / "PREEMPTED"

    def sample(self, images: int) -> Path:
        """The grid of samples at that many images."""
        return self.samples / f"{images:09d}.png"

    def check(self) -> None:
        """Raises UsageError for a folder that is not a run's and cannot become one. Writes nothing."""
        folders = self.samples, self.checkpoints
        files = self.config, self.environment, self.metrics, self.done, self.preempted
        with os_error_as_user_error(self.option, "cannot be used", UsageError):
            if self.root.exists() and not self.root.is_dir():
                raise UsageError(f"{self.option}: is a file; name a folder")
            for path in (*folders, *files):
                wanted = "folder" if path in folders else "file"
                if os.path.lexists(path) and not (path.is_dir() if path in folders else path.is_file()):
                    raise UsageError(
                        f"{self.option}: {path.name} is no {wanted}, or a link to one that is missing (is its disk "
                        "mounted?); restore it, or move it elsewhere"
                    )
            foreign = self.root.is_dir() and not self._is_run() and any(map(self._foreign, self.root.iterdir()))
        if foreign:
            raise UsageError(f"{self.option}: holds other files and no {self.config.name} of a run; name a new folder")
        if not self.config.exists() and (place := _not_mounted(self.root)):
            raise UsageError(f"{self.option}: {place}; mount its disk, or name another folder")

    def probe(self) -> None:
        """Raises UsageError if the folder cannot be made or written: makes a temporary folder there."""
        place = next(path for path in (self.root.absolute(), *self.root.absolute().parents) if path.exists())
        with self._writing(), tempfile.TemporaryDirectory(prefix=".doctor-", dir=place):
            pass

    def _writing(self) -> AbstractContextManager[None]:
        return os_error_as_user_error(self.option, "cannot be written", UsageError)

    def note_checkpoint(self, images: int) -> None:
        """Records that a checkpoint was saved here, so that training never restarts at 0 if all are lost."""
        if not self.first_checkpoint.exists():
            with suppress(UserError):  # the next checkpoint tries again
                write_atomically(self.first_checkpoint, f"{images}\n".encode())

    def put_aside(self, say: Say) -> None:
        """Moves reports, samples, options of earlier attempts away: this one resumes from none. Raises UsageError."""
        # the W&B run, too, because it refuses reports at images that it has seen; reports and samples last, because an
        # attempt continues what a killed one began only while they are here
        shown = self.attempts, self.page, self.real
        tools = self.root / "wandb_id", self.tensorboard, self.trackers
        moved = *tools, self.first_checkpoint, *shown, self.samples, self.metrics
        with self._writing():
            has_reports = self.metrics.exists() and self.metrics.stat().st_size > 0
            if not has_reports and not (self.samples.is_dir() and any(self.samples.iterdir())):
                self.real.unlink(missing_ok=True)  # the next attempt may have other data
                return
            numbers = [int(path.name) for path in self.earlier.glob("[0-9]*") if path.name.isdecimal()]
            kept = self.earlier / str(max(numbers, default=0) + 1)
            make_folder(kept)
            for path in filter(Path.exists, (self.config, self.environment)):
                shutil.copy2(path, kept)
            for path in filter(Path.exists, moved):
                _move(path, kept / path.name)
            sync_folder(kept)
            sync_folder(self.root)
        say(f"no checkpoint of {self.root} is used; the reports and samples of earlier attempts are kept in {kept}")

    def prepare(self, config_yaml: str, world: dict[str, Any], *, private: bool = False) -> dict[str, Any]:
        """Makes the folder, or takes over one that an earlier attempt made. Raises UsageError for any other.

        Returns the content of environment.json: the environment, and `world`.
        `private`: only the owner may read the configuration, because it holds secrets.
        """
        self.check()
        with self._writing():
            for folder in (self.root, self.samples, self.checkpoints):
                make_folder(folder)
            self._remove_markers()
        write_atomically(self.config, config_yaml.encode(), private=private)
        found = environment() | world
        write_atomically(self.environment, json.dumps(found, indent=2).encode())
        return found

    def _is_run(self) -> bool:
        """Whether training saved a checkpoint here, or wrote this config.yaml, which other programs use, too."""
        if self.first_checkpoint.exists() or any(map(is_checkpoint, self.checkpoints.glob("*"))):
            return True
        try:
            return re.search("^images:", self.config.read_text(errors="replace"), re.MULTILINE) is not None
        except FileNotFoundError:
            return False
        except PermissionError:  # it holds secrets of another user
            return True

    def _foreign(self, path: Path) -> bool:
        """Whether it is not from an attempt or a doctor that was killed before config.yaml was written."""
        own = {self.stop, self.save, self.samples, self.checkpoints, self.stacks, self.preempted}
        own.add(self.root / "owner.json")
        return path not in own and not path.name.startswith((f".{self.config.name}.", ".owner.", ".doctor-"))

    def mark(self, marker: Path, text: str) -> None:
        """Records the end of an attempt, and that it obeyed the file STOP. Raises UserError."""
        write_atomically(marker, f"{text}\n{self._this_stop()}".encode())

    def asks_to_stop(self) -> bool:
        """Whether the next attempt would stop at once: no attempt has obeyed the file STOP yet."""
        return signals.asks_to_stop(self.stop) and not self._was_obeyed(self._this_stop())

    def _was_obeyed(self, stop: str) -> bool:
        lines: list[str] = []
        for marker in (self.done, self.preempted):
            with suppress(OSError):
                lines += marker.read_text(errors="replace").splitlines(keepends=True)
        return stop in lines

    def _this_stop(self) -> str:
        """A line that identifies the file STOP, empty without one."""
        with suppress(OSError):
            return f"STOP of {self.stop.stat().st_mtime_ns}\n"
        return ""

    def _remove_markers(self) -> None:
        """Removes those of earlier attempts, but not a STOP that none has obeyed: it is for this attempt."""
        stop = self._this_stop()
        stale = self._was_obeyed(stop) or signals.is_for_another_attempt(self.stop)
        if stale and stop == self._this_stop():  # it was not made meanwhile
            self.stop.unlink(missing_ok=True)
        for marker in (self.done, self.preempted):
            marker.unlink(missing_ok=True)


def _not_mounted(folder: Path) -> str | None:
    """Why a disk on the path seems not to be mounted; None: it does not.

    A container or chroot may have the fstab of another system, with none of its mount points.
    """
    for path in (folder.absolute(), *folder.absolute().parents):
        if path.is_symlink() and not path.exists():
            return f"{path} is a link to {path.readlink()}, which is missing"
    with suppress(OSError):
        mounted = {partition.mountpoint for partition in psutil.disk_partitions(all=True)}
        rows = [line.split() for line in FSTAB.read_text().splitlines() if line.strip()[:1] != "#"]
        points = {row[1].replace("\\040", " ").replace("\\134", "\\") for row in rows if len(row) > 1} - {"/"}
        for path in (folder.resolve(), *folder.resolve().parents) if points & mounted else ():
            if str(path) in mounted:
                break
            if str(path) in points and path.is_dir():
                return f"{path} is a mount point of {FSTAB}, where nothing is mounted"
    return None


def _move(path: Path, to: Path) -> None:
    """Moves a file or folder; of a mount point or a link to a folder, only the content. Raises OSError."""
    try:
        if not (path.is_symlink() and path.is_dir()):
            path.rename(to)
            return
    except OSError as error:
        if error.errno != errno.EBUSY or not path.is_dir():
            raise
    make_folder(to)
    for child in path.iterdir():
        shutil.move(child, to)


def environment() -> dict[str, Any]:
    """Versions, commit, machine, devices, command. No environment variables, which may hold secrets."""
    import torch  # only now: commands that only look into the folder need not wait for it

    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [redacted(word, word) for word in sys.argv],
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        **git_state(Path(__file__).parents[1]),
        "machine": platform.node(),
        "system": platform.platform(),
        "cpu_cores": available_cores(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "slurm_restart": os.environ.get("SLURM_RESTART_COUNT"),
    }


def _version(name: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(name)
    return None


def git_state(package: Path) -> dict[str, Any]:
    """Commit of the package's source, and whether its files differ from it; None if git does not track them.

    They may be in the virtual environment of a project with a repository of its own, which does not count.
    """
    with suppress(OSError, subprocess.SubprocessError):
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        commit, changes = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain", "--", ".")
        return {"git_commit": commit, "git_dirty": bool(changes)}
    return {"git_commit": None, "git_dirty": None}


def git_remote(package: Path) -> str | None:
    """The URL of the remote of the package's source, which may hold secrets; None if git does not track it."""
    with suppress(OSError, subprocess.SubprocessError):
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        return _git(package, "remote", "get-url", "origin")
    return None


def _git(folder: Path, *arguments: str) -> str:
    # inside a hook of git, variables name another repository
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5, env=env).stdout.strip()
