"""Whether a lock on a file keeps other processes out: on the run's folder, and on the cache of the data."""

import fcntl
import subprocess
import sys
from pathlib import Path
from typing import Literal

from dcgan_dist.commands.doctor.case import Case
from dcgan_dist.commands.doctor.disk import probing_for
from dcgan_dist.commands.doctor.finding import Finding, fail, ok, warn

Kind = Literal["lockf", "flock"]
"""lockf: of a run's folder, reaches other hosts where the server has locks; flock: of the cache, for one host."""
SECOND = "import fcntl, sys; getattr(fcntl, sys.argv[2])(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
MOUNT = "mount the file system with locks (Lustre: -o flock; NFS: without nolock), or use another"


def check_locks(case: Case) -> Finding:
    """By the locks of a run's folder."""
    with probing_for("locks", case.config.run_dir) as folder:
        return judge_locks(*try_lock(folder, "lockf"))


def try_lock(folder: Path, kind: Kind) -> tuple[str | None, bool]:
    """Why a file in the folder cannot be locked, None if it can; and whether a second process was kept out."""
    path = folder / kind
    with path.open("w") as file:
        try:
            getattr(fcntl, kind)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.strerror or "no reason given", False
        command = [sys.executable, "-S", "-c", SECOND, path, kind]
        return None, subprocess.run(command, capture_output=True, check=False).returncode != 0


def judge_locks(refused: str | None, excludes: bool) -> Finding:
    """`refused`: why there was no lock; `excludes`: a second process did not get one that was held."""
    advice = f"{MOUNT} --run_dir"
    if refused is not None:
        return warn(f"files cannot be locked ({refused}); a second job is seen by its signs of life alone", advice)
    if not excludes:
        return warn("a lock keeps nobody out: two processes held it at once", advice)
    return ok("a lock on a file keeps other processes out")


def judge_cache_locks(refused: str | None, excludes: bool) -> Finding | None:
    """The same for the cache, without which no rank knows what another one is fetching; None: all is well."""
    advice = f"{MOUNT} --data.cache (XDG_CACHE_HOME)"
    if refused is not None:
        return fail(f"files in the cache cannot be locked ({refused})", advice)
    return None if excludes else warn("a lock in the cache keeps nobody out", advice)
