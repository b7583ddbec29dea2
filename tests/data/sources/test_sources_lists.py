"""Lists of files with labels: what they say is what the source gives, and a bad line is named."""

import csv
import json

import pytest
from hypothesis import given as some
from hypothesis import strategies as st
from support.sources import BY_NAME, PICTURES, given, make_folder

from dcgan_dist.data.sources import find_source
from dcgan_dist.data.sources.base import Item
from dcgan_dist.errors import UsageError, UserError

NAMES = sorted(PICTURES)
KINDS = [name[0] for name in NAMES]


def one(folder, name, text, **options):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return find_source(str(folder / name), **options)


@pytest.fixture
def pictures(tmp_path):
    return make_folder(tmp_path)


def rows(separator, form="{name}{separator}{kind}\n"):
    return "".join(form.format(name=name, separator=separator, kind=name[0]) for name in NAMES)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", rows(",")),
        ("a.csv", "\ufefffile_name,label\r\n" + rows(",").replace("\n", "\r\n")),
        ("a.csv", "id,Class,Path\n" + "".join(f'7,{name[0]},"{name}"\n' for name in NAMES)),
        ("a.tsv", "path\ttext\tcls\n" + "".join(f"{name}\tone, two\t{name[0]}\n" for name in NAMES)),
        ("metadata.jsonl", "".join(json.dumps({"label": name[0], "file_name": name}) + "\n\n" for name in NAMES)),
        ("metadata.csv", "file_name,text,target\n" + "".join(f'{name},"a\nb",{name[0]}\n' for name in NAMES)),
    ],
    ids=["plain", "header", "other columns", "tsv", "jsonl", "lines in cells"],
)
def test_the_same_pictures_as_the_folders(pictures, tmp_path, name, text):
    source = one(pictures, name, text)
    assert given(source, tmp_path / "copies") == BY_NAME
    assert source.items().classes == {0: "a", 1: "b", 2: "c"}
    assert [source.where(item) for item in source.items().images] == [f"{pictures}/{name}" for name in NAMES]


def test_absolute_paths_in_another_order_and_no_labels(pictures, tmp_path):
    (tmp_path / "lists").mkdir()
    for name, lines in (
        ("a.csv", [f"{pictures}/{name}" for name in reversed(NAMES)]),
        ("a.tsv", [f"../{name}" for name in reversed(NAMES)]),
        ("a.jsonl", [json.dumps({"image": f"../{name}", "label": None}) for name in reversed(NAMES)]),
    ):
        source = one(tmp_path / "lists", name, "\n".join(lines))
        assert given(source, tmp_path / "copies") == [(data, None) for data, _ in reversed(BY_NAME)]
        assert source.items().classes == {}


