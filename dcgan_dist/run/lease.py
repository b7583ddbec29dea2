"""One job at a time on a run's folder, and a number for each attempt to train it.

    RUN/owner.json      the job that has the run, or had it last; its time of change is the owner's heartbeat
    RUN/.owner.lock     locked by the owner; the lock ends with its process, however it ends

Locks do not reach other hosts on every file system, so an owner on another host is watched for its heartbeat: whether
the time of change changes, without comparing clocks. An owner that was taken for dead, such as a node that was cut off,
may come back: before it publishes anything it checks that it still owns the run (`check`).
"""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from dcgan_dist.data.system.locks import is_at, lock_for_process, open_shared
from dcgan_dist.data.system.storage import make_folder, process_exists, write_atomically
from dcgan_dist.errors import UsageError, UserError, os_error_as_user_error
from dcgan_dist.text import Say

BEAT = 5.0  # seconds between two heartbeats
PATIENCE = 30.0  # seconds without one after which an owner on another host is taken for dead
GRACE = 3.0  # seconds in which a process that is ending releases its lock


@dataclass(frozen=True, kw_only=True)
class Owner:
    """What owner.json holds."""

    attempt: int  # 1 for a run's first attempt, and one more for each that follows
    host: str
    pid: int
    slurm_job: str | None
    slurm_restart: str | None
    since: str  # UTC, ISO 8601
    ended: bool = False  # the attempt ended, and was not killed

    def __str__(self) -> str:
        job = f", SLURM job {self.slurm_job}" if self.slurm_job else ""
        restart = f" (restart {self.slurm_restart})" if job and self.slurm_restart else ""
        return f"host {self.host}, pid {self.pid}{job}{restart}, since {self.since}"


class Lease:
    """The main rank's hold on the run's folder."""

    def __init__(self, root: Path, say: Say = print, *, beat: float = BEAT, patience: float = PATIENCE) -> None:
        self.owner: Owner | None = None  # this attempt, once it has the run
        self._root, self._file, self._say = root, root / "owner.json", say
        self.say_once = cache(say)
        self._beat_every, self._patience = beat, patience
        self._descriptors: list[int] = []
        self._released = threading.Event()
        self._beating: threading.Thread | None = None

    @property
    def attempt(self) -> int:
        """Number of this attempt; 0 without a lease."""
        return self.owner.attempt if self.owner else 0

    def take(self, *, new: bool = False) -> None:
        """Takes the run, unless this attempt has it. Raises UsageError when another job has it.

        `new`: there was no run; the folder is made. Without it and without a folder, nothing happens.
        """
        if self.owner is None and (new or self._root.is_dir()):
            with os_error_as_user_error(f"--run_dir {self._root}", "cannot be written", UsageError):
                make_folder(self._root)
                self._take(new)

    def _take(self, new: bool) -> None:
        path, locked = self._root / ".owner.lock", None
        # the folder may be replaced before the lock is taken, and the lock of a removed file excludes no other job
        while not (self._descriptors and is_at(path, self._descriptors[-1])):
            self._close()
            self._descriptors.append(open_shared(path))
            locked = lock_for_process(self._descriptors[-1], GRACE)
        before = self._read()
        me = _successor(before)
        # another job may have begun a run since this one found that there was none
        if (new and before) or self._taken(before, me, locked):
            self.release()
            raise self._refusal(before or "it has just begun")
        write_atomically(self._file, json.dumps(asdict(me), indent=2).encode())
        self.owner = me
        self._descriptors.append(os.open(self._file, os.O_RDWR))
        self._beating = threading.Thread(target=self._beat, args=(self._descriptors[-1],), name="lease", daemon=True)
        self._beating.start()

    def _taken(self, before: Owner | None, me: Owner, locked: bool | None) -> bool:
        """Whether a running job has the run. `locked`: whether the lock was free; None: there are no locks here."""
        if before and me.slurm_job and before.slurm_job == me.slurm_job and before.slurm_restart != me.slurm_restart:
            return False  # SLURM has ended that attempt
        if locked is False:
            return True
        if before is None or before.ended:
            return False
        if before.host == me.host and (locked or not process_exists(before.pid)):
            return False
        self._say(
            f"the run's last owner ({before}) has not recorded its end; waiting up to {self._patience:.0f} s for a "
            "heartbeat"
        )
        return self._is_beating()

    def refuse_other(self) -> None:
        """Raises UsageError as `take` would, or for an unreadable folder. Takes nothing; may wait for a heartbeat."""
        with os_error_as_user_error(f"--run_dir {self._root}", "cannot be read", UsageError):
            before = self._read()
        if before is None or before.ended:
            return
        locked = None
        with suppress(OSError):
            lock = os.open(self._root / ".owner.lock", os.O_RDONLY)
            try:
                # shared, and for a moment: a job that is starting tries for longer than that
                locked = lock_for_process(lock, shared=True)
            finally:
                os.close(lock)
        if self._taken(before, _successor(before), locked):
            raise self._refusal(before)

    def _refusal(self, who: Owner | str) -> UsageError:
        advice = f"wait for its end, stop it by `touch {self._root / 'STOP'}`, or name another --run_dir"
        return UsageError(f"--run_dir {self._root}: another job is training here ({who}); {advice}")

    def check(self) -> None:
        """Raises UserError when a newer attempt owns the run, so that this one may publish nothing."""
        found = self._read()
        if self.owner is not None and found not in (None, self.owner):
            raise UserError(
                f"{self._root}: a newer attempt of this run has taken over (attempt {found.attempt}: {found}); this "
                f"one, attempt {self.attempt}, writes nothing more and ends"
            )

    def release(self) -> None:
        """Gives the run up, if this attempt has it."""
        self._released.set()
        if self._beating is not None:
            self._beating.join()
        with suppress(OSError, UserError):  # the disk is full or gone: the lock ends, too
            if self.owner is not None and self._read() == self.owner:
                write_atomically(self._file, json.dumps(asdict(replace(self.owner, ended=True)), indent=2).encode())
        self._close()
        self.owner = None

    def _close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _read(self) -> Owner | None:
        """None: there is no owner, or this program did not write the file."""
        with suppress(FileNotFoundError, ValueError, TypeError):
            return Owner(**json.loads(self._file.read_bytes()))
        return None

    def _beat(self, descriptor: int) -> None:
        """Through the open file, so that an attempt that lost the run does not touch the next owner's."""
        while not self._released.wait(self._beat_every):
            with suppress(OSError):
                os.utime(descriptor)

    def _is_beating(self) -> bool:
        first, end = self._pulse(), time.monotonic() + self._patience
        while time.monotonic() < end:
            time.sleep(self._beat_every / 5)
            if self._pulse() != first:
                return True
        return False

    def _pulse(self) -> tuple[int, int] | None:
        with suppress(OSError), self._file.open("rb") as file:  # NFS asks the server again only when a file is opened
            found = os.fstat(file.fileno())
            return found.st_ino, found.st_mtime_ns
        return None


def _successor(before: Owner | None) -> Owner:
    """This process as the run's next owner."""
    return Owner(
        attempt=before.attempt + 1 if before else 1,
        host=socket.gethostname(),
        pid=os.getpid(),
        slurm_job=os.environ.get("SLURM_JOB_ID"),
        slurm_restart=os.environ.get("SLURM_RESTART_COUNT"),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )
