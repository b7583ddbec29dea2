"""One data set has the same class numbers wherever it lies; numbers keep theirs also where one class is a word."""

import io
import json
import zipfile
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.shards import open_corpus, write_tar
from support.training import TINY

from dcgan_dist import train
from dcgan_dist.__main__ import main
from dcgan_dist.config import Config
from dcgan_dist.config.groups import DataConfig
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.loading import open_data
from dcgan_dist.data.order import Split
from dcgan_dist.data.reading.stream import StreamReader, TarPipeline
from dcgan_dist.data.shards.labels import find_labels, numbering
from dcgan_dist.errors import UsageError

NAMES = [str(number) for number in (*range(12), *range(12))] + ["cat", "ant"]  # the last two in a file of their own
WANTED = [*range(12), *range(12), 13, 12]
CUT = 24
MIXED = "; numbers keep their number, other names get the next ones (2 of 14): 12 = ant, 13 = cat"


def picture(number):
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (number * 9,) * 3).save(file, "PPM")
    return file.getvalue()


PICTURES = {f"{number:02}": (name, picture(number)) for number, name in enumerate(NAMES)}


def two_tars(folder, rows):
    """The images and their members for labels, the last two in a tar of their own."""
    members = [[(f"{key}.ppm", data), (f"{key}.{suffix}", label)] for key, data, suffix, label in rows]
    write_tar(folder / "1.tar", chain.from_iterable(members[:CUT]))
    write_tar(folder / "2.tar", chain.from_iterable(members[CUT:]))
    return folder


def as_folder(folder):
    for key, (name, data) in PICTURES.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{key}.ppm").write_bytes(data)
    return folder


def as_zip(folder):
    with zipfile.ZipFile(folder / "all.zip", "w") as file:
        for key, (name, data) in PICTURES.items():
            file.writestr(f"{name}/{key}.ppm", data)
    return folder / "all.zip"


def as_list(folder):
    rows = [f"{path.relative_to(folder)},{path.parent.name}\n" for path in sorted(as_folder(folder).rglob("*.ppm"))]
    (folder / "all.csv").write_text("".join(rows))
    return folder / "all.csv"


def as_tar_of_folders(folder):
    members = [(f"{name}/{key}.ppm", data) for key, (name, data) in PICTURES.items()]
    write_tar(folder / "1.tar", members[:CUT])
    write_tar(folder / "2.tar", members[CUT:])
    return folder


def as_cls(folder):
    return two_tars(folder, [(key, data, "cls", name.encode()) for key, (name, data) in PICTURES.items()])


def as_json(folder):
    labels = [int(name) if name.isdecimal() else name for name in NAMES]
    rows = zip(PICTURES.items(), labels, strict=True)
    return two_tars(
        folder, [(key, data, "json", json.dumps({"label": label}).encode()) for (key, (_, data)), label in rows]
    )


def as_parquet(folder, kind: type[int | str] = int):
    rows = [(data, name) for name, data in PICTURES.values()]
    for number, part in enumerate((rows[:CUT], rows[CUT:])):
        labels = [kind(name) if name.isdecimal() else name for _, name in part]
        pq.write_table(pa.table({"image": [data for data, _ in part], "label": labels}), folder / f"{number}.parquet")
    return folder


def as_parquet_of_words(folder):
    return as_parquet(folder, str)


def as_hugging_face(folder):
    names = sorted(set(NAMES))
    feature = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    rows = {"image": [data for _, data in PICTURES.values()], "label": [names.index(name) for name in NAMES]}
    metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
    pq.write_table(pa.table(rows).replace_schema_metadata(metadata), folder / "a.parquet")
    return folder


FORMS = [
    as_folder, as_zip, as_list, as_tar_of_folders, as_cls, as_json, as_parquet, as_parquet_of_words, as_hugging_face
]  # fmt: skip


