"""`metrics.jsonl`: one JSON object a line, for people's own tools and for the report."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcgan_dist.data.system.storage import sync_folder, write_atomically
from dcgan_dist.errors import UserError


class MetricsFile:
    """An append-only file of records; each has `images`, the real images seen when it was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = -1
        """Images of the last record; -1: there is none."""
        self._waiting = b""

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a line, which is in the file when this returns. Raises UserError when it cannot be written: see flush.

        JSON has no NaN and no infinity: they are written as the strings "NaN", "Infinity" and "-Infinity".
        """
        line = json.dumps({name: _strict(value) for name, value in record.items()}, allow_nan=False)
        self._waiting += f"{line}\n".encode()
        self.last = record["images"]
        self.flush()

    def flush(self) -> None:
        """Writes the lines that could not be written before. Raises UserError when they still cannot, and they wait."""
        try:
            if self._waiting:
                _append_whole(self.path, self._waiting)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error
        self._waiting = b""

    def sync(self) -> None:
        """The same, and all lines outlast a power cut."""
        self.flush()
        try:
            with self.path.open("ab") as file:
                os.fsync(file.fileno())
            sync_folder(self.path.parent)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error

    def cut_after(self, images: int) -> int:
        """Drops what a resumed run will write again: records of more than `images` images, and torn or foreign lines.

        -1 drops every record. Returns the number of lines dropped. Raises UserError when the file cannot be used.
        """
        lines: list[bytes] = []
        try:
            if self.path.exists():
                with self.path.open("a+b") as file:  # it will be written, too
                    file.seek(0)
                    lines = file.readlines()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read and written ({error.strerror})") from error
        kept = [line for line in lines if line.endswith(b"\n") and _images(line) <= images]
        self.last = int(_images(kept[-1])) if kept else -1
        if len(kept) < len(lines):
            write_atomically(self.path, b"".join(kept))
        return len(lines) - len(kept)


def _append_whole(path: Path, data: bytes) -> None:
    """All of it or nothing."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        end = os.fstat(file).st_size
        try:
            while data:
                data = data[os.write(file, data) :]
        except OSError:
            os.ftruncate(file, end)
            raise
    finally:
        os.close(file)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _images(line: bytes) -> float:
    try:
        return float(json.loads(line)["images"])
    except (ValueError, KeyError, TypeError):
        return math.inf
