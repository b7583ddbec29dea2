"""The compact list of images, folders, and which source an argument means."""

import gzip
import os
import zipfile
from multiprocessing.reduction import ForkingPickler
from pathlib import PurePosixPath
from urllib.error import URLError

import numpy as np
import pytest
from hypothesis import given as some
from hypothesis import settings
from hypothesis import strategies as st
from support.shards import write_ours
from support.sources import BY_NAME, PICTURES, given, make_folder, sent, tar_bytes

from dcgan_dist.data.sources import (
    FolderSource,
    ParquetSource,
    TarSource,
    TorchvisionSource,
    ZipSource,
    find_source,
)
from dcgan_dist.data.sources.base import Images, Item
from dcgan_dist.data.sources.tars import Tar
from dcgan_dist.errors import UsageError, UserError

# what a name on disk can be, bytes that are no UTF-8 among it
NAMES = st.lists(st.binary(max_size=12).map(lambda data: data.decode(errors="surrogateescape")), max_size=30)


@some(NAMES, st.randoms(use_true_random=False))
def test_images_are_a_list_of_names_and_labels(names, random):
    labels = [random.choice([None, 0, 7, 2**40]) for _ in names]
    items = list(map(Item, names, labels))
    images = Images(names, np.array([-1 if label is None else label for label in labels], dtype=np.int64))
    assert (list(images), len(images), list(images.names())) == (items, len(items), names)
    first, last, step = random.randint(-9, 30), random.randint(-9, 30), random.choice([1, 3, -1])
    assert list(sent(images.take(range(len(names))[first:last:step]))) == items[first:last:step]
    if names:
        places = random.choices(range(len(names)), k=7)
        assert list(images.take(places)) == [items[place] for place in places]
        assert images[-1] == items[-1]
    with pytest.raises(IndexError):
        images[len(names)]


def test_images_take_their_names_and_16_bytes_each():
    names = [f"n{number:07}/photo.jpg" for number in range(10_000)]
    whole, part = Images(names), Images(names).take(range(4_000, 4_100))
    assert len(ForkingPickler.dumps(whole)) < 10_000 * (len(names[0]) + 16) + 1_000
    assert len(ForkingPickler.dumps(part)) < 100 * (len(names[0]) + 16) + 1_000


PARTS = st.text("ab-.!/", min_size=1, max_size=3).map(lambda text: f"x{text.replace('/', '0')}")
PATHS = st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), min_size=1, max_size=12, unique=True)


def labels_another_way(names):
    """By paths: the number of the folder at the first level where they differ; those above it have none."""
    folders = [PurePosixPath(name).parent.parts for name in names]
    for level in range(max(map(len, folders))):
        classes = sorted({folder[level] for folder in folders if len(folder) > level})
        if len(classes) > 1:
            labels = [classes.index(folder[level]) if len(folder) > level else None for folder in folders]
            return labels, dict(enumerate(classes))
    return [None] * len(names), {}


@settings(max_examples=60)
@some(PATHS)
def test_folders_and_zips_by_the_bytes_of_the_paths(tmp_path_factory, paths):
    names = sorted(f"{path}.png" for path in paths)
    folder = make_folder(tmp_path_factory.mktemp("in"), dict.fromkeys(names, b""))
    with zipfile.ZipFile(folder / "in.zip", "w") as archive:
        for name in reversed(names):
            archive.writestr(name, b"")
    labels, classes = labels_another_way(names)
    for source, others in (FolderSource(folder), {".zip": 1}), (ZipSource(folder / "in.zip"), {}):
        images, *found, _ = source.items()
        assert (list(images), *found) == (list(map(Item, names, labels)), others, classes)


def test_a_name_that_is_not_utf8(tmp_path):
    name = os.fsdecode(b"gr\xfcn/\xe9t\xe9.png")
    assert given(FolderSource(make_folder(tmp_path / "in", {name: b"1"})), tmp_path) == [(b"1", None)]


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if path.name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    source = FolderSource(make_folder(tmp_path / "in"))
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"in/b: cannot be read \(Permission denied\)$"):
        source.items()


def test_class_names_of_a_data_set(tmp_path):
    class Pets(TorchvisionSource):
        def _opened(self, download):
            pets = type("Pets", (list,), {"classes": [("tench", "Tinca tinca"), "dog"]})
            return pets([("image", 1)])

    assert Pets("Pets", (), tmp_path, download=False).items().classes == {0: "tench, Tinca tinca", 1: "dog"}


