"""Output files of commands, which replace others only with --overwrite."""

import io
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dcgan_dist.data.sources.base import ENDINGS, ending
from dcgan_dist.data.system.storage import write_atomically
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.run.checkpoint_manifest import is_checkpoint

PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), ("JPEG", {"quality": 95, "subsampling": 0})),
    ".webp": ("WEBP", {"lossless": True}),
    ".avif": ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
    **dict.fromkeys((".tif", ".tiff"), ("TIFF", {})),
    ".bmp": ("BMP", {}),
    ".ppm": ("PPM", {}),
}
"""By ending: Pillow's name of the format, and its options."""


def check_output(option: str, path: Path, overwrite: bool) -> None:
    """Raises UsageError for a place where no file can be, and for an existing file without `overwrite`."""
    if path.is_dir():
        raise UsageError(f"{option} {path}: is a folder; name a file")
    above = next(folder for folder in path.parents if os.path.lexists(folder))
    if not above.is_dir():
        raise UsageError(f"{option} {path}: {above} is no folder; name a file in one")
    _refuse_checkpoint(option, path)
    if not overwrite and os.path.lexists(path):
        raise UsageError(f"{option} {path}: exists; name another file, or add --overwrite")
    if path.exists() and ENDINGS.get(ending(path.name)) == "tar":
        raise UsageError(f"{option} {path}: is a tar, which is not replaced; choose another name")


def _refuse_checkpoint(option: str, path: Path) -> None:
    """Raises UsageError for a file in a checkpoint's folder, which training removes."""
    for folder in filter(is_checkpoint, path.resolve().parents):
        raise UsageError(f"{option} {path}: {folder} is a checkpoint, which training removes; choose another folder")


def picture_path(named: Path | None, default: str, overwrite: bool) -> Path:
    """The file that --out names, else `default`, or `default-2` and so on if it exists.

    Raises UsageError as check_output does, and for an ending of no writable format.
    """
    path = named or Path(default)
    if named or overwrite:
        check_output("--out", path, overwrite)
        Image.init()
        if PICTURES.get(path.suffix.lower(), ("",))[0] not in Image.SAVE:
            known = " ".join(ending for ending, (kind, _) in PICTURES.items() if kind in Image.SAVE)
            raise UsageError(f"--out {path}: pictures can be written as {known}")
        return path
    _refuse_checkpoint("--out", path)
    others = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return next(free for free in itertools.chain([path], others) if not os.path.lexists(free))


def save_picture(array: NDArray[np.uint8], named: Path | None, default: str, overwrite: bool) -> Path:
    """Writes a picture to its picture_path, and returns that. Raises UsageError and UserError."""
    while True:
        path = picture_path(named, default, overwrite)
        try:
            write_picture(array, path, overwrite)
        except UserError as error:
            if named or not isinstance(error.__cause__, FileExistsError):  # another command was faster
                raise
        else:
            return path


def write_picture(array: NDArray[np.uint8], path: Path, overwrite: bool) -> None:
    """Writes an (H, W, 3) uint8 picture in the format of its ending. Raises UserError."""
    kind, settings = PICTURES[path.suffix.lower()]
    buffer = io.BytesIO()
    try:
        Image.fromarray(array).save(buffer, kind, **settings)
    except (OSError, ValueError) as error:  # too large for the format
        height, width, _ = array.shape
        raise UserError(f"{path}: {width}x{height} pixels cannot be written as {kind} ({error}); use .png") from error
    write_atomically(path, buffer.getvalue(), new=not overwrite)
