"""Which W&B run a run's folder is: `wandb_id`, and `wandb_folder.json` with its places on disk and on the server."""

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcgan_dist.data.system.locks import lock
from dcgan_dist.data.system.storage import write_atomically
from dcgan_dist.errors import UserError

if TYPE_CHECKING:
    import wandb

ID, NOTE = "wandb_id", "wandb_folder.json"
SHARED = (  # the rest of environment.json names host, job and command
    "python", "packages", "git_commit", "git_dirty", "system", "cpu_cores", "devices", "world_size", "device",
    "precision", "data_images", "data_fingerprint", "parameters",
)  # fmt: skip
PLACE = ("entity", "project")  # the run's place on the server, which NOTE records


def hold(run_dir: Path) -> int | None:
    """A descriptor that keeps other processes from sending this run, until it is closed; None: another one has it."""
    try:
        return lock(run_dir / ".wandb.lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:  # a file system without locks
        return os.open(os.devnull, os.O_RDONLY)


def noted_in(run_dir: Path) -> dict[str, Any]:
    """What `wandb_folder.json` records; nothing without a file, or where it is damaged."""
    with contextlib.suppress(OSError, TypeError, ValueError):
        return dict(json.loads((run_dir / NOTE).read_bytes()))
    return {}


def environment(run_dir: Path) -> dict[str, Any]:
    """What W&B may have of environment.json."""
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((run_dir / "environment.json").read_bytes())
    return {name: value for name, value in found.items() if name in SHARED}


def run_id(run_dir: Path, say: Callable[[str], None]) -> tuple[str, bool, dict[str, Any]]:
    """The folder's W&B run, whether it is new, and what `wandb_folder.json` records of it.

    Raises wandb.Error for a WANDB_RUN_ID that is no id. A copy of the folder (neither path nor inode are those in the
    file) gets its own run. A folder that was moved to another disk looks the same; the line explains what to do.
    """
    import wandb

    path, before = run_dir / ID, noted_in(run_dir)
    here = {"path": str(run_dir.resolve()), "inode": run_dir.stat().st_ino}
    known = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    copied = bool(known and before) and not any(before.get(name) == value for name, value in here.items())
    made = known if known and not copied else os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    noted = (before if made == known else {}) | here
    if made != known:
        wandb.Settings(run_id=made)
        write_atomically(path, f"{made}\n".encode())
    if copied:
        say(
            f"W&B: this folder is a copy of {before.get('path')}, whose run is {known}; its own is {made}. If it was "
            f"moved from another disk: stop, write {known} into {path}, and start again"
        )
    if noted != before:
        write_atomically(run_dir / NOTE, json.dumps(noted).encode())
    return made, made != known, noted


def note_place(run_dir: Path, run: "wandb.Run", noted: dict[str, Any], new: bool, say: Callable[[str], None]) -> bool:
    """Records the run's entity and project; whether an old run begins there, which is printed.

    `noted`, `new`: see run_id.
    """
    here = {name: getattr(run, name) for name in PLACE}  # online with the entity of the key
    before = {name: noted.get(name) for name in PLACE}
    moved = any(before[name] and here[name] and before[name] != here[name] for name in PLACE)
    begins = not new and not run.resumed and (moved or not run.offline)
    if begins:
        was = f"in {_path(before)}" if moved else "kept offline, or in another project"
        say(
            f"W&B: until now this folder's run {run.id} was {was}; in {_path(here)} it begins now, with the earlier "
            "reports. If that is not meant: stop, and give --wandb.project and --wandb.entity as before"
        )
    place = {name: here[name] or noted.get(name) for name in PLACE}
    with contextlib.suppress(UserError):  # the next attempt notes it
        write_atomically(run_dir / NOTE, json.dumps(noted | place).encode())
    return begins


def mark_sent(run: "wandb.Run", but: Path | None = None) -> None:
    """`wandb sync` passes over W&B's own files of the run's attempts, `but` that in one folder."""
    for log in Path(run.dir).parent.parent.glob(f"*run-*-{run.id}*/run-{run.id}.wandb"):
        if log.parent != but:
            with contextlib.suppress(OSError):
                log.with_suffix(".wandb.synced").touch()


def _path(place: Mapping[str, Any]) -> str:
    return "/".join(place[name] for name in PLACE if place[name])
