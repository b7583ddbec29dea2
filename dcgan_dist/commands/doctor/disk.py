"""The disk of the run's folder: space, speed and locks."""

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from dcgan_dist.commands.doctor.case import Case
from dcgan_dist.commands.doctor.finding import Finding, FoundError, conclude, fail, ok, warn
from dcgan_dist.commands.words import counted
from dcgan_dist.data.storage import sync_folder
from dcgan_dist.run import checkpoint
from dcgan_dist.run.console import human_bytes as size
from dcgan_dist.run.folder import RunFolder

PROBED = 64e6  # bytes that are written, at most
CHUNK = 2**20
PATIENCE = 20.0  # seconds that a checkpoint may take; a launcher that is stopped kills its ranks after 30
SECOND = "import fcntl, sys; getattr(fcntl, sys.argv[2])(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def nearest(path: Path) -> Path:
    """The path itself if it is a folder, else the nearest one above it."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def free_bytes(folder: Path) -> int:
    """For this user, on the disk where a folder is or will be."""
    disk = os.statvfs(nearest(folder))
    return disk.f_bavail * disk.f_frsize


@contextlib.contextmanager
def probing(folder: Path, option: str = "--run_dir") -> Iterator[Path]:
    """A folder of our own where `option` will be written, removed afterwards. Raises FoundError."""
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=nearest(folder)) as probe:
            yield Path(probe)
    except OSError as error:
        ways = {errno.EFBIG: "raise ulimit -f", errno.ENOSPC: "free some space", errno.EDQUOT: "free some space"}
        way = ways.get(error.errno or 0, "fix the permissions")
        advice = f"{way}, or set {option} to another folder"
        raise FoundError(fail(f"cannot write to {nearest(folder)} ({error.strerror})", advice)) from error


def check_space(case: Case) -> Finding:
    """Free space against what the run will write."""
    folder, config = RunFolder(case.config.run_dir).checkpoints, case.config
    best = checkpoint.best_name(folder)  # which is never removed
    held = sum(
        file.stat().st_size
        for path in checkpoint.all_checkpoints(folder)
        if path.name != best
        for file in path.iterdir()
    )
    grids = -(-config.images // config.log.samples_every) + 1
    samples = grids * config.log.samples * config.model.image_size**2 * config.model.channels
    free = free_bytes(config.run_dir)
    return judge_space(free, case.networks.checkpoint, config.checkpoint.keep, held=held, samples=samples)


def judge_space(free: float, checkpoint: float, keep: int, *, held: float, samples: float) -> Finding:
    """In bytes. One checkpoint more than are kept: the oldest is removed when the newest is complete.

    `held`: by checkpoints of the run that will be removed; `samples`: all grids of samples, at most.
    """
    needed = max(checkpoint * (keep + 1) - held, 0) + samples
    found = f"{size(free)} free; up to {size(needed)} needed for {counted(keep + 1, 'checkpoint')} of "
    found += f"{size(checkpoint)} and the samples"
    advice = "free some space, keep fewer checkpoints (--checkpoint.keep 2), or set --run_dir to another disk"
    full = fail("not enough disk space", advice) if free < needed else None
    tight = warn("disk space is tight", advice) if needed <= free < 2 * needed else None
    return conclude(found, full, tight)


def check_disk(case: Case) -> Finding:
    """Writes as a checkpoint is written: a file, to the disk, then its name."""
    largest = case.networks.largest_file
    count = int(min(largest, PROBED))
    data = os.urandom(min(count, CHUNK))
    with probing(case.config.run_dir) as folder:
        began = time.monotonic()
        with (folder / "written").open("wb") as file:
            for place in range(0, count, len(data)):
                file.write(data[: count - place])
            file.flush()
            os.fsync(file.fileno())
            seconds = time.monotonic() - began
            file.truncate(largest)  # ulimit -f may allow the probe and not this
        (folder / "written").rename(folder / "named")
        sync_folder(folder)
    return judge_disk(count, seconds, case.networks.checkpoint)


def judge_disk(count: int, seconds: float, checkpoint: float) -> Finding:
    """`count` bytes took so many seconds; `checkpoint`: bytes of one."""
    rate = count / max(seconds, 1e-9)
    takes = checkpoint / rate
    late = "a launcher kills its ranks 30 s after a signal, perhaps before the checkpoint is written"
    slow = warn(f"the disk is slow: {late}", "use a faster disk, or stop the run with `touch RUN/STOP`")
    found = f"{size(count)} written and synced at {rate / 1e6:,.0f} MB/s; a checkpoint takes {takes:,.1f} s"
    return conclude(found, slow if takes > PATIENCE else None)


def check_locks(case: Case) -> Finding:
    """The kind of locks that a run's folder uses: it reaches other hosts where the file server supports it."""
    try:
        with probing(case.config.run_dir) as folder:
            return judge_locks(*try_lock(folder, "lockf"), option="--run_dir", without=warn) or ok("file locks work")
    except FoundError as error:
        raise FoundError(warn(f"not tested: {error.finding.found}", "see the line disk")) from error


def try_lock(folder: Path, kind: Literal["lockf", "flock"]) -> tuple[str | None, bool]:
    """Why a file in the folder cannot be locked, None if it can; and whether a second process was kept out."""
    path = folder / kind
    with path.open("w") as file:
        try:
            getattr(fcntl, kind)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.strerror or "no reason given", False
        command = [sys.executable, "-S", "-c", SECOND, path, kind]
        return None, subprocess.run(command, capture_output=True, check=False).returncode != 0


def judge_locks(
    refused: str | None, excludes: bool, *, option: str, without: Callable[[str, str], Finding]
) -> Finding | None:
    """None: all is well. `without`: how bad it is to have no locks: a run's folder then relies on its heartbeat alone,
    but in a cache no rank knows what another one is fetching.
    """
    advice = f"mount the file system with locks (Lustre: -o flock; NFS: without nolock), or set {option} to another one"
    if refused is not None:
        return without(f"files cannot be locked ({refused})", advice)
    return None if excludes else warn("file locks have no effect: two processes held the same one", advice)
