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

import safetensors
import safetensors.torch
from torch import Tensor

from dcgan_dist.data.storage import write_atomically
from dcgan_dist.errors import UserError

FORMAT = 1
Tensors = dict[str, dict[str, Tensor]]


def save(folder: Path, images: int, tensors: Tensors, state: dict[str, Any], keep: int) -> Path:
    """Writes a checkpoint, then removes all but the newest `keep`. If it cannot, raises UserError; older ones stay."""
    target = folder / f"{images:09d}"
    temporary = folder / f".tmp-{target.name}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        files = {f"{name}.safetensors": _serialised(values) for name, values in tensors.items()}
        files["state.json"] = json.dumps(state, indent=2).encode()
        for name, data in files.items():
            _write(temporary / name, data)
        about = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
        _write(
            temporary / "manifest.json",
            json.dumps({"format": FORMAT, "images": images, "files": about}, indent=2).encode(),
        )
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
    for old in all_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first, checked or not."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


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
        manifest = json.loads((path / "manifest.json").read_bytes())
        if manifest["format"] != FORMAT:
            return f"{path}: format {manifest['format']}, this version reads {FORMAT}"
        for name, about in manifest["files"].items():
            data = (path / name).read_bytes()
            if len(data) != about["bytes"]:
                return f"{path / name}: has {len(data)} bytes instead of {about['bytes']}"
            if hashlib.sha256(data).hexdigest() != about["sha256"]:
                return f"{path / name}: the checksum is wrong"
    except OSError as error:
        return f"{error.filename}: cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError):
        return f"{path / 'manifest.json'}: is not a manifest"
    return None


def load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and state of a checkpoint. Raises UserError when it is not whole."""
    problem = verify(path)
    if problem is not None:
        raise UserError(f"{problem}; this checkpoint cannot be used")
    tensors = {file.stem: safetensors.torch.load(file.read_bytes()) for file in sorted(path.glob("*.safetensors"))}
    return tensors, json.loads((path / "state.json").read_bytes())


def load_network(path: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One network's tensors, and the checkpoint's state."""
    tensors, state = load(path)
    if name not in tensors:
        raise UserError(f"{path}: has no {name}.safetensors")
    return tensors[name], state


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
