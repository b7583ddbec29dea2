"""A run's folder: what lies where, and whether it is one."""

import errno
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from dcgan_dist.data.system.storage import make_folder, sync_folder, write_atomically
from dcgan_dist.data.system.workers import available_cores
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.location import redacted
from dcgan_dist.run import signals
from dcgan_dist.run.checkpoint_manifest import is_checkpoint

MEANT = Path("/etc/fstab")
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
        self.first_checkpoint = root / "first_checkpoint"
        self.earlier = root / "earlier"
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
        folders = self.samples, self.checkpoints
        files = self.config, self.environment, self.metrics, self.done, self.preempted
        try:
            if self.root.exists() and not self.root.is_dir():
                raise UsageError(f"--run_dir {self.root}: is a file; name a folder")
            for path in (*folders, *files):
                wanted = "folder" if path in folders else "file"
                if os.path.lexists(path) and not (path.is_dir() if path in folders else path.is_file()):
                    raise UsageError(
                        f"--run_dir {self.root}: {path.name} is no {wanted}, or a link to one that is missing (is its "
                        "disk mounted?); restore it, or move it away"
                    )
            foreign = self.root.is_dir() and not self._is_run() and any(map(self._foreign, self.root.iterdir()))
        except OSError as error:
            raise UsageError(f"--run_dir {self.root}: cannot be used ({error.strerror})") from error
        if foreign:
            raise UsageError(
                f"--run_dir {self.root}: holds other files and no {self.config.name} of a run; name a new folder"
            )
        if not self.config.exists() and (place := _without_its_disk(self.root)):
            raise UsageError(f"--run_dir {self.root}: {place}; mount its disk, or name another folder")

    def probe(self) -> None:
        """Raises UsageError where the folder cannot be made or written: makes something there, and removes it."""
        place = next(path for path in (self.root.absolute(), *self.root.absolute().parents) if path.exists())
        try:
            with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place):
                pass
        except OSError as error:
            raise self._cannot_be_written(error) from error

    def _cannot_be_written(self, error: OSError) -> UsageError:
        return UsageError(f"--run_dir {self.root}: cannot be written ({error.strerror})")

    def had_checkpoint(self) -> str:
        """What in this folder shows that a checkpoint was saved here, whether it is still there or not; else empty.

        Attempts that ended before their first checkpoint show nothing. Raises OSError when the disk does not answer.
        """
        if self.first_checkpoint.exists():
            return self.first_checkpoint.name
        if not self._has_reports():
            return ""
        # of versions that did not write that file
        markers = [self.done.name] if self.done.exists() else [self.preempted.name] if self.stopped_at() else []
        return (markers or [""] if self.checkpoints.exists() else ["reports without a folder of checkpoints"])[0]

    def stopped_at(self) -> int:
        """Images seen at the last stop; 0: there was none, or it came before the first iteration. Raises OSError."""
        with suppress(FileNotFoundError, ValueError):
            return int(self.preempted.read_text().partition("\n")[0])
        return 0

    def _has_reports(self) -> bool:
        return self.metrics.exists() and self.metrics.stat().st_size > 0

    def note_checkpoint(self, images: int) -> None:
        """Notes that a checkpoint was saved here: without one, training never begins at 0 again by itself.

        Where it cannot be written, the next checkpoint is noted.
        """
        if not self.first_checkpoint.exists():
            with suppress(UserError):
                write_atomically(self.first_checkpoint, f"{images}\n".encode())

    def put_aside(self, say: Callable[[str], None]) -> None:
        """Keeps what earlier attempts reported and drew, and their options, when this one goes on from none of them.

        Raises UsageError when it cannot.
        """
        # the W&B run, too: it would refuse reports at images that it has seen; reports and samples last, for an
        # attempt that is killed meanwhile leaves the rest to the next one as long as they are here
        moved = self.root / "wandb_id", self.tensorboard, self.first_checkpoint, self.samples, self.metrics
        try:
            if not self._has_reports() and not (self.samples.is_dir() and any(self.samples.iterdir())):
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
        except OSError as error:
            raise self._cannot_be_written(error) from error
        say(f"no checkpoint of {self.root} is used; the reports and samples of earlier attempts are kept in {kept}")

    def prepare(self, config_yaml: str, world: dict[str, Any], *, private: bool = False) -> None:
        """Makes the folder, or takes over one that an earlier attempt made. Raises UsageError for any other.

        `private`: the configuration holds secrets, which the owner alone may read.
        """
        self.check()
        try:
            for folder in (self.root, self.samples, self.checkpoints):
                make_folder(folder)
            self._remove_markers()
        except OSError as error:
            raise self._cannot_be_written(error) from error
        write_atomically(self.config, config_yaml.encode(), private=private)
        write_atomically(self.environment, json.dumps(environment() | world, indent=2).encode())

    def _is_run(self) -> bool:
        """Whether training saved a checkpoint here, or wrote this config.yaml; other programs have such files, too."""
        if self.first_checkpoint.exists() or any(map(is_checkpoint, self.checkpoints.glob("*"))):
            return True
        try:
            return re.search("^images:", self.config.read_text(errors="replace"), re.MULTILINE) is not None
        except FileNotFoundError:
            return False
        except PermissionError:  # with secrets, of another user of the run
            return True

    def _foreign(self, path: Path) -> bool:
        """Whether it is nothing that an attempt, or a doctor, leaves that was killed before config.yaml was there."""
        own = {self.stop, self.save, self.samples, self.checkpoints, self.stacks, self.preempted}
        own.add(self.root / "owner.json")
        return path not in own and not path.name.startswith((f".{self.config.name}.", ".owner.", ".doctor-"))

    def mark(self, marker: Path, text: str) -> None:
        """The end of an attempt, which has obeyed the STOP that is there. Raises UserError."""
        write_atomically(marker, f"{text}\n{self._this_stop()}".encode())

    def asks_to_stop(self) -> bool:
        """Whether the next attempt is to stop at once: there is a STOP, and no attempt has obeyed it yet."""
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
        """Removes those of an earlier attempt. A STOP that none has obeyed yet is meant for this one: it stays."""
        stop = self._this_stop()
        stale = self._was_obeyed(stop) or signals.is_for_another_attempt(self.stop)
        if stale and stop == self._this_stop():  # none that came meanwhile
            self.stop.unlink(missing_ok=True)
        for marker in (self.done, self.preempted):
            marker.unlink(missing_ok=True)