def labels_by_picture(corpus):
    with_pixels = {}
    for number, label in enumerate(corpus.labels.tolist()):
        shard, member = corpus.locate(number)
        index = corpus.index(shard)
        data = corpus.opener.open(corpus.shards[shard]).read(int(index.offset[member]), int(index.length[member]))
        with_pixels[data[-1] // 9] = label
    return [label for _, label in sorted(with_pixels.items())]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.mark.parametrize("form", FORMS)
def test_one_data_set_has_the_same_numbers_in_every_form(folder, tmp_path, capsys, form):
    source = form(folder)
    assert main(["shard", str(source), str(tmp_path / "out"), "--store", "keep", "--processes", "1"]) == 0
    assert labels_by_picture(open_corpus([f"{tmp_path}/out/*.tar"])) == WANTED
    assert f"11, 12 = ant, 13 = cat{MIXED}" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    names = {each["name"]: each["label"] for each in manifest["classes"]}
    assert names == dict(zip(NAMES, WANTED, strict=True))


@pytest.mark.parametrize("form", [as_cls, as_json])
def test_training_on_the_tars_themselves_has_them_too(folder, form):
    tars, said = f"{form(folder)}/*.tar", []
    corpus = open_data(Config(data=DataConfig(shards=(tars,))), said.append)
    assert labels_by_picture(corpus) == WANTED
    assert said[-1].endswith(f"11, 12 = ant, 13 = cat{MIXED}")
    found = open_data(Config(data=DataConfig(shards=(tars,), classes=("10", "cat"))), said.append)
    assert isinstance(found, Corpus)
    assert found.labels.tolist() == [10, 10, 13]


def test_a_stream_which_knows_no_words_has_the_same_numbers(folder):
    tars = [str(as_cls(folder) / name) for name in ("1.tar", "2.tar")]
    reader = StreamReader(TarPipeline(tars), shape=(32, 3), seed=0, prefetch=1, pinned=False)
    stream = reader.batches(0, Split(batch=26, micro_batches=1, rank=0, world_size=1))
    batch = next(stream)
    stream.close()
    found = zip((batch.rows.pixels[:, 0, 0, 0] // 9).tolist(), batch.labels.tolist(), strict=True)
    assert sorted(found) == list(enumerate([*WANTED[:CUT], -1, -1]))


def test_a_run_is_not_resumed_with_a_word_that_means_something_else(folder, tmp_path, capsys, as_before):
    argv = [*TINY, "--images", "8", "--run_dir", f"{tmp_path}/run", "--data.shards", f"{as_cls(folder)}/*.tar"]
    assert train.main(argv) == 0
    (folder / "2.tar").write_bytes((folder / "2.tar").read_bytes().replace(b"cat", b"bee"))  # so that ant is 12 as ever
    capsys.readouterr()
    assert train.main([*argv, "--images", "16"]) == 2
    assert "other data" in capsys.readouterr().err


def test_the_same_letters_name_a_class_however_they_are_encoded():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert find_labels([composed], {0: decomposed, 1: "x"}) == [0]
    assert find_labels([f"{decomposed},x"], {0: composed, 1: "x"}) == [0, 1]
    with pytest.raises(UsageError, match="can mean several labels; write label:0 or label:1"):
        find_labels([composed], {0: decomposed, 1: composed})


def test_classes_with_similar_names_are_reported():
    decomposed, composed, blank = "cafe\u0301", "caf\u00e9", " dog"
    classes = {0: "Cat", 1: decomposed, 2: composed, 3: "cat", 4: "dog", 5: "eel", 6: blank}
    assert numbering(classes).startswith("; different classes with similar names: 0 = Cat, 1 = caf")
    assert "eel" not in numbering(classes)
    assert numbering({0: "cat", 1: "dog"}) == numbering({0: "0", 7: "007"}) == ""


def test_digits_of_other_scripts_are_names():
    assert find_labels(["٣"], {0: "²", 1: "٣"}) == [1]
    with pytest.raises(UsageError, match="٣: no class has this name"):
        find_labels(["٣"], {3: "3"})
