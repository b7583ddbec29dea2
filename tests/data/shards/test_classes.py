"""Labels on their way from folders and .cls files into batches, and trainings on some classes alone."""

import io
import itertools
import json
import re
import shlex
import zipfile
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.shards import key_of, open_corpus, write_tar

from dcgan_dist import cli, train
from dcgan_dist.commands import shard
from dcgan_dist.config import Config
from dcgan_dist.config.groups import DataConfig, ModelConfig
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.loading import open_data
from dcgan_dist.data.order import Split
from dcgan_dist.data.reading.decode_pool import DecodePlan
from dcgan_dist.data.reading.fetch import Fetcher
from dcgan_dist.data.reading.reader import IndexedReader
from dcgan_dist.data.shards.index import ShardWriter
from dcgan_dist.data.shards.labels import classes_text, find_labels, label_text, number_names, renumber
from dcgan_dist.data.shards.manifest import load_manifest
from dcgan_dist.data.sources import find_source
from dcgan_dist.errors import UsageError

SIZE = 32


@cache
def flat(number):
    """A picture that says its number, below 250, in every pixel; as a PPM file."""
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (number, number, number)).save(file, "PPM")
    return file.getvalue()


def write_flat(path, labels, first=0):
    """A shard of ours with flat pictures `first`, .. of these labels; None: unlabelled."""
    with ShardWriter(path) as writer:
        for number, label in enumerate(labels, first):
            writer.add(f"{number:05}", "ppm", flat(number), label)
    return path