def _without_its_disk(folder: Path) -> str | None:
    """Which place of a path shows that a disk is not mounted, in words; None: none, as far as can be known.

    A container or chroot may have the fstab of another system, and then none of its mount points.
    """
    for path in (folder.absolute(), *folder.absolute().parents):
        if path.is_symlink() and not path.exists():
            return f"{path} is a link to {path.readlink()}, which is missing"
    with suppress(OSError):
        mounted = {partition.mountpoint for partition in psutil.disk_partitions(all=True)}
        rows = [line.split() for line in MEANT.read_text().splitlines()]
        meant = {_unescaped(row[1]) for row in rows if len(row) > 1 and row[0][0] != "#"}
        meant.discard("/")
        for path in (folder.resolve(), *folder.resolve().parents) if meant & mounted else ():
            if str(path) in mounted:
                break
            if str(path) in meant and path.is_dir():
                return f"{path} is a mount point of {MEANT}, where nothing is mounted"
    return None


def _unescaped(name: str) -> str:
    return name.replace("\\040", " ").replace("\\134", "\\")


def _move(path: Path, to: Path) -> None:
    """A folder that must stay where it is, a mount point or a link to one elsewhere, is emptied. Raises OSError."""
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
    """What the run ran on: versions, commit, machine, devices, command. No environment variables: they hold secrets."""
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
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_state(package: Path) -> dict[str, Any]:
    """Commit of the package's source, and whether its files differ from that; None where git does not track them.

    A repository around them, such as that of the project whose virtual environment they lie in, says nothing of them.
    """
    commit = dirty = None
    with suppress(OSError, subprocess.SubprocessError):
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        commit, changes = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain", "--", ".")
        dirty = bool(changes)
    return {"git_commit": commit, "git_dirty": dirty}


def _git(folder: Path, *arguments: str) -> str:
    # a hook of git, or a job that it started, has variables that name another repository
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5, env=env).stdout.strip()
