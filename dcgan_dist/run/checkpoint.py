"""Checkpoints: written whole or not at all, checked before they are used, safetensors and JSON only.

    checkpoints/000012800/          the name is the number of images seen
        netg.safetensors  netd.safetensors  netg_ema.safetensors
        optimizer_g.safetensors  optimizer_d.safetensors  stats.safetensors
        state.json                  counters, loss scales, configuration, data set, order
        manifest.json               size and sha256 of every file; written last
    checkpoints/latest              the newest one's name, replaced atomically

A save writes into `.tmp-NAME`, syncs every file and the folder to disk, and renames it; only then are old ones removed.
A load takes the newest folder whose manifest verifies and warns about any newer one that does not.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from dcgan_dist.data.storage import write_atomically
from dcgan_dist.errors import UserError

FORMAT = 1
MANIFEST, SUFFIX = "manifest.json", ".safetensors"
Tensors = dict[str, dict[str, Tensor]]


def save(folder: Path, images: int, tensors: Tensors, state: dict[str, Any], keep: int) -> Path:
    """Writes a checkpoint, then removes all but the newest `keep`. If it cannot, raises UserError; older ones stay."""
    target = folder / f"{images:09d}"
    temporary = folder / f".tmp-{target.name}"
    try:
        for leftover in folder.glob(".tmp-*"):  # of a life that was killed in the middle of this
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        files = {name + SUFFIX: _serialised(values) for name, values in tensors.items()}
        files["state.json"] = json.dumps(state, indent=2).encode()
        for name, data in files.items():
            _write(temporary / name, data)
        about = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
        manifest = {"format": FORMAT, "images": images, "files": about}
        _write(temporary / MANIFEST, json.dumps(manifest, indent=2).encode())
        _sync(temporary)
        if target.exists():  # a save of the same position that an earlier life left damaged, or this very state
            shutil.rmtree(target)
        temporary.rename(target)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        free = shutil.disk_usage(folder).free / 1e6 if folder.exists() else 0
        raise UserError(
            f"{target}: the checkpoint could not be saved ({error.strerror}; {free:.0f} MB free); older ones are "
            "untouched. Make room and run the same command again"
        ) from error
    write_atomically(folder / "latest", target.name.encode())
    # a checkpoint that was damaged may be newer than the one that this life began from: it must not push this one out
    upto = [path for path in all_checkpoints(folder) if int(path.name) <= images]
    for old in upto[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first, checked or not."""
    found = [path for path in folder.glob("[0-9]*") if path.name.isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def find_newest(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies; None when there are none at all. Raises UserError when all are bad."""
    found = all_checkpoints(folder)
    for path in reversed(found):
        problem = verify(path)
        if problem is None:
            return path
        warn(f"WARNING: {problem}; trying the one before")
    if found:
        raise UserError(
            f"{folder}: none of the {len(found)} checkpoints is whole; restore one, or begin anew in another --run_dir"
        )
    return None


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, in one line; None if every file is as the manifest says."""
    try:
        _contents(path)
    except UserError as error:
        return str(error)
    return None


def load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and state of a checkpoint. Raises UserError when it is not whole."""
    files = _contents(path)
    state = json.loads(files.pop("state.json"))
    return {name.removesuffix(SUFFIX): safetensors.torch.load(data) for name, data in files.items()}, state


def load_network(path: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One network's tensors, and the checkpoint's state. Raises UserError when the checkpoint is not whole."""
    files = _contents(path)
    if name + SUFFIX not in files:
        raise UserError(f"{path}: has no {name}{SUFFIX}")
    return safetensors.torch.load(files[name + SUFFIX]), json.loads(files["state.json"])


def _contents(path: Path) -> dict[str, bytes]:
    """The files that the manifest names, and no others. Raises UserError for the first that is not as it says."""
    files: dict[str, bytes] = {}
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise UserError(f"{path}: has format {manifest['format']}, and this version reads {FORMAT}")
        for name, about in manifest["files"].items():
            data = files[name] = (path / name).read_bytes()
            if len(data) != about["bytes"]:
                raise UserError(f"{path / name}: has {len(data)} bytes instead of {about['bytes']}")
            if hashlib.sha256(data).hexdigest() != about["sha256"]:
                raise UserError(f"{path / name}: the checksum is wrong")
        if "state.json" not in files:
            raise KeyError("state.json")
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / MANIFEST}: is not the manifest of a checkpoint") from error
    return files


def _serialised(values: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in values.items()})


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Makes renames and new names in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
