"""A user's own pipeline: what it is given, what it may give, and how it is refused."""

import itertools
import multiprocessing
import re
import tempfile
import threading
from contextlib import closing
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from support.shards import picture, write_ours, write_tar

from dcgan_dist import train
from dcgan_dist.config import Config
from dcgan_dist.config.checks import ConfigError
from dcgan_dist.config.groups import DataConfig, ModelConfig
from dcgan_dist.data.loading import make_reader, open_data
from dcgan_dist.data.order import Split
from dcgan_dist.data.reading.stream import StreamReader
from dcgan_dist.data.reading.user_pipeline import UserPipeline
from dcgan_dist.errors import UsageError, UserError

SIZE = 32
DOCS = Path(__file__).parents[3] / "docs" / "data.md"
numbers = itertools.count()
SIGNATURE = "def make(shards, *, image_size, channels, seed, rank, world_size):"
HEAD = f"import numpy as np, torch\nfrom PIL import Image\n{SIGNATURE}\n    image = np.full((32, 32, 3), 7, 'uint8')\n"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module; returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code):
        name = f"mine_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(dedent(code))
        return name

    return write


@pytest.fixture
def pictures(tmp_path):
    """Three shards with 10 images each."""
    return [str(write_ours(tmp_path / f"{n}.tar", 10, "png", 10 * n, label=lambda n: n)) for n in range(3)]


def split(rank=0, world_size=1, batch=8):
    return Split(batch=batch, micro_batches=1, rank=rank, world_size=world_size)


ALONE = split()


def first(target, batches, *, shards=(), channels=3, at=ALONE, position=0):
    """Copies of the pixels and labels of the first batches."""
    shape = (SIZE, channels)
    reader = StreamReader(UserPipeline(target, shards, shape), shape=shape, seed=1, prefetch=2, pinned=False)
    with closing(reader.batches(position, at)) as stream:
        return [(batch.rows.pixels.copy(), batch.labels.tolist()) for batch in itertools.islice(stream, batches)]


FORMS = {
    "an array": "image",
    "channels first": "image.transpose(2, 0, 1)",
    "a tensor": "torch.from_numpy(image)",
    "a PIL image": "Image.fromarray(image)",
}
LABELS = {"an int": "5", "of numpy": "np.int64(5)", "a tensor": "torch.tensor(5)", "none": "-1"}


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("form", FORMS)
def test_what_a_sample_may_be(module, form, label):
    name = module(HEAD + f"    image[:16, :, 0] = 3\n    yield {FORMS[form]}, {LABELS[label]}\n")
    ((pixels, labels),) = first(f"{name}:make", 1)
    wanted = np.full((SIZE, SIZE, 3), 7)
    wanted[:16, :, 0] = 3
    assert (pixels == wanted).all()
    assert labels == [-1 if label == "none" else 5] * 8


def test_grey_images_may_have_two_axes(module):
    name = module(HEAD + "    return [(image[..., 0], 1), (image[..., :1], 1), [image[None, ..., 0], 1]]\n")
    ((pixels, _),) = first(f"{name}:make", 1, channels=1)
    assert (pixels.shape, set(pixels.ravel().tolist())) == ((8, SIZE, SIZE, 1), {7})


WRONG = {
    "{'jpg': image, 'cls': 1}": "is a dict of jpg, cls; give (image, label) tuples, as .to_tuple('jpg;png', 'cls')",
    "image": "is a ndarray; give (image, label) tuples",
    "(image, 1, 2)": "is a tuple; give (image, label) tuples",
    "(image / 255, 1)": "the image is float64; give uint8, 0 to 255, as .decode('rgb8') does",
    "(b'jpeg', 1)": "the image is |S4; give uint8",
    "(image[:31], 1)": "the image has the shape (31, 32, 3); give (32, 32, 3) or (3, 32, 32), one image",
    "(image[..., 0], 1)": "the image has the shape (32, 32, 1); give",
    "(np.stack([image] * 4), [1] * 4)": "the image has the shape (4, 32, 32, 3); give (32, 32, 3) or (3, 32, 32), one",
    "(image, 'cat')": "the label is 'cat'; give an integer from 0, or -1 for none",
    "(image, b'3')": "the label is b'3'; give",
    "(image, 1.0)": "the label is 1.0; give",
    "(image, None)": "the label is None; give",
    "(image, -2)": "the label is -2; give",
    "(image, 2**63)": "the label is 9223372036854775808; give",
    "(image, torch.ones(2, dtype=int))": "the label is tensor([1, 1]); give",
}


@pytest.mark.parametrize("sample", WRONG)
def test_a_sample_of_another_form_is_refused_by_its_number(module, sample):
    name = module(HEAD + f"    yield image, 0\n    yield {sample}\n")
    with pytest.raises(UserError) as caught:
        first(f"{name}:make", 1)
    assert str(caught.value).startswith(f"--data.pipeline {name}:make: sample 1")
    assert WRONG[sample] in str(caught.value)
    assert "\n" not in str(caught.value)


