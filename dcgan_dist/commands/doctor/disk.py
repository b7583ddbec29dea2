"""The disk of the run's folder: room and speed."""

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dcgan_dist.commands.doctor.case import Case, nearest
from dcgan_dist.commands.doctor.finding import Finding, FoundError, conclude, fail, warn
from dcgan_dist.run import checkpoint
from dcgan_dist.run.console import human_bytes as size
from dcgan_dist.run.folder import RunFolder

PROBED = 64e6  # bytes that are written, at most
CHUNK = 2**20
PATIENCE = 20.0  # seconds that a checkpoint may take; a launcher that is stopped kills its ranks after 30


@dataclass(frozen=True, kw_only=True)
class Space:
    """Room for a run. Bytes."""

    free: float
    """For this user."""
    checkpoint: float
    """One."""
    keep: int
    """Checkpoints that stay."""
    held: float
    """By checkpoints that are there already, and make way for others."""
    pictures: float
    """All sample grids, at most."""


def check_space(case: Case) -> Finding:
    """Free room against what the run will write."""
    folder = RunFolder(case.config.run_dir).checkpoints
    best = checkpoint.best_name(folder)  # which never makes way
    held = sum(
        file.stat().st_size
        for path in checkpoint.all_checkpoints(folder)
        if path.name != best
        for file in path.iterdir()
    )
    model, log = case.config.model, case.config.log
    grids = -(-case.config.images // log.samples_every) + 1
    return judge_space(
        Space(
            free=free_bytes(case.config.run_dir),
            checkpoint=case.networks.checkpoint,
            keep=case.config.checkpoint.keep,
            held=held,
            pictures=grids * log.samples * model.image_size**2 * model.channels,
        )
    )


def judge_space(facts: Space) -> Finding:
    """One checkpoint more than are kept, for the oldest goes when the newest is complete."""
    most = facts.checkpoint * (facts.keep + 1)
    needed = max(most - facts.held, 0) + facts.pictures
    found = (
        f"{size(facts.free)} free; {facts.keep} + 1 checkpoints of {size(facts.checkpoint)} and pictures need up to "
    )
    found += size(needed)
    advice = "make room, keep fewer checkpoints (--checkpoint.keep 2), or name a --run_dir on another disk"
    full = fail("too little room", advice) if facts.free < needed else None
    tight = warn("room for little more than this run", advice) if needed <= facts.free < 2 * needed else None
    return conclude(found, full, tight)


@contextlib.contextmanager
def probing(folder: Path, option: str = "--run_dir") -> Iterator[Path]:
    """A folder of our own where `option` will be written, removed afterwards. Raises FoundError."""
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=nearest(folder)) as probe:
            yield Path(probe)
    except OSError as error:
        lacks = {errno.EFBIG: "raise ulimit -f", errno.ENOSPC: "make room there", errno.EDQUOT: "make room there"}
        advice = (
            f"{lacks.get(error.errno or 0, 'give yourself leave to write there')}, or name another folder by {option}"
        )
        raise FoundError(fail(f"{nearest(folder)} cannot be written ({error.strerror})", advice)) from error


@contextlib.contextmanager
def probing_for(what: str, folder: Path) -> Iterator[Path]:
    """The same for what is only a part of the question; that the folder cannot be written is said by the line disk."""
    with contextlib.ExitStack() as stack:
        try:
            probe = stack.enter_context(probing(folder))
        except FoundError as error:
            found = f"{what} are not known: {error.finding.found}"
            raise FoundError(warn(found, "see the line disk")) from error
        yield probe


def free_bytes(folder: Path) -> int:
    """For this user, on the disk where a folder is or will be."""
    disk = os.statvfs(nearest(folder))
    return disk.f_bavail * disk.f_frsize


def check_disk(case: Case) -> Finding:
    """Writes as a checkpoint is written: a file, to the disk, then its name; and reads it back."""
    count = int(min(case.networks.largest_file, PROBED))
    data = os.urandom(min(count, CHUNK))
    with probing(case.config.run_dir) as folder:
        began = time.monotonic()
        with (folder / "written").open("wb") as file:
            for place in range(0, count, len(data)):
                file.write(data[: count - place])
            file.flush()
            os.fsync(file.fileno())
        seconds = time.monotonic() - began
        (folder / "written").rename(folder / "named")
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        read = (folder / "named").read_bytes()
        same = len(read) == count and read == (data * (count // len(data) + 1))[:count]
    return judge_disk(count, seconds, same, case.networks.checkpoint)


def judge_disk(count: int, seconds: float, same: bool, checkpoint: float) -> Finding:
    """`count` bytes took so many seconds; `same`: they were read back as they were written."""
    rate = count / max(seconds, 1e-9)
    takes = checkpoint / rate
    other = fail("what was written is not what was read", "this disk or its driver is broken: use another --run_dir")
    advice = "a launcher that gets a signal kills its ranks 30 s later, perhaps before their checkpoint is written: "
    slow = warn("the disk is slow", f"{advice}stop by touch RUN/STOP, or use a faster disk")
    return conclude(
        f"{size(count)} written, synced and renamed at {rate / 1e6:,.0f} MB/s; a checkpoint takes {takes:,.1f} s",
        None if same else other,
        slow if takes > PATIENCE else None,
    )
