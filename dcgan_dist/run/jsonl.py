"""`metrics.jsonl`: one JSON object a line, for people's own tools and for the report."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcgan_dist.data.storage import write_atomically
from dcgan_dist.errors import UserError


class MetricsFile:
    """An append-only file of records; each has `images`, the real images seen when it was written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a line, which is in the file when this returns. Raises UserError when it cannot be written.

        JSON has no NaN and no infinity: they are written as the strings "NaN", "Infinity" and "-Infinity".
        """
        line = json.dumps({name: _strict(value) for name, value in record.items()}, allow_nan=False)
        try:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(line + "\n")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); make room and run it again") from error

    def cut_after(self, images: int) -> int:
        """Drops what a resumed run will write again: records of more than `images` images, and torn or foreign lines.

        -1 drops every record, for a run that begins anew. Returns the number of lines dropped.
        """
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith(b"\n") and _images(line) <= images]
        if len(kept) < len(lines):
            write_atomically(self.path, b"".join(kept))
        return len(lines) - len(kept)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _images(line: bytes) -> float:
    try:
        return float(json.loads(line)["images"])
    except (ValueError, KeyError, TypeError):
        return math.inf