TARGETS = {
    "nowhere_at_all:make": "cannot be imported (No module named 'nowhere_at_all'); name a module that Python finds",
    "{}:mak": "module '{}' has no attribute 'mak'",
    "{}:value": "must be a function that is called as FUNCTION(shards, *, image_size, ",
    "{}:narrow": "got an unexpected keyword argument 'image_size'",
    "{}:greedy": "missing a required argument: 'more'",
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_function_that_cannot_be_used_is_refused_at_the_start(module, target, tmp_path, capsys, monkeypatch):
    name = module("value = 3\ndef narrow(shards): ...\ndef greedy(shards, more, **_): ...\n")
    monkeypatch.chdir(tmp_path)
    given = target.format(name)
    code = train.main(["--run_dir", "run", "--data.reader", "stream", "--data.pipeline", given, "--images", "8"])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith(f"error: --data.pipeline {given}: ")
    assert TARGETS[target].format(name) in error
    assert not (tmp_path / "run").exists()


def test_a_module_that_fails_is_refused(module):
    for code, text in ("import nowhere_at_all", "No module named 'nowhere_at_all'"), ("1 / 0", "ZeroDivisionError"):
        with pytest.raises(UsageError, match=text):
            UserPipeline(f"{module(code)}:make", [], (SIZE, 3))


def test_an_error_of_the_users_code_is_one_line_that_keeps_its_cause(module):
    name = module(HEAD + "    yield image, 1\n    raise KeyError('jpg\\nkey')\n")
    with pytest.raises(UserError, match=rf"^--data\.pipeline {name}:make failed \(KeyError: .*\); --debug") as caught:
        first(f"{name}:make", 1)
    assert isinstance(caught.value.__cause__, KeyError)


REFUSED = [
    ({"pipeline": "a:b"}, "--data.pipeline a:b needs --data.reader stream"),
    ({"resampled": True}, "--data.resampled needs --data.reader stream"),
    ({"pipeline": "a:b", "resampled": True, "reader": "stream"}, "--data.resampled with --data.pipeline a:b"),
    ({"pipeline": "a.b", "reader": "stream"}, "--data.pipeline a.b: write MODULE:FUNCTION"),
    ({"pipeline": ":b", "reader": "stream"}, "--data.pipeline :b: write MODULE:FUNCTION"),
    ({"pipeline": "a:b", "reader": "stream", "classes": ("3",)}, "--data.classes needs --data.reader indexed"),
    ({"pipeline": "a:b", "reader": "stream", "shards": ("pipe:cat x",)}, "--data.allow_pipe allows it"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_options_that_contradict_a_pipeline_are_refused(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Config(data=DataConfig(**options)).check()


SEED_IN_LABEL = SIGNATURE + "\n    for n in range(3 + rank):\n        yield np.zeros((32, 32, 3), 'uint8'), seed\n"


def test_a_finite_pipeline_is_started_again_with_another_seed_the_same_on_all_ranks(module):
    name = module("import numpy as np\n" + SEED_IN_LABEL)
    seeds = []
    for rank in range(3):
        batches = first(f"{name}:make", 5, at=split(rank, 3, batch=12))
        assert all(len(labels) == 4 for _, labels in batches)
        labels = [label for _, labels in batches for label in labels]
        runs = [(seed, len(list(group))) for seed, group in itertools.groupby(labels)]
        assert {length for _, length in runs[:-1]} == {3 + rank}
        seeds.append([seed for seed, _ in runs])
    assert len(set(seeds[0])) == len(seeds[0]) > 6
    assert seeds[0][: len(seeds[2])] == seeds[2]
    assert all(0 <= seed < 2**31 for seed in seeds[0])
    resumed = first(f"{name}:make", 1, at=split(0, 3, batch=12), position=12)
    assert resumed[0][1][0] not in seeds[0]


def test_workers_are_forked_by_the_thread_that_trains(module):
    """Forked by another one, they may wait for ever for a lock, such as that of an import, that this thread held."""
    name = module(
        HEAD + "    import sys, threading\n"
        "    sys.modules[__name__].threads = getattr(sys.modules[__name__], 'threads', set())\n"
        "    for _ in range(3):\n"
        "        sys.modules[__name__].threads.add(threading.current_thread())\n"
        "        yield image, 1\n"
    )
    first(f"{name}:make", 4)
    assert __import__(name).threads == {threading.current_thread()}


def test_an_empty_pipeline_is_refused(module):
    name = module(SIGNATURE + "\n    return [] if rank else [(__import__('numpy').zeros((32, 32, 3), 'uint8'), 0)]\n")
    first(f"{name}:make", 2, at=split(0, 2))
    with pytest.raises(UserError, match=rf"^--data\.pipeline {name}:make: no image for rank 1; every rank needs some"):
        first(f"{name}:make", 2, at=split(1, 2))


def test_what_the_function_is_given_and_the_console_prints(module, pictures, tmp_path):
    name = module(HEAD + "    import sys; sys.modules[__name__].given = locals()\n    yield image, 1\n")
    data = DataConfig(
        shards=(f"{tmp_path}/{{0..2}}.tar",), reader="stream", pipeline=f"{name}:make", workers=3, image_key="jpg"
    )
    config, lines = Config(seed=5, model=ModelConfig(image_size=SIZE), data=data), list[str]()
    opened = open_data(config, lines.append)
    assert lines == [
        f"data: samples of --data.pipeline {name}:make, which is given 3 shards, whose content it checks itself; a "
        "resumed run starts it again: its position counts images, but their order is the pipeline's own",
        "data: not used by --data.pipeline: --data.workers, --data.image_key",
    ]
    reader = make_reader(config, opened, local_ranks=1, pinned=False, say=lines.append)
    with closing(reader.batches(0, split(1, 4))) as batches:
        assert next(batches).labels.tolist() == [1, 1]
    given = __import__(name).given
    assert given["shards"] == pictures
    assert (given["image_size"], given["channels"], given["rank"], given["world_size"]) == (SIZE, 3, 1, 4)
    assert reader.counters.bytes == 2 * SIZE * SIZE * 3


def test_no_shards_are_no_embedded_faces(module):
    name = module(HEAD + "    assert shards == []\n    yield image, 1\n")
    lines: list[str] = []
    data = DataConfig(reader="stream", pipeline=f"{name}:make")
    assert open_data(Config(model=ModelConfig(image_size=SIZE), data=data), lines.append) == []
    assert "which is given no shards;" in lines[0]
    first(f"{name}:make", 1)


def test_the_readers_own_stages_serve_in_a_pipeline(module, pictures, tmp_path, monkeypatch):
    name = module(f"""
        import webdataset as wds
        from dcgan_dist.data.reading.stream import read_tars
        {SIGNATURE}
            shards = wds.SimpleShardList(shards, seed=seed)
            pipeline = wds.DataPipeline(shards, wds.split_by_node, wds.split_by_worker, read_tars, wds.shuffle(5))
            return pipeline.compose(wds.select(lambda sample: sample.label != 7))
    """)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    batches = first(f"{name}:make", 1, shards=pictures, at=split(batch=29))
    pixels = {int(label): image.tobytes() for image, label in zip(*batches[0], strict=True)}
    assert pixels == {n: np.asarray(picture(n)).tobytes() for n in range(30) if n != 7}


def example():
    """The pipeline in the documentation."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return code


def test_the_example_of_the_documentation_trains_and_leaves_no_process(module, tmp_path, capsys):
    for shard in range(4):
        images = [(f"{n}.{end}", data) for n in range(8) for end, data in example_members(8 * shard + n)]
        write_tar(tmp_path / f"{shard}.tar", images)
    name = module(example())
    options = f"--data.shards {tmp_path}/{{0..3}}.tar --data.reader stream --data.pipeline {name}:make --images 48"
    tiny = "--model.image_size 32 --model.nz 4 --model.ngf 4 --model.ndf 4 --batch_size 8 --log.every 8"
    run = f"--trackers=wandb --checkpoint.every 24 --run_dir {tmp_path}/run"
    assert train.main(f"{options} {tiny} {run}".split()) == 0
    out, err = capsys.readouterr()
    assert (f"--data.pipeline {name}:make, which is given 4 shards" in out, err) == (True, "")
    assert multiprocessing.active_children() == []
    assert train.main(f"{options} {tiny} {run} --images 64".split()) == 0
    changed = f"{options} {tiny} {run} --data.pipeline {module(example())}:make"
    assert train.main(changed.split()) == 2
    assert "was trained with other options: --data.pipeline" in capsys.readouterr().err


def example_members(number):
    import io

    file = io.BytesIO()
    picture(number, 40).save(file, "JPEG")
    return [("jpg", file.getvalue()), ("cls", str(number % 3).encode())]


@pytest.mark.parametrize(("length", "warnings"), [(75, 0), (76, 1)])
def test_a_temporary_folder_that_is_too_long_for_sockets_is_reported_once(module, monkeypatch, length, warnings):
    """The message with a tensor would be lost, and the training would wait for it."""
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * (length - 1))
    data = DataConfig(reader="stream", pipeline=f"{module('def make(shards, **_): return []')}:make")
    config, lines = Config(model=ModelConfig(image_size=SIZE), data=data), list[str]()
    make_reader(config, open_data(config, lines.append), local_ranks=1, pinned=False, say=lines.append)
    assert sum("set TMPDIR to a folder with a shorter path" in line for line in lines) == warnings