@pytest.mark.parametrize(
    ("texts", "labels", "classes"),
    [
        (["3", "0", "-5", ""], [3, 0, None, None], {0: "0", 3: "3"}),
        (["10", "9", "007"], [10, 9, 7], {7: "007", 9: "9", 10: "10"}),
        (["3", "10", "x", "-1", ""], [3, 10, 11, None, None], {3: "3", 10: "10", 11: "x"}),
        (["1" * 19, "2"], [3, 2], {2: "2", 3: "1" * 19}),
        (["٣", "2"], [3, 2], {2: "2", 3: "٣"}),
        (["é", "z", "b c"], [2, 1, 0], {0: "b c", 1: "z", 2: "é"}),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_labels(tmp_path, texts, labels, classes, ending):
    if ending == "jsonl":
        lines = [json.dumps({"path": "a.png", "class": text}, ensure_ascii=False) for text in texts]
    else:
        lines = [("," if ending == "csv" else "\t").join(("a.png", text)) for text in texts]
    images, _, found, _ = one(tmp_path, f"a.{ending}", "\n".join(lines)).items()
    assert (list(images), found) == ([Item("a.png", label) for label in labels], classes)


def test_integers_with_a_point(tmp_path):
    rows = '{"file": "a", "label": 4.0}\n{"file": "b", "label": "2.0"}\n{"file": "c"}\n'
    items = one(tmp_path, "a.jsonl", rows).items()
    assert [item.label for item in items.images] == [4, 2, None]
    assert items.lines == ("labels: 1 of 3 images have none in the list",)


def test_integers_in_json(tmp_path):
    images, left_out, classes, _ = one(
        tmp_path, "a.jsonl", '{"file": "a", "label": 4}\n{"file": "b", "label": 2}\n'
    ).items()
    assert (list(images), left_out, classes) == ([Item("a", 4), Item("b", 2)], {}, {2: "2", 4: "4"})


CELLS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)


@some(st.lists(st.tuples(CELLS.filter(str.strip), CELLS), min_size=1, max_size=8))
def test_whatever_is_written_is_read(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("lists")
    pairs = [(name, f"x{label}" if label.strip() else "") for name, label in pairs]  # no numbers
    for ending, delimiter in ("csv", ","), ("tsv", "\t"):
        with (folder / f"a.{ending}").open("w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([("path", "label"), *pairs])
    lines = [json.dumps({"path": name, "label": label}) + "\n" for name, label in pairs]
    (folder / "a.jsonl").write_text("".join(lines))
    classes = sorted({label.strip() for _, label in pairs} - {""}, key=str.encode)
    wanted = [Item(name, classes.index(label.strip()) if label.strip() else None) for name, label in pairs]
    for ending in "csv", "tsv", "jsonl":
        images, left_out, names, _ = find_source(str(folder / f"a.{ending}")).items()
        assert (list(images), left_out, names) == (wanted, {}, dict(enumerate(classes)))


def test_columns_by_name(pictures, tmp_path):
    text = "path,label,photo,kind\n" + "".join(f"x,9,{name},{name[0]}\n" for name in NAMES)
    source = one(pictures, "a.csv", text, image_column="photo", label_column="kind")
    assert given(source, tmp_path) == BY_NAME
    text = "".join(json.dumps({"photo": name, "kind": name[0], "label": 9}) + "\n" for name in NAMES)
    source = one(pictures, "a.jsonl", text, image_column="photo", label_column="kind")
    assert given(source, tmp_path) == BY_NAME


def test_names_that_are_not_utf8(tmp_path):
    (tmp_path / "caf\udce9.png").write_bytes(b"1")
    assert given(one(tmp_path, "a.csv", b"caf\xe9.png,3\n"), tmp_path) == [(b"1", 3)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "a,1\nb\n", "line 2: 1 columns, and 2 in the first line"),
        ("a.csv", "path,label\na,1\n\nb,c,2\n", "line 4: 3 columns, and 2 in the first line"),
        ("a.csv", 'a,1\n"b,2\n', "line 2: unexpected end of data"),
        ("a.csv", "a,1\n ,2\n", "line 2: ' ' is no path"),
        ("a.csv", "a,1\nb\0,2\n", r"line 2: 'b\x00' is no path"),
        ("a.jsonl", '{"path": "a"}\nb\n', "line 2: no JSON (Expecting value: line 1 column 1 (char 0))"),
        ("a.jsonl", '["a", 1]\n', "line 1: no JSON object"),
        ("a.jsonl", '\n{"name": "a"}\n', "line 2: it has no path or file or file_name or filename or image"),
        ("a.jsonl", "[" * 10**5, "line 1: no JSON (maximum recursion depth exceeded"),
        ("a.jsonl", '{"path": 3}\n', "line 1: 3 is no path"),
        ("a.jsonl", '{"image": {"bytes": "x"}}\n', "line 1: {'bytes': 'x'} is no path"),
        ("a.jsonl", '{"path": "\\ud800"}\n', r"line 1: '\ud800' is no path"),
        ("a.jsonl", '{"path": "a", "label": 1.5}\n', "line 1: the label 1.5 is neither a number nor a name"),
        ("a.jsonl", '{"path": "a", "label": true}\n', "line 1: the label True is neither a number nor a name"),
        (
            "a.jsonl",
            '{"path": "a", "label": "\\ud800"}\n',
            r"line 1: the label '\ud800' is neither a number nor a name",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path, name, text, message):
    with pytest.raises(UserError) as refused:
        one(tmp_path, name, text).items()
    assert str(refused.value).startswith(f"{tmp_path / name}, {message}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("a.csv", "", {}, "no images in it"),
        ("a.csv", "path,label\n", {}, "no images in it"),
        (
            "a.csv",
            "a,b,c\n",
            {},
            "no column of its first line is called path or file or file_name or filename or image",
        ),
        ("a.csv", "name,label\n", {}, "no column of its first line is called path or "),
        ("a.csv", "path,label\n", {"image_column": "photo"}, "no column 'photo'; its first line has path, label"),
        ("a.csv", "path,label\n", {"label_column": "kind"}, "no column 'kind'; its first line has path, label"),
    ],
)
def test_lists_that_are_none(tmp_path, name, text, options, message):
    with pytest.raises(UsageError) as refused:
        one(tmp_path, name, text, **options).items()
    assert str(refused.value).startswith(f"{tmp_path / name}: {message}")


def test_a_file_that_is_not_there(pictures):
    source = one(pictures, "a.csv", "missing.png\na/2.png\n")
    images = source.items().images
    with source.open() as load:
        with pytest.raises(
            UserError, match=rf"^{pictures}/missing\.png: cannot be read \(No such file or directory\)$"
        ):
            load(images[0])
        assert load(images[1]) == (PICTURES["a/2.png"], None)


def test_a_list_that_cannot_be_read(tmp_path):
    source = one(tmp_path, "a.csv", "a.png\n")
    (tmp_path / "a.csv").unlink()
    with pytest.raises(UserError, match=r"a\.csv: cannot be read \(No such file or directory\)$"):
        source.items()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "path,Labels,category,note\na.png,1,x,y\nb.png,2,x,y\n"),
        ("a.jsonl", '{"path": "a.png", "labels": 1, "category": 2}\n{"note": 3, "path": "b.png", "labels": 2}\n'),
    ],
)
def test_columns_that_are_not_used_are_reported(tmp_path, name, text):
    images, _, _, lines = one(tmp_path, name, text).items()
    assert images.labels.tolist() == [1, 2]
    assert lines == ("columns not used: category, note (--image_column and --label_column choose others)",)


def test_a_plural_is_a_label_only_where_there_is_no_other(tmp_path):
    assert one(tmp_path, "a.csv", "path,labels,class\na.png,7,1\n").items().images.labels.tolist() == [1]
    rows = '{"path": "a", "labels": ["cat", "dog"]}\n{"path": "b", "labels": {"x": 1}}\n{"path": "c", "labels": 3}\n'
    images, _, _, lines = one(tmp_path, "a.jsonl", rows).items()
    assert images.labels.tolist() == [-1, -1, 3]
    assert lines == ("labels: 2 of 3 images have none (1 a dict, 1 a list)",)
    with pytest.raises(UserError, match=r"line 1: the label \['cat', 'dog'\] is neither a number nor a name"):
        one(tmp_path, "a.jsonl", rows, label_column="labels").items()


def test_columns_with_other_separators_are_no_paths(tmp_path):
    for line in "path;label", "file_name\tlabel", "id|path|label":
        with pytest.raises(UsageError, match="its columns are not separated by commas"):
            one(tmp_path, "a.csv", f"{line}\na.png;1\n").items()
    assert [item.name for item in one(tmp_path, "a.csv", "my;1.png\n").items().images] == ["my;1.png"]
