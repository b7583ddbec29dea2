"""Images in a column of Parquet files, as Hugging Face's data sets have them, by staged copies.

Shards take rows in any order, but Parquet can only be read by row groups: of images that are mixed over a large set,
each would cost the decoding of up to a thousand others. So the rows are copied once, into tars.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from dcgan_dist.data.remote.client import Remote, base_name
from dcgan_dist.data.remote.source import FileSource, Wanted
from dcgan_dist.data.shards.index import ShardWriter
from dcgan_dist.data.shards.labels import FIELDS, label_text, renumber
from dcgan_dist.data.shards.notes import Notes, from_dict
from dcgan_dist.data.sources.base import Report, Source, unused_columns
from dcgan_dist.data.sources.tars import ROW, Tar, TarSource, staged_copies
from dcgan_dist.data.system.storage import write_atomically
from dcgan_dist.errors import UsageError, UserError

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
ABOUT = ".json"  # beside a copy: what is known of the file
TOGETHER = 64  # rows in memory
BUFFER = 2**20  # bytes of a column that are read at a time
COPIES_VERSION = 4  # goes up with what a copy holds of the same file

# names of Arrow's types
BINARY = re.compile(r"(large_)?binary|dictionary<values=(large_)?binary,.*")
LABELS = re.compile(r"u?int\d+|halffloat|float|double|bool|(large_)?string|dictionary<values=(large_)?string,.*")


@dataclass(frozen=True)
class ParquetSource(Source):
    """The rows of Parquet files, by path or URL; a source when it is prepared."""

    names: tuple[str, ...]
    image_column: str | None = None
    label_column: str | None = None

    def prepared(self, folder: Path, report: Report) -> TarSource:
        """The same images in tars. Raises UsageError when a file has no such columns."""
        _pyarrow()
        settings = json.dumps([self.image_column, self.label_column, COPIES_VERSION])
        copies = staged_copies(self.names, folder, self._convert, report, settings)
        abouts = [json.loads(copy.with_suffix(ABOUT).read_bytes()) for copy in copies]
        classes, others, tars = abouts[0]["classes"], dict[str, None](), list[Tar]()
        for name, copy, about in zip(self.names, copies, abouts, strict=True):
            if about["classes"] != classes:
                raise UsageError(f"{name}: its classes are others than those of {self.names[0]}")
            others |= dict.fromkeys(about["others"])
            tars.append(Tar(name, copy, f"{Path(base_name(name)).stem}-", notes=from_dict(about["notes"])))
        for line in unused_columns(others):
            report(line)
        return TarSource(tuple(tars), renumber(classes)[1])

    def _convert(self, source: FileSource, wanted: Wanted, target: Path) -> None:
        with _opened(source, wanted.shown, target.parent) as table:
            schema = table.schema_arrow
            image, label = _columns(schema, self.image_column, self.label_column, wanted.shown)
            classes = _class_names(schema, label)
            labels = _Labels(schema, label, classes)
            with ShardWriter(target) as shard:
                for number, (data, value) in enumerate(_rows(table, image, label, wanted.shown)):
                    # the suffix says nothing: the bytes are looked at when the image is loaded
                    shard.add(ROW.format(number), "jpg", data, labels.number(value))
                others = [f"{field.name} ({field.type})" for field in schema if field.name not in (image, label)]
                about = {"classes": classes, "notes": labels.notes().as_dict(), "others": others}
                write_atomically(target.with_suffix(ABOUT), json.dumps(about).encode())  # before the copy has its name


class _Labels:
    """Of the rows of one file."""

    def __init__(self, schema: Any, column: str | None, classes: Sequence[str]) -> None:
        self._renumbered, _ = renumber(classes)
        named = next((field for field in schema if field.name in FIELDS), None) if column is None else None
        self._problem = f"in column {named.name}, which holds {named.type}" if named else ""  # of all rows
        self._words: dict[str, int] = {}
        self._unlabelled = Counter[str]()
        self._images = 0

    def number(self, value: Any) -> int | None:
        """The label for a value of the column: a number, or the place among all words."""
        self._images += 1
        text, problem = label_text(value)
        if not text:
            self._unlabelled[problem or self._problem] += 1
            return None
        if isinstance(value, str):
            return self._words.setdefault(text, len(self._words))
        return self._renumbered.get(int(text), int(text))

    def notes(self) -> Notes:
        """The counts for the line that reports them."""
        labelled = self._images - self._unlabelled.total()
        reasons = {problem: count for problem, count in self._unlabelled.items() if problem}  # an empty cell has none
        return Notes(unlabelled=reasons, labelled=labelled, images=self._images, words=tuple(self._words))


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError("Parquet files need pyarrow: pip install 'dcgan_dist[parquet]'") from error
    return pyarrow


@contextmanager
def _opened(source: FileSource, name: str, folder: Path) -> Iterator[Any]:
    """A file by path, or a remote one, which is downloaded to the folder and removed afterwards."""
    with ExitStack() as stack:
        file: Any = source
        if not isinstance(source, Path):
            file = stack.enter_context(TemporaryFile(dir=folder))
            file.writelines(Remote().download(source))
            file.seek(0)
        with _reading(name):
            options = {"buffer_size": BUFFER, "pre_buffer": False, "page_checksum_verification": True}
            table = stack.enter_context(_pyarrow().parquet.ParquetFile(file, **options))
        yield table


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (_pyarrow().ArrowException, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{name}: cannot be read as Parquet ({reason})") from error


def _rows(table: Any, image: str, label: str | None, name: str) -> Iterator[tuple[bytes, Any]]:
    """Image file and value of the label of every row; no bytes where there is no image."""
    columns = [image] if label is None else [image, label]
    with _reading(name):
        for batch in table.iter_batches(TOGETHER, columns=columns, use_threads=False):
            column = batch.column(image)
            files = (column.field("bytes") if str(column.type).startswith("struct") else column).to_pylist()
            labels = [None] * len(files) if label is None else batch.column(label).to_pylist()
            for data, value in zip(files, labels, strict=True):
                yield data or b"", value


def _holds_images(kind: Any) -> bool:
    if str(kind).startswith("struct<"):
        return kind.get_field_index("bytes") >= 0 and bool(BINARY.fullmatch(str(kind.field("bytes").type)))
    return bool(BINARY.fullmatch(str(kind)))


def _columns(schema: Any, image: str | None, label: str | None, name: str) -> tuple[str, str | None]:
    """The columns of images and labels: those that are wanted, or found by their names or as the only ones."""
    images = [field.name for field in schema if _holds_images(field.type)]
    labels = [field.name for field in schema if LABELS.fullmatch(str(field.type))]
    has = "it has " + (", ".join(f"{field.name} ({field.type})" for field in schema) or "no columns")
    named = [known for known in IMAGE_NAMES if known in images]
    if image is not None and image not in images:
        raise UsageError(f"{name}: no column '{image}' of images (binary, or a struct with binary 'bytes'); {has}")
    if image is None and not named and len(images) != 1:
        raise UsageError(f"{name}: no clear image column; name one with --image_column; {has}")
    if label is not None and label not in labels:
        raise UsageError(f"{name}: no column '{label}' of labels (numbers or words); {has}")
    if label is None:
        with_classes = [column for column in labels if _class_names(schema, column)]
        only = with_classes[0] if len(with_classes) == 1 else None
        label = next((known for known in FIELDS if known in labels), only)
    return (named or images)[0] if image is None else image, label


def _class_names(schema: Any, label: str | None) -> list[str]:
    """The names that Hugging Face's metadata have for a column's labels; none when it says nothing of them."""
    with suppress(KeyError, TypeError, ValueError):
        about = json.loads((schema.metadata or {})[b"huggingface"])
        return [str(name) for name in about["info"]["features"][label]["names"]]
    return []
