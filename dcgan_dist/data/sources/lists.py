"""Lists of image files with labels: CSV, TSV, or JSON lines."""

import csv
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np
from numpy.typing import NDArray

from dcgan_dist.data.remote.client import is_remote
from dcgan_dist.data.shards.index import NO_LABEL
from dcgan_dist.data.sources.base import ENCODING, FilesSource, Images, Items, number_names, unused_columns
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.location import Location
from dcgan_dist.text import count_text

PATH_NAMES = ("path", "file", "file_name", "filename", "image")
LABEL_NAMES = ("label", "class", "cls", "target", "labels", "fine_label")  # the plural last: it may be a list of tags
POINT_ZERO = re.compile(r"^(-?\d{1,18})\.0*$", re.ASCII)  # as some programs write integers
BELOW_0 = re.compile(r"-\d+", re.ASCII)

_Row = tuple[int, Any, Any]  # line, path, label


@dataclass(frozen=True)
class ListSource(FilesSource):
    """The files that a list names, in its order; their paths are absolute, or seen from the list's folder.

    For labels see number_names; a negative integer is none.
    """

    path: Path
    image_column: str | None = None
    label_column: str | None = None

    @property
    def folder(self) -> Path:
        """The list's."""
        return self.path.parent

    def items(self) -> Items:
        """All files of the list; whether they are there is found when they are loaded.

        Raises UserError that names a bad line.
        """
        texts: dict[str, int] = {}
        numbers = array("q")
        others: dict[str, None] = {}
        tagged = Counter[str]()

        def names() -> Iterator[str]:
            for line, name, label in self._rows(others):
                if self.label_column is None and isinstance(label, list | dict):
                    tagged[f"a {type(label).__name__}"] += 1
                    label = None
                text = self._label(line, label)
                numbers.append(NO_LABEL if text is None else texts.setdefault(text, len(texts)))
                yield self._name(line, name)

        images = Images.of(names())
        if not images:
            raise UsageError(f"{self.path}: no images in it")
        values, classes = _values(list(texts), str(self.path))
        labels = np.append(values, NO_LABEL)[np.array(numbers, dtype=np.int64)]  # NO_LABEL is also the last place
        missing = int((labels == NO_LABEL).sum()) - tagged.total()
        lines = [f"labels: {missing:,} of {len(images):,} images have none in the list"] * (0 < missing < len(images))
        of = f"of {len(images):,} images"
        lines += [f"labels: {count_text(tagged, f'{of} has none', f'{of} have none')}"] * bool(tagged)
        lines += unused_columns(others)
        return Items(images.with_labels(labels), {}, classes, tuple(lines))

    def _rows(self, others: dict[str, None]) -> Iterator[_Row]:
        rows = self._json_rows if self.path.suffix.lower() == ".jsonl" else self._csv_rows
        try:
            with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                yield from rows(file, others)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from error

    def _csv_rows(self, file: TextIO, others: dict[str, None]) -> Iterator[_Row]:
        reader = csv.reader(file, delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",", strict=True)
        first: list[str] | None = None
        path, label = 0, None
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                self._bad(reader.line_num, str(error))
            if row is None:
                return
            if not any(row):
                continue
            if first is None:
                first = row
                path, label, is_header = self._columns([cell.strip() for cell in row])
                if is_header:
                    others |= dict.fromkeys(cell for n, cell in enumerate(row) if n not in (path, label))
                    continue
            if len(row) != len(first):
                self._bad(reader.line_num, f"{len(row)} columns, and {len(first)} in the first line")
            yield reader.line_num, row[path], None if label is None else row[label]

    def _columns(self, row: Sequence[str]) -> tuple[int, int | None, bool]:
        """Places of path and label, by the first row, and whether that is a header."""
        path = _place(row, self.image_column, PATH_NAMES)
        label = _place(row, self.label_column, LABEL_NAMES)
        for wanted, place in (self.image_column, path), (self.label_column, label):
            if wanted is not None and place is None:
                raise UsageError(f"{self.path}: no column '{wanted}'; its first line has {', '.join(row)}")
        if path is not None:
            return path, label, True
        if len(row) == 1 and re.search(rf"(^|[;|\t])({'|'.join(PATH_NAMES)})[;|\t]", row[0], re.IGNORECASE):
            raise UsageError(f"{self.path}: its columns are not separated by commas, as in a .csv; .tsv has tabs")
        if len(row) > 2 or label is not None:
            raise UsageError(f"{self.path}: no column of its first line is called {' or '.join(PATH_NAMES)}")
        return 0, 1 if len(row) == 2 else None, False

    def _json_rows(self, file: TextIO, others: dict[str, None]) -> Iterator[_Row]:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                self._bad(line, f"no JSON ({error})")
            if not isinstance(row, dict):
                self._bad(line, 'no JSON object, as in {"path": "a.jpg", "label": 3}')
            path = _place(list(row), self.image_column, PATH_NAMES)
            label = _place(list(row), self.label_column, LABEL_NAMES)
            values = list(row.values())
            if path is None:
                self._bad(line, f"it has no {self.image_column or ' or '.join(PATH_NAMES)}")
            others |= dict.fromkeys(name for n, name in enumerate(row) if n not in (path, label))
            yield line, values[path], None if label is None else values[label]

    def _name(self, line: int, name: Any) -> str:
        if not _is_text(name) or not name.strip():
            self._bad(line, f"{name!r} is no path")
        if is_remote(name):
            self._bad(line, f"{Location(name)} is a URL; a list names files on a disk")
        return name

    def _label(self, line: int, label: Any) -> str | None:
        if label is None:
            return None
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        if type(label) is not int and not _is_text(label):
            self._bad(line, f"the label {label!r} is neither a number nor a name")
        return POINT_ZERO.sub(r"\1", str(label).strip()) or None

    def _bad(self, line: int, problem: str) -> NoReturn:
        raise UserError(f"{self.path}, line {line}: {problem}")


def _is_text(value: Any) -> bool:
    """Text that a file can be called."""
    try:
        return isinstance(value, str) and b"\0" not in value.encode(*ENCODING)
    except UnicodeEncodeError:
        return False


def _place(names: Sequence[str], wanted: str | None, known: Sequence[str]) -> int | None:
    lower = [name.lower() for name in names]
    if wanted is not None:
        return names.index(wanted) if wanted in names else None
    return next((lower.index(name) for name in known if name in lower), None)


def _values(texts: Sequence[str], source: str) -> tuple[NDArray[np.int64], dict[int, str]]:
    """The label of every text, and the labels' names."""
    given = np.array([not BELOW_0.fullmatch(text) for text in texts], dtype=bool)
    values = np.full(len(texts), NO_LABEL, dtype=np.int64)
    values[given], classes = number_names(
        (text for text, is_given in zip(texts, given, strict=True) if is_given), source
    )
    return values, classes
