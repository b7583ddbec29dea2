"""Lists of image files with labels: CSV, TSV, or JSON lines."""

import csv
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np

from dcgan_dist.data.remote.client import is_remote
from dcgan_dist.data.shards.index import NO_LABEL
from dcgan_dist.data.shards.labels import ENCODING, number_names
from dcgan_dist.data.sources.base import FilesSource, Images, Items, unused_columns
from dcgan_dist.errors import UsageError, UserError, os_error_as_user_error
from dcgan_dist.location import Location
from dcgan_dist.text import count_text

PATH_NAMES = ("path", "file", "file_name", "filename", "image")
LABEL_NAMES = ("label", "class", "cls", "target", "labels", "fine_label")  # the plural last: it may be a list of tags
POINT_ZERO = re.compile(r"^(-?\d{1,18})\.0*$", re.ASCII)  # as some programs write integers
BELOW_0 = re.compile(r"-\d+", re.ASCII)

_Row = tuple[int, tuple[str, ...], Sequence[Any]]  # line, names of the columns, cells


@dataclass(frozen=True)
class ListSource(FilesSource):
    """The files that a list names, in its order; their paths are absolute, or relative to the list's folder.

    For labels see number_names; a negative integer is none.
    """

    path: Path  # of the list
    image_column: str | None = None
    label_column: str | None = None

    def items(self) -> Items:
        """All files of the list, which are only looked for when they are loaded. Raises UserError for a bad line."""
        texts, others, tagged = dict[str, int](), dict[str, None](), Counter[str]()
        numbers = array("q")

        def names() -> Iterator[str]:
            for line, name, label in self._rows(others):
                if self.label_column is None and isinstance(label, list | dict):
                    tagged[f"a {type(label).__name__}"] += 1
                    label = None
                text = self._label(line, label)
                numbers.append(NO_LABEL if text is None else texts.setdefault(text, len(texts)))
                yield name

        images = Images(names())
        if not len(images):
            raise UsageError(f"{self.path}: no images in it")
        values, classes = number_names(texts, str(self.path))
        images.labels = np.append(values, NO_LABEL)[np.array(numbers, dtype=np.int64)]  # place -1 is the last
        missing = int((images.labels == NO_LABEL).sum()) - tagged.total()
        lines = [f"labels: {missing:,} of {len(images):,} images have none in the list"] * (0 < missing < len(images))
        of = f"of {len(images):,} images"
        lines += [f"labels: {count_text(tagged, f'{of} has none', f'{of} have none')}"] * bool(tagged)
        return Items(images, {}, classes, (*lines, *unused_columns(others)))

    def _rows(self, others: dict[str, None]) -> Iterator[tuple[int, str, Any]]:
        """Line, path and label of every row; `others` gets the names of the other columns."""

        @lru_cache
        def places(names: tuple[str, ...]) -> tuple[int | None, int | None]:
            path, label = _place(names, self.image_column, PATH_NAMES), _place(names, self.label_column, LABEL_NAMES)
            others.update(dict.fromkeys(name for place, name in enumerate(names) if place not in (path, label)))
            return path, label

        rows = self._json_rows if self.path.suffix.lower() == ".jsonl" else self._csv_rows
        with (
            os_error_as_user_error(self.path, "cannot be read"),
            self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
        ):
            for line, names, cells in rows(file):
                path, label = places(names)
                if path is None:
                    self._bad(line, f"it has no {self.image_column or ' or '.join(PATH_NAMES)}")
                name = cells[path]
                if not _is_text(name) or not name.strip():
                    self._bad(line, f"{name!r} is no path")
                if is_remote(name):
                    self._bad(line, f"{Location(name)} is a URL; a list names files on a disk")
                yield line, name, None if label is None else cells[label]

    def _csv_rows(self, file: TextIO) -> Iterator[_Row]:
        reader = csv.reader(file, delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",", strict=True)
        names: tuple[str, ...] = ()
        try:
            for row in filter(any, reader):
                if not names:
                    names = tuple(cell.strip() for cell in row)
                    if self._is_header(names):
                        continue
                    names = ("path", "label")[: len(row)]
                if len(row) != len(names):
                    self._bad(reader.line_num, f"{len(row)} columns, and {len(names)} in the first line")
                yield reader.line_num, names, row
        except csv.Error as error:
            self._bad(reader.line_num, str(error))

    def _is_header(self, row: Sequence[str]) -> bool:
        """Whether the first row names the columns. Raises UsageError when it lacks one, or has others alone."""
        for wanted in (self.image_column, self.label_column):
            if wanted is not None and wanted not in row:
                raise UsageError(f"{self.path}: no column '{wanted}'; its first line has {', '.join(row)}")
        if _place(row, self.image_column, PATH_NAMES) is not None:
            return True
        if len(row) == 1 and re.search(rf"(^|[;|\t])({'|'.join(PATH_NAMES)})[;|\t]", row[0], re.IGNORECASE):
            raise UsageError(f"{self.path}: its columns are not separated by commas, as in a .csv; .tsv has tabs")
        if len(row) > 2 or _place(row, self.label_column, LABEL_NAMES) is not None:
            raise UsageError(f"{self.path}: no column of its first line is called {' or '.join(PATH_NAMES)}")
        return False

    def _json_rows(self, file: TextIO) -> Iterator[_Row]:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                self._bad(line, f"no JSON ({error})")
            if not isinstance(row, dict):
                self._bad(line, 'no JSON object, as in {"path": "a.jpg", "label": 3}')
            yield line, tuple(row), list(row.values())

    def _label(self, line: int, label: Any) -> str | None:
        if label is None:
            return None
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        if type(label) is not int and not _is_text(label):
            self._bad(line, f"the label {label!r} is neither a number nor a name")
        text = POINT_ZERO.sub(r"\1", str(label).strip())
        return None if not text or BELOW_0.fullmatch(text) else text

    def _bad(self, line: int, problem: str) -> NoReturn:
        raise UserError(f"{self.path}, line {line}: {problem}")


def _is_text(value: Any) -> bool:
    """Whether a value can be the name of a file."""
    try:
        return isinstance(value, str) and b"\0" not in value.encode(*ENCODING)
    except UnicodeEncodeError:
        return False


def _place(names: Sequence[str], wanted: str | None, known: Sequence[str]) -> int | None:
    if wanted is not None:
        return names.index(wanted) if wanted in names else None
    lower = [name.lower() for name in names]
    return next((lower.index(name) for name in known if name in lower), None)
