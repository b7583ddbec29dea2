"""Checkpoints: written complete or not at all, checked before they are used, safetensors and JSON only.

    checkpoints/000012800/          the name is the number of images seen
        netg.safetensors  netd.safetensors  netg_ema.safetensors
        optimizer_g.safetensors  optimizer_d.safetensors  stats.safetensors
        state.json                  counters, loss scales, configuration, data set, order
        manifest.json               size and sha256 of every file, and its own; written last
    checkpoints/latest              the newest one's name, replaced atomically
    checkpoints/best                if it is there, the checkpoint that it names is never removed
    checkpoints/000012800-kept-1    an old one that is not removed, because it holds a file of another program
    checkpoints/000012800-left      the best one, after a rollback to a checkpoint before it; no attempt resumes from it

A save writes into `.tmp-ATTEMPT-NAME`, syncs every file and the folder to disk, and renames it; only then are old ones
removed. A load takes the newest folder whose manifest verifies and warns about any newer one that does not.
"""

import itertools
import json
import os
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from dcgan_dist.data.system.storage import make_folder, sync_folder, write_atomically
from dcgan_dist.errors import UserError
from dcgan_dist.run.checkpoint_manifest import FORMAT, LEFT, MANIFEST, NAME, STATE, contents, described, sealed
from dcgan_dist.run.lease import Lease
from dcgan_dist.text import Say

SUFFIX = ".safetensors"
Tensors = dict[str, dict[str, Tensor]]


class SaveError(UserError):
    """A checkpoint could not be written; older ones are unchanged."""


def save(
    folder: Path, images: int, tensors: Tensors, state: dict[str, Any], keep: int, lease: Lease | None = None
) -> Path:
    """Writes a checkpoint, then removes all but the newest `keep`.

    Raises SaveError when the disk refuses, and UserError when a newer attempt owns the run; older ones stay then.
    """
    lease = lease or Lease(folder)  # without an owner: always allowed
    target = folder / f"{images:09d}"
    temporary = folder / f".tmp-{lease.attempt}-{target.name}"
    damaged = _away(target, lease.attempt)
    try:
        lease.check()
        make_folder(folder)
        _remove_leftovers(folder, lease.attempt)
        temporary.mkdir()
        _write_files(temporary, images, tensors, state)
        lease.check()
        if target.exists():  # a damaged one, so that the run resumed from an older one
            _put_away(target, lease)
        temporary.rename(target)
        sync_folder(folder)
        lease.check()
        latest = folder / f".tmp-{lease.attempt}-latest"
        _write(latest, target.name.encode())
        latest.replace(folder / "latest")
        sync_folder(folder)
    except OSError as error:
        with suppress(OSError):
            lease.check()  # a newer attempt removes what an older one was writing
        raise SaveError(
            f"{target}: the checkpoint could not be saved ({error.strerror}{_free(folder)}); older ones are untouched"
        ) from error
    finally:
        for leftover in (temporary, damaged):
            shutil.rmtree(leftover, ignore_errors=True)
    with suppress(OSError):  # the next save tries again
        _prune(folder, images, keep, lease)
    return target


def _free(folder: Path) -> str:
    with suppress(OSError):
        return f"; {shutil.disk_usage(folder).free / 1e6:.0f} MB free"
    return ""


def _write_files(folder: Path, images: int, tensors: Tensors, state: dict[str, Any]) -> None:
    about: dict[str, dict[str, Any]] = {}
    for name, values in tensors.items():
        data = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in values.items()})
        about[name + SUFFIX] = _write(folder / (name + SUFFIX), data)
    about[STATE] = _write(folder / STATE, json.dumps(state, indent=2).encode())
    _write(folder / MANIFEST, sealed({"format": FORMAT, "images": images, "files": about}))
    sync_folder(folder)


def _away(path: Path, attempt: int) -> Path:
    """The name under which a checkpoint is removed, so that no partly removed one is ever read."""
    return path.with_name(f".tmp-{attempt}-old-{path.name}")


def _remove_leftovers(folder: Path, attempt: int) -> None:
    """Removes what killed attempts left, but not what a newer attempt is writing."""
    for leftover in folder.glob(".tmp-*"):
        number = re.match(r"\.tmp-(\d+)-", leftover.name)
        if number is None or int(number[1]) <= attempt:
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _prune(folder: Path, images: int, keep: int, lease: Lease) -> None:
    # damaged checkpoints may be newer than the one that this attempt resumed from, and do not count
    upto = [path for path in all_checkpoints(folder) if int(path.name) <= images]
    kept, old = upto[-keep:], upto[:-keep]
    # files may be damaged after they were written: besides the new checkpoint, another intact one stays
    while old and not any(verify(path) is None for path in reversed(kept[:-1])):
        kept.insert(0, old.pop())
    best = best_name(folder)
    left = [path for path in folder.glob(f"*{LEFT}") if NAME.fullmatch(path.name.removesuffix(LEFT))]
    for path in (*old, *left):
        with suppress(OSError):
            if path.name == best:
                continue
            if other := _of_others(path):
                lease.say_once(
                    f"WARNING: {path} is not removed, because it holds {other}, which training did not write; move it "
                    "elsewhere"
                )
            else:
                remove(path, lease)


