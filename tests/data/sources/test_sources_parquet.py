"""Parquet files as a source, in Hugging Face's layout and plain."""

import json
import random
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.http_server import HttpServer
from support.sources import BY_NAME, given, make_folder, ready

from dcgan_dist.data.sources import find_source
from dcgan_dist.errors import UsageError, UserError

FILES = [data for data, _ in BY_NAME]
LABELS = [label for _, label in BY_NAME]
STRUCTS = [{"bytes": data, "path": f"{number}.png"} for number, data in enumerate(FILES)]
STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})
INTEGERS = pa.int64()


def with_classes(table, column, names):
    """As Hugging Face's datasets writes it."""
    features = {"image": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def hugging_face(first=0, last=9, names=("a", "b", "c")):
    table = pa.table({"image": pa.array(STRUCTS[first:last], STRUCT), "label": pa.array(LABELS[first:last], INTEGERS)})
    return with_classes(table, "label", list(names))


def one(path, table, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return find_source(str(path))


@pytest.mark.parametrize(
    ("columns", "labels"),
    [
        ({"image": pa.array(STRUCTS, STRUCT), "label": pa.array(LABELS, INTEGERS)}, LABELS),
        ({"text": ["-"] * 9, "Photo": pa.array(STRUCTS, STRUCT), "labels": pa.array(LABELS, pa.uint8())}, LABELS),
        ({"jpg": pa.array(FILES, pa.binary()), "cls": pa.array(LABELS, pa.int32()), "thumb": FILES}, LABELS),
        ({"data": pa.array(FILES, pa.large_binary()), "number": pa.array(range(9))}, [None] * 9),
        ({"img": FILES, "label": [str(label) for label in LABELS]}, LABELS),
        ({"image": FILES, "label": pa.array([-7, None, 5] * 3, INTEGERS)}, [None, None, 5] * 3),
    ],
    ids=["hugging face", "only image column", "binary", "large binary", "text labels", "missing labels"],
)
@pytest.mark.parametrize("options", [{}, {"row_group_size": 2, "data_page_size": 64, "compression": "zstd"}])
def test_columns_are_found(tmp_path, columns, labels, options):
    source = one(tmp_path / "a.parquet", pa.table(columns), **options)
    assert given(source, tmp_path / "copies") == list(zip(FILES, labels, strict=True))


def test_named_columns(tmp_path):
    table = pa.table({"image": [b"small"] * 9, "large": FILES, "label": [9] * 9, "fine": LABELS})
    pq.write_table(table, tmp_path / "a.parquet")
    source = find_source(str(tmp_path / "a.parquet"), image_column="large", label_column="fine")
    assert given(source, tmp_path / "copies") == BY_NAME
    assert given(find_source(str(tmp_path / "a.parquet")), tmp_path / "copies") == [(b"small", 9)] * 9
    lines: list[str] = []
    source.prepared(tmp_path / "copies", lines.append)
    assert lines == [
        "columns not used: image (binary), label (int64) (--image_column and --label_column choose others)"
    ]


def test_a_folder_in_hugging_faces_layout(tmp_path):
    for number, (first, last) in enumerate([(0, 4), (4, 4), (4, 9)]):  # one without rows
        one(tmp_path / "in" / "data" / f"train-{number:05}-of-00003.parquet", hugging_face(first, last))
    make_folder(tmp_path / "in", {"README.md": b"#", ".gitattributes": b""})
    source = ready(find_source(str(tmp_path / "in")), tmp_path / "copies")
    images, left_out, classes, _ = source.items()
    assert (len(images), left_out, classes) == (9, {}, {0: "a", 1: "b", 2: "c"})
    assert given(source, tmp_path / "copies") == BY_NAME
    assert images[5].name.startswith("train-00002-of-00003-000000001.")
    assert source.where(images[5]) == f"{tmp_path}/in/data/train-00002-of-00003.parquet: row 1"


def test_class_names_of_a_column_of_another_name(tmp_path):
    table = with_classes(pa.table({"image": FILES, "kind": LABELS, "number": range(9)}), "kind", ["x", "y", "z"])
    source = ready(one(tmp_path / "a.parquet", table), tmp_path / "copies")
    assert source.items().classes == {0: "x", 1: "y", 2: "z"}
    assert source.items().images.labels.tolist() == LABELS


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"info": {"features": {"label": {"names": 3}}}}', b"\xff"])
def test_metadata_of_another_kind_are_ignored(tmp_path, text):
    table = hugging_face().replace_schema_metadata({"huggingface": text})
    source = ready(one(tmp_path / "a.parquet", table), tmp_path / "copies")
    assert (source.items().classes, source.items().images.labels.tolist()) == ({}, LABELS)


def test_rows_without_image_are_named(tmp_path):
    rows = [*STRUCTS[:2], None, {"bytes": None, "path": "elsewhere.png"}, {"bytes": b"", "path": None}, STRUCTS[2]]
    source = one(tmp_path / "a.parquet", pa.table({"image": pa.array(rows, STRUCT)}), row_group_size=4)
    source = ready(source, tmp_path / "copies")
    images = source.items().images
    with source.open() as load:
        assert [load(images[row])[0] for row in (0, 1, 5)] == FILES[:3]
        for row in 2, 3, 4:
            with pytest.raises(UserError, match=rf"a\.parquet: row {row}: holds no image \(null, or no bytes\)$"):
                load(images[row])


def test_remote(tmp_path):
    one(tmp_path / "a.parquet", hugging_face(0, 5))
    one(tmp_path / "b.parquet", hugging_face(5, 9))
    with HttpServer({name: (tmp_path / name).read_bytes() for name in ("a.parquet", "b.parquet")}) as server:
        source = find_source(server.url("{a,b}.parquet"))
        assert given(source, tmp_path / "copies") == BY_NAME
        downloads = len(server.log)
        again = ready(source, tmp_path / "copies")  # the class names are kept as well
        assert again.items().classes == {0: "a", 1: "b", 2: "c"}
        assert len(server.log) == downloads + 2  # what version it is
        assert again.where(again.items().images[8]) == f"{server.url('b.parquet')}: row 3"
    assert {path.suffix for path in (tmp_path / "copies").iterdir()} == {".tar", ".json", ".lock"}


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"front": FILES, "back": pa.array(STRUCTS, STRUCT), "n": LABELS},
            {},
            r"no clear image column; name one with --image_column; it has front \(binary\), "
            r"back \(struct<bytes: binary, path: string>\), n \(int64\)$",
        ),
        ({"text": ["-"] * 9}, {}, r"no clear image column; .*; it has text \(string\)$"),
        ({"image": FILES}, {"image_column": "photo"}, r"no column 'photo' of images .*; it has image \(binary\)$"),
        (
            {"image": ["a.png"] * 9},
            {"image_column": "image"},
            r"no column 'image' of images .*; it has image \(string\)",
        ),
        (
            {"image": FILES},
            {"label_column": "kind"},
            r"no column 'kind' of labels \(numbers or words\); it has ",
        ),
        ({"image": FILES, "l": [[1]] * 9}, {"label_column": "l"}, r"no column 'l' of labels \(numbers or words\)"),
        ({"image": pa.array([], pa.binary())}, {}, "no images in it$"),
    ],
)
def test_columns_that_are_not_there(tmp_path, columns, options, message):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    source = find_source(str(tmp_path / "a.parquet"), **options)
    with pytest.raises(UsageError, match=rf"^{tmp_path}/a\.parquet: {message}") as refused:
        ready(source, tmp_path / "copies").items()
    assert "\n" not in str(refused.value)