def test_a_data_set_that_cannot_be_downloaded(tmp_path, monkeypatch):
    def unreachable(url, *_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    source = TorchvisionSource("CIFAR10", (), tmp_path, download=True)
    with pytest.raises(
        UserError, match=r"CIFAR10 could not be downloaded to .*not known.*; check the connection"
    ) as refused:
        source.items()
    assert refused.value.exit_code == 1


def parquet_file(path):
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    files = [data for data, _ in BY_NAME]
    pyarrow.parquet.write_table(pyarrow.table({"image": files, "label": [label for _, label in BY_NAME]}), path)
    return path


def make_everything(folder):
    """One of each kind, with the same pictures."""
    make_folder(folder / "photos")
    with zipfile.ZipFile(folder / "photos.ZIP", "w") as archive:
        for name, data in PICTURES.items():
            archive.writestr(name, data)
    members = sorted(PICTURES.items())
    for number, part in enumerate((members[:4], members[4:])):
        (folder / f"t{number}.tar").write_bytes(tar_bytes(part))
    make_folder(folder / "tars", {"deep/0.tgz": gzip.compress(tar_bytes(members)), "notes.txt": b""})
    parquet_file(folder / "parquet" / "data" / "train.parquet")
    make_folder(folder / "parquet", {"README.md": b"", ".cache/broken.parquet": b""})
    rows = "".join(f"photos/{name},{name[0]}\n" for name, _ in members)
    (folder / "list.csv").write_text(rows)
    (folder / "list.TSV").write_text(rows.replace(",", "\t"))
    (folder / "list.jsonl").write_text(
        "".join(f'{{"path": "photos/{name}", "label": "{name[0]}"}}\n' for name, _ in members)
    )
    (folder / "odd [1]{2,3}.tar").write_bytes(tar_bytes(members))
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "photos",
        "photos.ZIP",
        "t{0,1}.tar",
        "t{0..1}.tar",
        "t*.tar",
        "tars",
        "tars/**/*.tgz",
        "parquet",
        "parquet/data",
        "parquet/*/*.parquet",
        "list.csv",
        "list.TSV",
        "list.jsonl",
        "odd [1]{2,3}.tar",
    ],
)
def test_every_kind_of_source_gives_the_same_pictures(tmp_path, monkeypatch, text):
    monkeypatch.chdir(make_everything(tmp_path))
    assert given(find_source(text), tmp_path / "copies") == BY_NAME


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere", r"^nowhere: no such file or folder; give a folder of images, a \.zip of one, or torchvision:NAME"),
        ("", r"^the source is empty; give a folder"),
        ("some.txt", r"^some\.txt: neither a folder nor a \.zip, nor a tar, Parquet file or list by its ending; give "),
        ("t{0,1}.tar", r"^t0\.tar: no such file or folder"),
        ("t*.tar", r"^t\*\.tar: no such files \(seen from "),
        ("{a,b", r"^\{a,b: the braces do not match$"),
        ("s3://bucket/{0..9.tar?key=secret", r"^s3://bucket/\{0\.\.9\.tar: the braces do not match$"),
        (
            "mixed",
            r"^mixed/a\.tar and mixed/b\.parquet are of different kinds; give one kind at a time, as in ",
        ),
        ("mixed/*", r"^mixed/a\.tar and mixed/b\.parquet are of different kinds"),
        ("m{i,i}xed/a.tar", r"^m\{i,i\}xed/a\.tar: names a file twice$"),
        ("{a,b}.zip", r"^\{a,b\}\.zip: of \.zip files, give one at a time, on a local disk$"),
        ("http://me:secret@host/a.csv?key=secret", r"^http://host/a\.csv: of \.csv files, give one at a time"),
        ("http://host/a?key=secret.tar", r"^http://host/a: neither a folder nor a \.zip"),
        ("http://host/*.tar", r"^http://host/\*\.tar: a web server has no listing"),
        ("ftp://host/a.tar", r"^ftp://host/a\.tar: 'ftp' is none of http, "),
        ("pipe:cat a.tar", "no such file or folder"),
        ("http://[host/a", r"^http://\[host/a: neither a folder"),
        (f"http://host/a?{'signature' * 100}", r"^http://host/a: neither a folder"),
        (f"{{{','.join(['long'] * 100)}}}", "^long: no such file"),
    ],
)
def test_arguments_that_name_no_source(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(make_folder(tmp_path, {"some.txt": b"x", "a.zip": b"", "b.zip": b""}))
    make_folder(tmp_path / "mixed", {"a.tar": b"", "b.parquet": b""})
    with pytest.raises(UsageError, match=message) as refused:
        find_source(text).prepared(tmp_path, print)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_the_types_of_sources(tmp_path):
    write_ours(tmp_path / "a.tar", 1)
    assert isinstance(find_source(str(tmp_path / "a.tar")), TarSource)
    url = f"http://host/a.tar?{'signature' * 100}"
    assert find_source(url) == TarSource((Tar(url),))
    expected = ParquetSource(("s3://bucket/a.parquet",), "photo", "kind")
    assert find_source("s3://bucket/a.parquet", image_column="photo", label_column="kind") == expected


def test_images_beside_tars_are_a_folder_of_images(tmp_path):
    folder = make_folder(tmp_path / "in", {**PICTURES, "a.tar": b"no tar", "z.parquet": b""})
    source = find_source(str(folder))
    assert source == FolderSource(folder)
    assert source.items().left_out == {".tar": 1, ".parquet": 1}


@pytest.mark.parametrize("columns", [("x", None), (None, "x")])
def test_columns_of_what_has_none(tmp_path, columns):
    (tmp_path / "a.tar").write_bytes(b"")
    for source in str(make_folder(tmp_path / "in")), str(tmp_path / "a.tar"), "torchvision:FakeData":
        with pytest.raises(UsageError, match="has no columns; --image_column and --label_column are for Parquet"):
            find_source(source, image_column=columns[0], label_column=columns[1])


def test_a_folder_under_several_names_counts_under_each(tmp_path):
    folder = make_folder(tmp_path / "in", {"z/1.png": b"", "z/2.png": b""})
    (folder / "a").symlink_to(folder / "z")
    (folder / "z" / "back").symlink_to(folder)
    images, _, classes, _ = find_source(str(folder)).items()
    assert [item.name for item in images] == ["a/1.png", "a/2.png", "z/1.png", "z/2.png"]
    assert classes == {0: "a", 1: "z"}


def test_errors_of_a_data_set_are_one_line(monkeypatch, tmp_path):
    def broken(root):
        raise AssertionError("one\n  two")

    monkeypatch.setattr("torchvision.datasets.FakeData", broken)
    with pytest.raises(UsageError, match=r"torchvision:FakeData in .*: one two$"):
        find_source("torchvision:FakeData", tmp_path).items()


@pytest.mark.parametrize("text", ["in/3.png", "pipe.tar", "pipe.zip", "pipe.csv"])
def test_a_pipe_is_no_file_and_nothing_waits_for_it(tmp_path, monkeypatch, text):
    monkeypatch.chdir(make_folder(tmp_path / "in").parent)
    os.mkfifo(text)
    with pytest.raises(UserError, match=f"{text}: .*no regular file, but a pipe, a socket or a device"):
        given(find_source(text.partition("/")[0]), tmp_path / "copies")


def test_folders_in_a_zip_of_windows_are_classes(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in "cat\\1.png", "dog\\2.png", "dog\\":
            archive.writestr(name, name)
    source = find_source(str(tmp_path / "a.zip"))
    images, left_out, classes, _ = source.items()
    assert (list(images), left_out) == ([Item("cat/1.png", 0), Item("dog/2.png", 1)], {})
    assert classes == {0: "cat", 1: "dog"}
    with source.open() as load:
        assert [load(item)[0] for item in images] == [b"cat\\1.png", b"dog\\2.png"]


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (
            ("1.png", "metadata.jsonl"),
            "none, for there are no class folders; 1 other file (1 .jsonl) may",
        ),
        (
            ("a/1.png", "1.cls", "2.cls", "x.md"),
            "none, for there are no class folders; 2 other files (2 .cls) may",
        ),
        (
            ("train/a/1.png", "Test2/a/1.png"),
            "the classes are named as parts of a data set; pack one",
        ),
        (("train/1.png", "a/1.png", "metadata.csv"), ""),
    ],
)
def test_labels_that_folders_do_not_have_are_reported(tmp_path, files, line):
    lines = find_source(str(make_folder(tmp_path / "in", dict.fromkeys(files, b"")))).items().lines
    assert [text[: len(line) + 8] for text in lines] == [f"labels: {line}"] * bool(line)


@pytest.mark.parametrize(
    ("text", "train"), [("", True), ("?train=false", False), ("?train=True", True), ("?train=no", False)]
)
def test_switches_of_a_data_set(monkeypatch, tmp_path, text, train):
    """To Python, 'false' is true."""

    class Digits(list[int]):
        def __init__(self, train: bool = True) -> None:
            super().__init__(range(3 + train))

    monkeypatch.setattr("torchvision.datasets.FakeData", Digits)
    assert len(find_source(f"torchvision:FakeData{text}", tmp_path).items().images) == 3 + train


def test_only_data_sets_of_torchvision_are_downloaded(tmp_path):
    with pytest.raises(UsageError, match="is not downloaded; --download is for torchvision:NAME"):
        find_source(str(make_folder(tmp_path / "in")), download=True)
