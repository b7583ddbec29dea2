"""What webdataset's ShardWriter writes, with any of its options, trains with both readers."""

import gzip
import inspect
import pickle
import tarfile
import warnings
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.shards import encoded, picture
from webdataset.writer import ShardWriter, TarWriter, default_handlers

from dcgan_dist.config import Config
from dcgan_dist.config.groups import DataConfig, ModelConfig
from dcgan_dist.data.loading import make_reader, open_data
from dcgan_dist.data.order import Split

COUNT, SIZE = 9, 32
OPTIONS = {
    "pattern": [
        "x-%03d.tar",
        "x-%03d.tar.gz",
        "x-%03d.tgz",
        "x-%03d.tar.bz2",
        "x-%03d.tar.xz",
        "x.%d",
        "%d.tar.backup",
    ],
    "maxcount": [1, 4, COUNT],
    "maxsize": [1, 10_000],
    "post": [lambda name: Path(name).chmod(0o400)],
    "start_shard": [7, 999],
    "verbose": [0, 1],
    "opener": [partial(open, mode="wb"), partial(gzip.open, mode="wb")],
    "user": ["", "nobody", "Ünï"],
    "group": ["", "wheel"],
    "mode": [0, 0o777],
    "compress": [None, False, True, "gz", "bz2", "xz"],
    "encoder": [None, False, True, default_handlers, lambda sample: sample],
    "keep_meta": [False, True],
    "mtime": [None, 0, 1e9, 1e9 + 0.5],
    "format": [None, "PAX_FORMAT", "GNU_FORMAT", tarfile.USTAR_FORMAT],
}
CASES = [(name, value) for name, values in OPTIONS.items() for value in values]
# as arrays, which the encoder makes files of; pixels survive these
SAMPLES = {
    "png, cls": lambda n: {"png": np.asarray(picture(n)), "cls": n % 3},
    "ppm, json": lambda n: {"ppm": np.asarray(picture(n)), "json": {"label": n % 3, "caption": "a picture"}},
    "png, cls, txt, pickles": lambda n: {
        "png": np.asarray(picture(n)), "cls": n % 3, "txt": "a picture", "pyd": Trap(), "pickle": [n], "npy": np.ones(2)
    },
    "png, words in metadata": lambda n: {"png": np.asarray(picture(n)), "cls": n % 3, "__note__": "kept"},
}  # fmt: skip


class Trap:
    """Ends the test where it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickled member was loaded",)


def file_sample(number):
    return {"png": encoded(number, "png"), "cls": str(number % 3).encode()}


def write(folder: Path, sample: Any, **options: Any) -> None:
    pattern = str(folder / options.pop("pattern", "x-%03d.tar"))
    settings: dict[str, Any] = {"verbose": 0, "maxcount": 4} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it does not close what `opener` gives it
        with ShardWriter(pattern, **settings) as writer:
            for number in range(COUNT):
                writer.write({"__key__": f"folder/s{number}", **sample(number)})


def read(folder, kind):
    """The images and labels of an epoch, and the lines for the console."""
    lines: list[str] = []
    data = DataConfig(shards=(f"{folder}/*",), reader=kind, cache=folder.parent / "cache")
    config = Config(seed=3, model=ModelConfig(image_size=SIZE), data=data)
    reader = make_reader(config, open_data(config, lines.append), local_ranks=1, pinned=False, say=lines.append)
    with closing(reader.batches(0, Split(batch=COUNT, micro_batches=1, rank=0, world_size=1))) as batches:
        batch = next(batches)
        return Counter(zip(map(bytes, batch.rows.pixels), batch.labels.tolist(), strict=True)), lines


WANTED = Counter((np.asarray(picture(n)).tobytes(), n % 3) for n in range(COUNT))


def test_every_option_of_the_installed_version_is_tried():
    known = {*inspect.signature(ShardWriter).parameters, *inspect.signature(TarWriter).parameters}
    assert known - {"kw", "fileobj"} == OPTIONS.keys()


@pytest.mark.parametrize(("name", "value"), CASES, ids=[name for name, _ in CASES])
def test_any_option_trains_with_both_readers(tmp_path, name, value):
    folder = tmp_path / "shards"
    folder.mkdir()
    encodes = name != "encoder" or value in (True, default_handlers)
    write(folder, SAMPLES["png, cls"] if encodes else file_sample, **{name: value})
    assert read(folder, "indexed")[0] == read(folder, "stream")[0] == WANTED


@pytest.mark.parametrize("compress", [None, False, True, "xz"])
@pytest.mark.parametrize("pattern", ["%d.tar", "%d.tar.gz"])
def test_a_name_may_say_otherwise_than_the_content(tmp_path, pattern, compress):
    folder = tmp_path / "shards"
    folder.mkdir()
    write(folder, SAMPLES["png, cls"], pattern=pattern, compress=compress)
    assert read(folder, "indexed")[0] == read(folder, "stream")[0] == WANTED


@pytest.mark.parametrize("kind", ["indexed", "stream"])
@pytest.mark.parametrize("content", SAMPLES)
def test_what_is_not_used_is_counted_and_never_loaded(tmp_path, content, kind):
    folder = tmp_path / "shards"
    folder.mkdir()
    write(folder, SAMPLES[content], keep_meta=True)
    with pytest.raises(pytest.fail.Exception):
        pickle.loads(pickle.dumps(Trap()))  # noqa: S301
    found, lines = read(folder, kind)
    assert found == WANTED
    unused = {
        "pickles": "36 other members (9 .npy, 9 .pickle, 9 .pyd, 9 .txt)",
        "metadata": "9 other members (9 .__note__)",
    }
    text = unused.get(content.rpartition(" ")[2])
    assert [line for line in lines if "skipped" in line] == ([f"data: skipped: {text}"] if text else [])