def test_integers_as_names_keep_their_number(tmp_path):
    """Hugging Face's imagefolder numbers the folders 1, 10 and 2 so."""
    source = ready(one(tmp_path / "a.parquet", hugging_face(names=("1", "10", "2"))), tmp_path / "copies")
    assert source.items().classes == {1: "1", 2: "2", 10: "10"}
    assert source.items().images.labels.tolist() == [[1, 10, 2][label] for label in LABELS]


def test_classes_that_differ(tmp_path):
    one(tmp_path / "a.parquet", hugging_face(0, 5))
    one(tmp_path / "b.parquet", hugging_face(5, 9, names=("b", "a", "c")))
    with pytest.raises(UsageError, match=r"b\.parquet: its classes are others than those of .*a\.parquet$"):
        ready(find_source(f"{tmp_path}/*.parquet"), tmp_path / "copies")


def test_damaged_files_are_named(tmp_path):
    one(tmp_path / "good.parquet", hugging_face(), compression="snappy", row_group_size=3)
    good = (tmp_path / "good.parquet").read_bytes()
    draw = random.Random(0)
    damaged = [b"", b"<html>", good[:-1], good[: len(good) // 2], good[:4] + bytes(len(good) - 8) + good[-4:]]
    for _ in range(30):  # a page header or a page
        bad = bytearray(good)
        place = draw.randrange(4, len(good) // 2)
        bad[place : place + 8] = draw.randbytes(8)
        damaged.append(bytes(bad))
    refused = []
    for number, data in enumerate(damaged):
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(data)
        try:
            given(find_source(str(path)), tmp_path / "copies")
        except UserError as error:
            refused.append((path, str(error)))
    assert {path.stem for path, _ in refused} >= {"0", "1", "2", "3", "4"}
    assert [text for path, text in refused if not text.startswith(f"{path}: ") or "\n" in text] == []
    assert list((tmp_path / "copies").glob(".*")) == []


def test_pyarrow_is_missing(tmp_path, monkeypatch):
    source = one(tmp_path / "a.parquet", hugging_face())
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=r"pip install 'dcgan_dist\[parquet\]'$"):
        ready(source, tmp_path / "copies")
