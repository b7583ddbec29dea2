"""Which members of other programs' tars are images and labels; what is skipped is reported."""

import json

import pytest
from support.shards import by_index, encoded, open_corpus, write_ours, write_tar

from dcgan_dist.config import Config
from dcgan_dist.config.groups import DataConfig
from dcgan_dist.data.loading import open_data
from dcgan_dist.data.reading.stream import tar_images
from dcgan_dist.data.shards.foreign import foreign_index, walk
from dcgan_dist.data.shards.labels import label_text, read_label
from dcgan_dist.data.shards.notes import Notes
from dcgan_dist.data.shards.samples import IGNORED, MemberChoice, MemberChooser
from dcgan_dist.data.sources import find_source
from dcgan_dist.errors import UsageError, UserError


def tar(path, *names):
    """Members of these names, each with its name as data; of (name, data) with that."""
    members = [name if isinstance(name, tuple) else (name, name.encode()) for name in names]
    return write_tar(path, members)


def keys(path, choice=None):
    rows = by_index(walk(path, choice or MemberChoice()))
    assert all(data.decode().lower() == f"{key}.{suffix}" for key, suffix, data, _ in rows)
    return [key for key, *_ in rows]


CHOSEN = {
    "dots in every name": (["img.000.jpg", "img.001.jpg", "x/img.000.PNG"], None, ["img.000", "img.001", "x/img.000"]),
    "dots in some names": (["img.0.jpg", "1.jpg"], None, ["img.0", "1"]),
    "words with dots": (["mr.x.jpg", "mr.y.jpg", "ms.z.jpg"], None, ["mr.x", "mr.y", "ms.z"]),
    "a mask beside each": (["1.jpg", "1.seg.png", "2.jpg", "2.seg.png"], None, ["1", "2"]),
    "a mask alone": (["1.jpg", "1.seg.png", "2.seg.png"], None, ["1"]),
    "a mask alone, and a key": (["0.seg.png", "1.jpg", "1.seg.png", "2.seg.png"], "jpg", ["1"]),
    "masks alone": (["1.seg.png", "2.seg.png"], None, ["1.seg", "2.seg"]),
    "frames": (["a.f0.jpg", "a.f1.jpg", "b.f0.jpg", "b.f1.jpg"], None, ["a.f0", "a.f1", "b.f0", "b.f1"]),
    "hidden files": (["1.jpg", "x/1.jpg", "x/._1.jpg", "._1.jpg"], None, ["1", "x/1"]),
    "a key": (["1.input.jpg", "1.target.jpg", "2.input.jpg", "2.target.jpg"], "input.jpg", ["1.input", "2.input"]),
    "a plain key": (["1.jpg", "1.png", "2.jpg"], "png", ["1"]),
    "several keys": (["1.jpg", "1.png", "2.jpg"], ".PNG; jpg", ["1", "2"]),
    "a key that is no suffix of images": (["1.img", "1.jpg"], "img", ["1"]),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_which_members_are_images(tmp_path, case):
    names, key, wanted = CHOSEN[case]
    path = tar(tmp_path / "x.tar", *names)
    choice = MemberChoice(image_key=key)
    assert keys(path, choice) == wanted
    assert [where.partition(": ")[2].rpartition(".")[0] for *_, where in tar_images(str(path), choice)] == wanted
    items = find_source(str(path), choice=choice).items()
    assert len(items.images) == len(wanted)
    left = len(names) - len(wanted)
    assert ("skipped" in "".join(items.lines)) == (left > 0)


def test_several_images_in_each_sample_have_to_be_chosen_from(tmp_path):
    path = tar(tmp_path / "x.tar", "1.in.jpg", "1.out.jpg", "2.in.jpg", "2.out.jpg")
    line = rf"^{path}: several images in each sample, as in 2\.in\.jpg and 2\.out\.jpg; choose one by its key, as in --"
    with pytest.raises(UserError, match=line):
        walk(path)
    with pytest.raises(UserError, match=line):
        list(tar_images(str(path)))


def test_a_mask_that_stands_before_all_images_may_be_one(tmp_path):
    path = tar(tmp_path / "x.tar", "1.seg.png", "2.jpg", "2.seg.png")
    line = rf"^{path}: images or not\? 1\.seg\.png alone and 2\.seg\.png beside 2\.jpg; choose one by its key, as in --"
    for read in walk, lambda path: list(tar_images(str(path))), lambda path: find_source(str(path)).items():
        with pytest.raises(UserError, match=line):
            read(path)


@pytest.mark.parametrize(
    ("names", "used"),
    [
        (["1.seg.png", "2.jpg", "2.seg.png", "3.seg.png"], ["1.seg", "2"]),
        (["a.1.jpg", "b.jpg", "b.1.jpg"], ["a.1", "b"]),
    ],
)
def test_lone_images_are_used_and_reported_where_damage_is_skipped(tmp_path, names, used):
    path, choice, streamed = tar(tmp_path / "x.tar", *names), MemberChoice(skip_bad=True), list[Notes]()
    assert keys(path, choice) == used
    notes = walk(path, choice).notes
    assert [line.partition(":")[2].split()[0] for line in notes.lines()] == [str(len(names) - 2), "1"]
    found = tar_images(str(path), choice, streamed.append)
    assert [where.partition(": ")[2].rpartition(".")[0] for *_, where in found] == used
    assert streamed == [notes]
    with pytest.raises(UserError, match=r"--data\.image_key .*--resume\.allow_changes data\.image_key"):
        walk(path)


def test_what_is_kept_of_a_tar_depends_on_the_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tar(tmp_path / "x.tar", "1.jpg", "1.png", ("1.cls", b"1"), ("1.json", b'{"kind": 2}'))
    choices = [MemberChoice(), MemberChoice(image_key="png"), MemberChoice(label_key="kind")]
    found = [by_index(foreign_index(path, choice)) for choice in choices + choices]
    assert (
        found[:3]
        == found[3:]
        == [[("1", "jpg", b"1.jpg", 1)], [("1", "png", b"1.png", 1)], [("1", "jpg", b"1.jpg", 2)]]
    )


def test_keys_are_for_tars_of_others(tmp_path):
    ours = write_ours(tmp_path / "ours.tar", 2)
    lines: list[str] = []
    open_data(Config(data=DataConfig(shards=(str(ours),), image_key="png")), lines.append)
    assert f"data: {IGNORED}" in lines
    assert find_source(str(ours), choice=MemberChoice(label_key="x")).items().lines == (IGNORED,)
    (tmp_path / "1.jpg").write_bytes(b"1")
    with pytest.raises(UsageError, match="has no members; --image_key, --label_key and --allow_cut are for tars"):
        find_source(str(tmp_path), choice=MemberChoice(image_key="png"))


def members(*labels):
    """Images, each with members for its label."""
    return [
        m for n, each in enumerate(labels) for m in ((f"{n}.jpg", b"-"), *((f"{n}.{s}", d) for s, d in each.items()))
    ]


def as_json(**tree):
    return {"json": json.dumps(tree).encode()}


LABELS = {
    "numbers": ([{"cls": b"3"}, {"cls": b" 007\n"}, {"cls": b"1.0"}, {"cls": b"2e1"}], [3, 7, 1, 20], {}),
    "words": ([{"cls": b"dog"}, {"cls": b"cat\n"}, {"cls": b"dog"}], [1, 0, 1], {0: "cat", 1: "dog"}),
    "label in .json": ([as_json(label=4), as_json(x=1, cls="5"), as_json(label=2.0)], [4, 5, 2], {}),
    "words in .json": ([as_json(label="b"), as_json(label="a")], [1, 0], {0: "a", 1: "b"}),
    "other suffixes": ([{"class": b"4"}, {"label": b"5"}, {"json": b"6"}], [4, 5, 6], {}),
    ".cls before .json": ([{"cls": b"1", **as_json(label=2)}], [1], {}),
    "a few words among numbers": (
        [{"cls": b"1"}, {"cls": b"n/a"}, {"cls": b"2"}],
        [1, 3, 2],
        {1: "1", 2: "2", 3: "n/a"},
    ),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels(tmp_path, case):
    """In shards that are made of the tar, and in training with it."""
    content, wanted, classes = LABELS[case]
    path = write_tar(tmp_path / "x.tar", members(*content))
    items = find_source(str(path)).items()
    assert ([item.label for item in items.images], items.classes) == (wanted, classes)
    corpus = open_corpus([str(path)])
    assert (corpus.labels.tolist(), corpus.classes) == ([-1 if label is None else label for label in wanted], classes)
    assert ("".join(items.lines) != "") == (None in wanted or case == ".cls before .json")


def test_labels_apart_from_their_images(tmp_path):
    names = [f"{number}" for number in range(4)]
    path = write_tar(
        tmp_path / "x.tar",
        [(f"{name}.jpg", b"-") for name in names] + [(f"{name}.cls", name.encode()) for name in [*names[1:], "9"]],
    )
    items = find_source(str(path)).items()
    assert [item.label for item in items.images] == [None, 1, 2, 3]
    assert items.lines == (
        "skipped: 1 other member (1 .cls), 1 sample without an image",
        "labels: 1 of 4 images has none (1 no label found)",
    )


def test_labels_of_names_with_dots(tmp_path):
    path = write_tar(
        tmp_path / "x.tar", [("i.0.jpg", b"-"), ("i.0.cls", b"5"), ("i.1.jpg", b"-"), ("i.1.json", b'{"label": 6}')]
    )
    assert [row[3] for row in by_index(walk(path))] == [5, 6]


def test_photos_with_dots_in_their_names_may_be_renamed():
    chooser = MemberChooser(MemberChoice())
    chooser.images("john", ["smith.jpg", "doe.jpg"])
    with pytest.raises(UserError, match=r"or rename the files: webdataset ends a name at its first dot$"):
        chooser.images("jane", ["smith.jpg", "poe.jpg"])


def test_words_of_several_tars_are_numbered_together(tmp_path):
    write_tar(tmp_path / "a.tar", members({"cls": b"dog"}, {"cls": b"eel"}))
    write_tar(tmp_path / "b.tar", members({"cls": b"cat"}, {}, {"cls": b"dog"}))
    write_tar(tmp_path / "c.tar", members({"cls": b"8"}))
    classes = {8: "8", 9: "cat", 10: "dog", 11: "eel"}
    items = find_source(f"{tmp_path}/*.tar").items()
    assert (items.images.labels.tolist(), items.classes) == ([10, 11, 9, -1, 10, 8], classes)
    corpus = open_corpus([f"{tmp_path}/*.tar"])
    assert (corpus.labels.tolist(), corpus.classes) == ([10, 11, 9, -1, 10, 8], classes)
    part = corpus.of_classes([9, 10])
    assert (part.labels.tolist(), part.classes) == ([10, 9, 10], classes)
    assert [part.index(number).label.tolist() for number in range(2)] == [[10, 11], [9, -1, 10]]


@pytest.mark.parametrize(
    ("value", "text", "problem"),
    [
        (True, "1", ""),
        (3.0, "3", ""),
        ("+4", "4", ""),
        ("", "", ""),
        (None, "", ""),
        (0.5, "", "no integer"),
        ("nan", "", "no integer"),
        (-1, "", "a negative number"),
        *((number, "", "a number of more than 18 digits") for number in (10**18, 10**400, "9" * 400, "9" * 5_000)),
        ("-" + "9" * 5_000, "", "a negative number"),
        ("+" + "0" * 5_000 + "7", "7", ""),
        ("-0", "0", ""),
        ([1, 2], "", "a list"),
        ("x" * 201, "", "a long text"),
        ("a\0b", "", "no text"),
        ("７", "７", ""),
    ],
)
def test_values_of_labels(value, text, problem):
    assert label_text(value) == (text, problem)


def test_members_of_labels():
    assert read_label(b"{", "json") == ("", "no JSON")
    assert read_label(b'{"a": {"b": 1}}', "json", ["a"]) == ("", "a dict")
    assert read_label(b"\xef\xbb\xbf3", "cls") == ("3", "")
    for digits in 400, 5_000:
        for text, suffix in ((b"9" * digits, "cls"), (b'{"cls": %s}' % (b"9" * digits), "json")):
            assert read_label(text, suffix) == ("", "a number of more than 18 digits")
    assert read_label(b'{"cls": -3}', "json") == ("", "a negative number")
    assert read_label(b'{"cls": 3}', "json") == ("3", "")


def test_training_reports_what_is_not_used(tmp_path):
    image = encoded(1)
    content = [("1.ppm", image), ("1.seg.png", b""), ("1.txt", b""), ("2.ppm", image), ("2.cls", b"0.5"), ("x", b"")]
    path = write_tar(tmp_path / "x.tar", [*content, ("3.json", b"{}")])
    write_tar(tmp_path / "y.tar", [])
    lines: list[str] = []
    open_data(Config(data=DataConfig(shards=(f"{tmp_path}/*.tar",))), lines.append)
    assert f"data: 1 of 2 shards hold no image: {tmp_path}/y.tar" in lines
    passed = "4 other members (1 .json, 1 .seg.png, 1 .txt, 1 without ending), 1 sample without an image"
    assert f"data: skipped: {passed}" in lines
    assert "data: labels: 2 of 2 images have none (1 no integer in .cls, 1 no label found)" in lines
    write_tar(path, content[:2])
    with pytest.raises(UserError, match=rf"^{path}: holds no images; skipped: 2 other members \(1 \.ppm, 1 \.seg"):
        open_data(Config(data=DataConfig(shards=(str(path),), image_key="jpg")), lines.append)
