"""`metrics.jsonl`: one JSON object per line."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcgan_dist.data.system.storage import sync_folder, write_atomically
from dcgan_dist.errors import os_error_as_user_error

NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # as the file writes them


def json_line(record: Mapping[str, Any]) -> str:
    """One line of JSON, which has no NaN and no infinity: they become "NaN", "Infinity" and "-Infinity"."""
    return json.dumps({name: _strict(value) for name, value in record.items()}, allow_nan=False) + "\n"


class MetricsFile:
    """An append-only file of records, each with `images`, the number of real images seen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = -1  # images of the last record; -1: there is none
        self._waiting = b""

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes a line. Raises UserError when it cannot be written: see flush."""
        self._waiting += json_line(record).encode()
        self.last = record["images"]
        self.flush()

    def flush(self) -> None:
        """Writes the lines that are not in the file yet. Raises UserError when it cannot; they are kept."""
        if self._waiting:
            with os_error_as_user_error(self.path, "cannot be written"):
                _append_all(self.path, self._waiting)
        self._waiting = b""

    def sync(self) -> None:
        """The same, and syncs the file to disk."""
        self.flush()
        with os_error_as_user_error(self.path, "cannot be written"):
            with self.path.open("ab") as file:
                os.fsync(file.fileno())
            sync_folder(self.path.parent)

    def cut_after(self, images: int) -> int:
        """Drops what a resumed run writes again: records of more than `images` images, and incomplete or foreign lines.

        -1 drops every record. Returns the number of dropped lines. Raises UserError when the file cannot be used.
        """
        lines: list[bytes] = []
        with os_error_as_user_error(self.path, "cannot be read and written"):
            if self.path.exists():
                with self.path.open("a+b") as file:  # fails now if it is not writable
                    file.seek(0)
                    lines = file.readlines()
        kept = [line for line in lines if line.endswith(b"\n") and _images(line) <= images]
        self.last = int(_images(kept[-1])) if kept else -1
        if len(kept) < len(lines):
            write_atomically(self.path, b"".join(kept))
        return len(lines) - len(kept)


def _append_all(path: Path, data: bytes) -> None:
    """All of it or nothing."""
    with path.open("ab") as file:
        end = file.tell()
        try:
            while data:
                data = data[os.write(file.fileno(), data) :]
        except OSError:
            file.truncate(end)
            raise


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _images(line: bytes) -> float:
    try:
        return float(json.loads(line)["images"])
    except (ValueError, KeyError, TypeError):
        return math.inf
