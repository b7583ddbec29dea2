"""A checkpoint's manifest: size and sha256 of every file, and its own. Only files that match are read."""

import hashlib
import json
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

from dcgan_dist.errors import UserError, os_error_as_user_error

FORMAT = 2
MANIFEST, STATE = "manifest.json", "state.json"
LEFT = "-left"
NAME = re.compile(r"\d{9,}", re.ASCII)  # of a checkpoint's folder


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint by its name and its manifest, intact or not."""
    return NAME.fullmatch(path.name.removesuffix(LEFT)) is not None and (path / MANIFEST).is_file()


def sealed(about: dict[str, Any]) -> bytes:
    """The manifest's text: `about`, and its checksum."""
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    return json.dumps(about | {"sha256": digest}, indent=2).encode()


def described(data: bytes) -> dict[str, Any]:
    """A file's entry in the manifest."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@os_error_as_user_error("", "cannot be read")
def contents(path: Path, wanted: Container[str] | None = None) -> dict[str, bytes]:
    """The `wanted` files (None: all) of the manifest. Raises UserError for the first file of all that differs."""
    files: dict[str, bytes] = {}
    try:
        text = (path / MANIFEST).read_bytes()
        manifest = json.loads(text)
        if manifest["format"] != FORMAT:
            raise UserError(f"{path}: has format {manifest['format']}, and this version reads {FORMAT}")
        if sealed({name: value for name, value in manifest.items() if name != "sha256"}) != text:
            raise ValueError
        for name, about in manifest["files"].items():
            if Path(name).name != name:
                raise ValueError
            if (data := _confirmed(path / name, about, wanted is None or name in wanted)) is not None:
                files[name] = data
        if STATE not in manifest["files"]:
            raise KeyError(STATE)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{path / MANIFEST}: is damaged, or not the manifest of a checkpoint") from error
    return files


def _confirmed(path: Path, about: dict[str, Any], wanted: bool) -> bytes | None:
    """A file's content if it is wanted. Raises UserError when it differs from the manifest."""
    data = None
    if wanted:
        data = path.read_bytes()
        size, digest = len(data), hashlib.sha256(data)
    else:  # in pieces, to save memory
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, hashlib.sha256)
            size = file.tell()
    if size != about["bytes"]:
        raise UserError(f"{path}: has {size} bytes instead of {about['bytes']}")
    if digest.hexdigest() != about["sha256"]:
        raise UserError(f"{path}: the checksum is wrong")
    return data