def epochs(corpus, ranks=1, each=2, count=2, kind: Any = "threads"):
    """(number, label) of every image that is seen in each of some epochs, `each` at a time on every rank, in order."""
    batch, parts = ranks * each, []
    for rank in range(ranks):
        reader = IndexedReader(Fetcher(corpus, (SIZE, 3)), seed=6, plan=DecodePlan(kind=kind, count=2, prefetch=1))
        batches = reader.batches(0, Split(batch=batch, micro_batches=1, rank=rank, world_size=ranks))
        steps = -(-count * corpus.size // batch)
        parts.append([pairs(batch) for batch in itertools.islice(batches, steps)])
        batches.close()
    seen = [pair for step in zip(*parts, strict=True) for part in step for pair in part]
    return [seen[epoch * corpus.size : (epoch + 1) * corpus.size] for epoch in range(count)]


def pairs(batch):
    pixels = batch.rows.pixels
    assert (pixels == pixels[:, :1, :1, :1]).all()
    return list(zip(pixels[:, 0, 0, 0].tolist(), batch.labels.tolist(), strict=True))


CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(scope="module", params=["folder", "zip"])
def source(request, tmp_path_factory):
    """Pictures in class folders; the number of a picture is ten times its class and something."""
    folder = tmp_path_factory.mktemp("source") / "pictures"
    numbers = [(name, 10 * label + k) for label, name in enumerate(CLASSES) for k in range(4 + label)]
    for name, number in numbers:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{number}.ppm").write_bytes(flat(number))
    if request.param == "folder":
        return folder
    packed = folder.with_suffix(".zip")
    with zipfile.ZipFile(packed, "w") as file:
        for path in sorted(folder.rglob("*.ppm")):
            file.write(path, path.relative_to(folder))
    return packed


ALL_OF_SOURCE = [(10 * label + k, label) for label in range(3) for k in range(4 + label)]


def shards_of(source, out, *options):
    given = [source, out, "--shard_size", 6, "--processes", 1, *options]
    assert shard.main([str(option) for option in given]) == 0
    return str(out / "*.tar")


@pytest.mark.parametrize("store", [["ppm", "--size", SIZE], ["png", "--size", SIZE], ["keep"]])
@pytest.mark.parametrize("ranks", [1, 3])
def test_the_folder_of_an_image_is_its_label_in_the_batch(source, tmp_path, capsys, store, ranks):
    corpus = open_corpus([shards_of(source, tmp_path / "out", "--store", *store)])
    for epoch in epochs(corpus, ranks):
        assert sorted(epoch) == ALL_OF_SOURCE


def test_the_classes_of_folders_can_be_chosen(source, tmp_path, capsys):
    corpus = open_corpus([shards_of(source, tmp_path / "out", "--store", "keep")]).of_classes([0, 2])
    for epoch in epochs(corpus):
        assert sorted(epoch) == [pair for pair in ALL_OF_SOURCE if pair[1] != 1]


def test_labels_of_others_reach_the_batch_and_what_has_none_stays_without(tmp_path):
    labels = [b"7", b" 12\n", None, b"0", b"-1", b"cat", b"3.5", b"", "７".encode(), 18 * b"9"]
    wanted = [7, 12, -1, 0, -1, 1, -1, -1]  # above the largest there is no number left for a word
    members = []
    for number, label in enumerate(labels):
        members += [(f"{number}.ppm", flat(number))] + ([(f"{number}.cls", label)] if label is not None else [])
    corpus = open_corpus([str(write_tar(tmp_path / "0.tar", members))])
    for epoch in epochs(corpus):
        found = dict(epoch)
        assert [found[number] for number in range(len(wanted))] == wanted
        assert found[9] == 10**18 - 1


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Labels 0 to 8 and none in turn, over shards of several lengths."""
    folder = tmp_path_factory.mktemp("classes")
    first = 0
    for number, length in enumerate((23, 1, 40, 17)):
        labels = [image % 10 if image % 10 < 9 else None for image in range(first, first + length)]
        write_flat(folder / f"{number}.tar", labels, first)
        first += length
    return str(folder / "*.tar")


FORMS = {
    "3,7": (["--data.classes", "3,7"], None),
    "with =": (["--data.classes=3,7"], None),
    "3 7": (["--data.classes", "3", "7"], None),
    "7 3 7": (["--data.classes", "7", "3", "7"], None),
    "3, 7": (["--data.classes", "3,", "7"], None),
    "'3, 7'": (["--data.classes", "3, 7"], None),
    "a list": ([], "data:\n  classes: [3, 7]\n"),
    "lines": ([], "data:\n  classes:\n  - 3\n  - 7\n"),
    "a text": ([], "data:\n  classes: '3,7'\n"),
    "a file and an option": (["--data.classes", "3,7"], "data:\n  classes: [1]\n"),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_ways_to_write_classes(corpus, tmp_path, form):
    options, yaml = FORMS[form]
    if yaml:
        (tmp_path / "mine.yaml").write_text(yaml)
        options = ["--config", str(tmp_path / "mine.yaml"), *options]
    config = cli.load([*options, "--data.shards", corpus, "--model.image_size", str(SIZE)])
    said: list[str] = []
    found = open_data(config, said.append)
    assert isinstance(found, Corpus)
    assert said[-1] == "data: 16 images of the classes 3, 7"
    wanted = [(number, number % 10) for number in range(81) if number % 10 in (3, 7)]
    assert sorted(epochs(found)[0]) == wanted


@pytest.mark.parametrize("kind", ["threads", "processes"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_epoch_is_a_permutation_of_the_chosen(corpus, ranks, kind):
    chosen = open_corpus([corpus]).of_classes([3, 7])
    wanted = [(number, number % 10) for number in range(81) if number % 10 in (3, 7)]
    found = epochs(chosen, ranks, count=3, kind=kind)
    assert [sorted(epoch) for epoch in found] == [wanted] * 3
    assert len({tuple(epoch) for epoch in found}) > 1
    assert found == epochs(chosen, 1, each=ranks * 2, count=3)


LABELS = st.one_of(st.none(), st.integers(0, 4), st.sampled_from([1_000, 2**62]))


@settings(max_examples=25)
@given(data=st.data(), lengths=st.lists(st.integers(1, 25), min_size=1, max_size=4), ranks=st.integers(1, 3))
def test_any_choice_is_what_a_list_gives(tmp_path_factory, data, lengths, ranks):
    folder, images = tmp_path_factory.mktemp("some"), []
    for number, length in enumerate(lengths):
        labels = data.draw(st.lists(LABELS, min_size=length, max_size=length))
        write_flat(folder / f"{number}.tar", labels, len(images))
        images += [(len(images) + n, -1 if label is None else label) for n, label in enumerate(labels)]
    corpus = open_corpus([str(folder / "*.tar")])
    assert corpus.labels.tolist() == [label for _, label in images]
    assert sorted(epochs(corpus, ranks, count=1)[0]) == images
    there = sorted({label for _, label in images} - {-1})
    if not there:
        with pytest.raises(UsageError, match=r"^--data\.classes 0: no image has this label; none has any$"):
            corpus.of_classes([0])
        return
    classes = data.draw(st.sets(st.sampled_from(there), min_size=1))
    chosen = corpus.of_classes(classes)
    wanted = [image for image in images if image[1] in classes]
    assert chosen.size == len(wanted)
    assert chosen.labels.tolist() == [label for _, label in wanted]
    assert [key_of(chosen, sample) for sample in range(chosen.size)] == [key_of(corpus, number) for number, _ in wanted]
    assert [sorted(epoch) for epoch in epochs(chosen, ranks)] == [wanted] * 2


# ---- names

MIXED = "; numbers keep their number, other names get the next ones"
NAMED = {
    "numbers": (["8", "10", "9"], {8: "8", 9: "9", 10: "10"}, "8, 9, 10"),
    "zeros in front": (["007", "8"], {7: "007", 8: "8"}, "7 = 007, 8"),
    "one is a name": (["10", "9", "x"], {9: "9", 10: "10", 11: "x"}, f"9, 10, 11 = x{MIXED} (1 of 3): 11 = x"),
    "too long for a label": (["9" * 19, "2"], {2: "2", 3: "9" * 19}, f"2, 3 = {'9' * 19}"),
    "below 0": (["-1", "2"], {2: "2", 3: "-1"}, f"2, 3 = -1{MIXED} (1 of 2): 3 = -1"),
    "underscores": (["1_000", "2"], {2: "2", 3: "1_000"}, f"2, 3 = 1_000{MIXED} (1 of 2): 3 = 1_000"),
    "no ASCII": (["²", "٣"], {0: "²", 1: "٣"}, "0 = ², 1 = ٣"),
}


@pytest.mark.parametrize(("folders", "classes", "line"), NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_integers_keep_their_number(tmp_path, capsys, kind, folders, classes, line):
    members = [(f"{name}/1.ppm", flat(number)) for number, name in enumerate(folders)]
    if kind == "folder":
        for name, data in members:
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
    elif kind == "zip":
        with zipfile.ZipFile(tmp_path / "in.zip", "w") as file:
            for name, data in members:
                file.writestr(name, data)
    else:
        write_tar(tmp_path / "in.tar", members)
    shards = shards_of(next(tmp_path.iterdir()), tmp_path / "out", "--store", "keep")
    assert f"classes: {line}\n" in capsys.readouterr().err
    assert {each.label: each.name for each in load_manifest(tmp_path / "out" / "manifest.json").classes} == classes
    said: list[str] = []
    corpus = open_data(Config(model=ModelConfig(image_size=32), data=DataConfig(shards=(shards,))), said.append)
    assert isinstance(corpus, Corpus)
    assert dict(epochs(corpus)[0]) == {
        n: label for n, name in enumerate(folders) for label in classes if classes[label] == name
    }
    assert said[1:] == [f"data: classes {line.partition(MIXED)[0]}"]


def test_names_that_are_the_same_number_are_refused(tmp_path, capsys):
    for name in "7", "007":
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.ppm").write_bytes(flat(1))
    with pytest.raises(UsageError, match=r"in: the classes '007' and '7' are the same number; rename one of them$"):
        shards_of(tmp_path / "in", tmp_path / "out", "--store", "keep")
    assert not (tmp_path / "out").exists()


def test_labels_that_come_with_names(tmp_path):
    """The classes of an ImageFolder are sorted as texts; those of a set whose names are words keep their labels."""
    for name in map(str, range(12)):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "in" / name / "1.png")
    source = find_source("torchvision:ImageFolder", tmp_path / "in")
    assert source.items().classes == {number: str(number) for number in range(12)}
    with source.open() as load:
        assert [load(item)[1] for item in source.items().images] == [0, 1, 10, 11, *range(2, 10)]
    assert renumber(["dog", "cat"]) == ({0: 0, 1: 1}, {0: "dog", 1: "cat"})
    assert renumber(["1", "01"]) == ({0: 0, 1: 1}, {0: "1", 1: "01"})


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["01", "1", "cat"], [2, 1, 3]),
        (["007", "cat"], [7, 8]),
        (["0", "999999999999999999", "ant", "bee"], [0, 10**18 - 1, 1, 2]),
        (["999999999999999997", "ant", "bee"], [10**18 - 3, 10**18 - 2, 10**18 - 1]),
    ],
)
def test_names_beside_numbers_get_numbers_of_their_own_that_a_label_can_be(names, labels):
    found, classes = number_names(names, "x")
    assert (found.tolist(), classes) == (labels, dict(sorted(zip(labels, names, strict=True))))
    assert [label_text(label) for label in classes] == [(str(label), "") for label in classes]


MANY = {number: f"class {number}" for number in range(1_000)}
OLD = {0: "0", 1: "1", 2: "10", 3: "2"}  # as earlier versions numbered folders
TWO = {134: "crane", 517: "crane", 7: "tench, Tinca tinca", 0: "a"}
CHOSEN = [
    (["cat", "2"], {0: "ant", 1: "bee", 2: "cat"}, [2]),
    (["bee,ant"], {0: "ant", 1: "bee", 2: "cat"}, [0, 1]),
    (["tench, Tinca tinca", "a"], TWO, [0, 7]),
    (["label:134", "7"], TWO, [7, 134]),
    (["007"], {7: "007"}, [7]),
    (["0, label:10"], OLD, [0, 10]),
    (["10"], OLD, "10: can mean several labels; write label:2 or label:10; there are 0, 1, 2 = 10, 3 = 2"),
    (["crane"], TWO, "crane: can mean several labels; write label:134 or label:517; there are 134 = crane, "),
    (["a,dog"], TWO, "dog: no class has this name; there are 134 = crane, "),
    (["label:x"], {}, "label:x: no class has this name; no manifest.json beside the shards has names"),
    (["z"], MANY, "z: no class has this name; there are 0 = class 0, 1 = class 1, "),
]  # fmt: skip


@pytest.mark.parametrize(("texts", "classes", "wanted"), CHOSEN)
def test_classes_by_name(texts, classes, wanted):
    if isinstance(wanted, list):
        assert find_labels(texts, classes) == wanted
    else:
        with pytest.raises(UsageError, match=f"^--data.classes {re.escape(wanted)}"):
            find_labels(texts, classes)


def test_long_names_do_not_fill_the_line():
    assert classes_text({0: "a\nb", 1: "x" * 99}) == f"0 = a b, 1 = {'x' * 40}.."
    assert classes_text(MANY) == ", ".join(f"{n} = class {n}" for n in range(20)) + " .. (1,000 classes)"


def test_training_by_name_prints_label_and_name(source, tmp_path, capsys):
    shards = shards_of(source, tmp_path / "out", "--store", "keep")
    said: list[str] = []
    corpus = open_data(Config(data=DataConfig(shards=(shards,), classes=("cat,ant",))), said.append)
    assert isinstance(corpus, Corpus)
    assert sorted(epochs(corpus)[0]) == [pair for pair in ALL_OF_SOURCE if pair[1] != 1]
    assert said[-1] == f"data: {corpus.size} images of the classes 0 = ant, 2 = cat"
    (tmp_path / "out" / "manifest.json").write_text("{}")
    said.clear()
    open_data(Config(data=DataConfig(shards=(shards,))), said.append)
    assert said[0].endswith("so missing shards and the names of classes are not known")


# ---- what is refused, by the command itself

TINY = shlex.split(
    "--model.nz 4 --model.ngf 4 --model.ndf 4 --batch_size 4 --images 8 --log.every 4 --log.samples 1 "
    "--trackers=wandb --wandb.mode disabled --model.image_size 32"
)


@pytest.fixture
def start(tmp_path, corpus, capsys, as_before):
    """Runs the command in this process; returns the exit code and what stands on standard error."""

    def start(*options):
        code = train.main([*TINY, "--run_dir", str(tmp_path / "run"), "--data.shards", corpus, *options])
        return code, capsys.readouterr().err

    return start


REFUSED = {
    "no such class": (["--data.classes", "3,12"], "12: no image has this label; there are 0, 1, 2, 3, 4, 5, 6, 7, 8"),
    "far too large": (["--data.classes", "1" + 25 * "0"], "0: no image has this label; there are 0, 1, 2, 3"),
    "a name": (["--data.classes", "cat"], "cat: no class has this name; no manifest.json beside the shards has names"),
    "a part of a number": (["--data.classes", "1,2.5"], "2.5: no class has this name"),
    "no decimal digit": (["--data.classes", "²"], "²: no class has this name"),
    "below 0": (["--data.classes=-1"], "-1: no class has this name"),
    "an empty word": (["--data.classes", ""], " names no classes; leave the option out"),
    "a comma": (["--data.classes", ","], ": names no class"),
    "nothing": (["--data.classes"], "names no classes; leave the option out"),
    "nothing behind =": (["--data.classes="], "names no classes; leave the option out"),
    "a stream": (["--data.classes", "3", "--data.reader", "stream"], " needs --data.reader indexed"),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED)
def test_a_choice_that_cannot_be_is_refused_in_one_line(start, tmp_path, options, words):
    code, text = start(*options)
    assert code == 2
    assert text.startswith("error: --data.classes")
    assert words in text
    assert text.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_of_very_many_classes_the_first_are_listed(tmp_path):
    corpus = open_corpus([str(write_flat(tmp_path / "0.tar", range(100)))])
    with pytest.raises(UsageError) as caught:
        corpus.of_classes([5, 100])
    there = ", ".join(map(str, range(20)))
    assert str(caught.value) == f"--data.classes 100: no image has this label; there are {there} and 80 more"


def test_other_classes_are_refused_by_name_when_a_run_goes_on(start, tmp_path):
    assert start("--data.classes", "3,7") == (0, "")
    state = json.loads(next((tmp_path / "run" / "checkpoints").glob("*/state.json")).read_text())
    assert state["data_images"] == 16
    for others in (["--data.classes", "3,8"], ["--data.classes", "3"], []):
        code, text = start("--images", "16", *others)
        assert code == 2
        assert "was trained with other options: --data.classes ['3,7'] -> " in text
        assert "--resume.allow_changes data.classes" in text
        assert text.count("\n") == 1
    assert start("--images", "16", "--data.classes", "3,7") == (0, "")


def test_a_choice_smaller_than_a_batch_is_shown_again_and_again(tmp_path):
    """A batch may hold an image more than once, in epochs one after the other."""
    path = write_flat(tmp_path / "0.tar", [0, 1, 0, 1, 0])
    config = Config(model=ModelConfig(image_size=SIZE), data=DataConfig(shards=(str(path),), classes=("1",)))
    chosen = open_data(config, lambda line: None)
    assert isinstance(chosen, Corpus)
    found = epochs(chosen, 1, each=9, count=9)
    assert [sorted(epoch) for epoch in found] == [[(1, 1), (3, 1)]] * 9
    assert np.concatenate(found).shape == (18, 2)