def _of_others(path: Path) -> str:
    """The name of a file in a checkpoint's folder that training did not write; empty if there is none."""
    names = (file.name for file in path.iterdir() if file.suffix not in (SUFFIX, ".json") and file.name[0] != ".")
    return min(names, default="")


def best_name(folder: Path) -> str:
    """The name of the best checkpoint; empty if none is named. Raises OSError."""
    try:
        name = (folder / "best").read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""
    if not re.fullmatch(rf"\d+({LEFT})?", name):
        return ""
    try:
        (folder / name).stat()
    except FileNotFoundError:
        return name.removesuffix(LEFT)  # an attempt was killed before the rename
    return name


def leave_behind(path: Path, lease: Lease) -> None:
    """Removes a checkpoint from which no later attempt may resume; the best one is renamed.

    Raises UserError when a newer attempt owns the run, and OSError when the best one cannot be renamed.
    """
    if path.name != best_name(path.parent):
        with suppress(OSError):  # the next save tries again
            remove(path, lease)
        return
    lease.check()
    aside = path.with_name(path.name + LEFT)
    if aside.exists():
        remove(aside, lease)  # from an earlier rollback, and no longer the best
    write_atomically(path.with_name("best"), aside.name.encode())
    path.rename(aside)
    sync_folder(path.parent)


def remove(path: Path, lease: Lease) -> None:
    """Removes a checkpoint, or leaves it intact. Raises OSError, and UserError when a newer attempt owns the run."""
    lease.check()
    if removable := _put_away(path, lease):
        shutil.rmtree(removable)


def _put_away(path: Path, lease: Lease) -> Path | None:
    """Renames a checkpoint to a name under which it is removed; one with foreign files stays as NAME-kept-N (None)."""
    if not (other := _of_others(path)):
        return path.rename(_away(path, lease.attempt))
    names = (path.with_name(f"{path.name}-kept-{number}") for number in itertools.count(1))
    kept = path.rename(next(name for name in names if not os.path.lexists(name)))
    lease.say_once(f"WARNING: {path} is now {kept.name}, because it holds {other}, which training did not write")
    return None


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first, not verified. Raises OSError."""
    with suppress(FileNotFoundError, NotADirectoryError):
        found = (path for path in folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir())
        return sorted(found, key=lambda path: int(path.name))
    return []


def find_newest(folder: Path, warn: Say) -> Path | None:
    """The newest checkpoint that verifies; None if there is none. Raises UserError when all are damaged."""
    found = all_checkpoints(folder)
    for path in reversed(found):
        if (problem := verify(path)) is None:
            return path
        warn(f"WARNING: {problem}; trying the one before")
    if found:
        raise UserError(
            f"{folder}: none of the {len(found)} checkpoints is intact; restore one, or start again in another "
            "--run_dir"
        )
    return None


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, in one line; None if every file matches the manifest."""
    try:
        contents(path, wanted=())
    except UserError as error:
        return str(error)
    return None


def load(path: Path, wanted: Collection[str] | None = None) -> tuple[Tensors, dict[str, Any]]:
    """Tensors (of the `wanted` files; None: all) and state of a checkpoint. Raises UserError when it is not intact."""
    files = contents(path, None if wanted is None else {STATE, *(name + SUFFIX for name in wanted)})
    try:
        state = json.loads(files.pop(STATE))
        state |= {"images": int(state["images"])}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / STATE}: is not the state of a run, although the manifest names it") from error
    if missing := [name for name in wanted or () if name + SUFFIX not in files]:
        raise UserError(f"{path}: has no {missing[0]}{SUFFIX}")
    return {name.removesuffix(SUFFIX): _tensors(path / name, data) for name, data in files.items()}, state


def load_state(path: Path) -> dict[str, Any]:
    """A checkpoint's state alone. Raises UserError when the checkpoint is not intact."""
    return load(path, ())[1]


def _tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: is no safetensors file, although the manifest names it") from error


def _write(path: Path, data: bytes) -> dict[str, Any]:
    """Writes a file and syncs it to disk; returns its size and checksum."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return described(data)
