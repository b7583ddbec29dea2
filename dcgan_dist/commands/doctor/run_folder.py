"""The run's folder, and its disk."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from dcgan_dist.commands.doctor.context import Context
from dcgan_dist.commands.doctor.finding import Finding, FoundError, conclude, fail, ok, warn
from dcgan_dist.data.reading.stream import StreamUrls
from dcgan_dist.data.system.storage import sync_folder
from dcgan_dist.errors import UserError
from dcgan_dist.run import checkpoint, resume
from dcgan_dist.run.console import human_bytes as size
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.lease import Lease

PROBED = 64e6  # bytes that are written, at most
SLOW_SAVE = 20.0  # seconds; a launcher kills its ranks 30 s after a signal


def nearest(path: Path) -> Path:
    """The path if it is a folder, else its nearest parent that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def free_bytes(folder: Path) -> int:
    """Bytes for this user, on the disk of a folder that may not exist yet."""
    return shutil.disk_usage(nearest(folder)).free


@contextlib.contextmanager
def probing(folder: Path, option: str = "--run_dir") -> Iterator[Path]:
    """A temporary folder where `option` will be written. Raises FoundError."""
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=nearest(folder)) as probe:
            yield Path(probe)
    except OSError as error:
        advice = f"free some space, or fix the permissions or ulimit -f, or set {option} to another folder"
        raise FoundError(fail(f"cannot write to {nearest(folder)} ({error.strerror})", advice)) from error


def check_disk(context: Context) -> Finding:
    """Free space, and the speed of a synced file."""
    config, networks = context.config, context.networks
    folder = RunFolder(config.run_dir).checkpoints
    others = [path for path in checkpoint.all_checkpoints(folder) if path.name != checkpoint.best_name(folder)]
    held = sum(file.stat().st_size for path in others for file in path.iterdir())  # the best one is never removed
    grids = -(-config.images // config.log.samples_every) + 1
    samples = grids * config.log.samples * config.model.image_size**2 * config.model.channels
    # one more than are kept, because the oldest is removed after the newest is complete
    needed = max(networks.checkpoint * (config.checkpoint.keep + 1) - held, 0) + samples
    data = os.urandom(int(min(networks.largest_file, PROBED)))
    with probing(config.run_dir) as probe:
        began = time.monotonic()
        with (probe / "written").open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            rate = len(data) / (time.monotonic() - began)
            file.truncate(networks.largest_file)  # ulimit -f may allow the probe and not this
        (probe / "written").rename(probe / "named")
        sync_folder(probe)
    return judge_disk(free_bytes(config.run_dir), needed, networks.checkpoint, rate)


def judge_disk(free: float, needed: float, checkpoint: float, rate: float) -> Finding:
    """In bytes: free, needed by the run, and of a checkpoint; `rate`: bytes per second to disk."""
    seconds = checkpoint / rate
    found = f"{size(free)} free, up to {size(needed)} needed; a checkpoint of {size(checkpoint)} takes {seconds:,.1f} s"
    advice = "free some space, keep fewer checkpoints (--checkpoint.keep 2), or set --run_dir to another disk"
    late = "the disk is slow: a launcher kills its ranks 30 s after a signal, perhaps before a checkpoint is written"
    return conclude(
        found,
        fail("not enough disk space", advice) if free < needed else None,
        warn("disk space is tight", advice) if needed <= free < 2 * needed else None,
        warn(late, "use a faster disk, or stop the run with `touch RUN/STOP`") if seconds > SLOW_SAVE else None,
    )


def check_locks(context: Context) -> Finding:
    """Whether files in the run's folder can be locked."""
    try:
        with probing(context.config.run_dir) as folder:
            problem = lock_problem(folder, fcntl.lockf, "--run_dir")
    except FoundError as error:
        raise FoundError(warn(f"not tested: {error.args[0].found}", "see the line disk")) from error
    # a warning: without locks, a second job notices the heartbeat of the first
    return warn(problem.found, problem.advice) if problem else ok("files can be locked")


def lock_problem(folder: Path, lock: Callable[[TextIO, int], None], option: str) -> Finding | None:
    """Why a file in the folder cannot be locked; None: it can."""
    with (folder / "lock").open("w") as file:
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            advice = f"mount it with locks (Lustre: -o flock; NFS: without nolock), or set {option} to another disk"
            return fail(f"files cannot be locked ({error.strerror})", advice)
    return None


def check_run_dir(context: Context) -> Finding:
    """The checks with which training starts; changes nothing. Raises UserError where training would."""
    folder = RunFolder(context.config.run_dir)
    folder.check()
    Lease(folder.root, lambda _: None).refuse_other()
    lines: list[str] = []
    config = replace(context.config, precision=context.arithmetic.name)
    try:
        data = context.data or StreamUrls()  # the embedded set is not made for this: see below
    except UserError:
        data = StreamUrls()  # see the line shards
    found = resume.find(config, folder, data, lines.append)
    given = config.data.shards or config.data.pipeline
    if found is not None and not (given or "data.shards" in config.resume.allow_changes):
        trained = checkpoint.load_state(found)
        if trained["config"].get("data.shards"):
            raise resume.other_data(found, trained, config.data.faces)
    state = "is new" if not folder.root.exists() else "holds no checkpoint yet"
    if found is not None:
        inside = found.parent.resolve() == folder.checkpoints.resolve()
        state = f"resumes from checkpoint {found.name if inside else found} ({config.resume.source})"
    damaged = sum(line.startswith("WARNING") for line in lines)
    few = f"{damaged} newer checkpoint{'s are' if damaged > 1 else ' is'} damaged"
    stop = f"remove {folder.stop}, unless the run is meant to stop"
    return conclude(
        f"{folder.root} {state}",
        warn(few, "training ignores them; to use them, restore them from a copy") if damaged else None,
        warn("the file STOP exists, and will stop the run at once", stop) if folder.asks_to_stop() else None,
    )
