"""From the options to a reader, and what the console is told on the way."""

import gzip
import os
import shutil
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
import zstandard
from support.shards import write_ours
from support.sources import make_folder

from dcgan_dist.config import Config
from dcgan_dist.config.groups import DataConfig, ModelConfig
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.loading import make_opener, make_reader, open_data
from dcgan_dist.data.order import Order, Split
from dcgan_dist.data.shards.manifest import SIDE_FILES
from dcgan_dist.data.shards.opener import CachePlan
from dcgan_dist.data.sources import FolderSource
from dcgan_dist.data.writing.packing import Packing
from dcgan_dist.data.writing.writer import write_shards
from dcgan_dist.errors import UsageError, UserError

MODEL = ModelConfig(image_size=32)


def configured(*shards, **options):
    return Config(seed=5, model=MODEL, data=DataConfig(shards=tuple(map(str, shards)), **options))


@pytest.fixture
def shards(tmp_path):
    """A pattern of two shards with 7 images."""
    write_ours(tmp_path / "0.tar", 3)
    write_ours(tmp_path / "1.tar", 4)
    return tmp_path / "{0..1}.tar"


@pytest.fixture
def printed():
    """The lines for the console."""
    return []


@pytest.mark.parametrize("reader", ["indexed", "stream"])
def test_without_shards_the_embedded_faces_are_drawn_once_and_this_is_printed(tmp_path, monkeypatch, printed, reader):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = configured(faces=64, reader=reader)
    data = open_data(config, printed.append)
    folder = tmp_path / "cache" / "dcgan_dist" / "faces"
    assert printed[0] == "data: no --data.shards given, so the embedded set of 64 cartoon faces, drawn by code"
    assert printed[1] == f"data: drawing them, once, into {folder} .."
    assert len(list(folder.glob("*.tar"))) == 1
    assert data.size == 64 if isinstance(data, Corpus) else len(data) == 1
    again: list[str] = []
    open_data(config, again.append)
    assert again == [line for line in printed if "drawing" not in line]


def test_the_corpus_is_counted_and_checked(printed, shards):
    corpus = open_data(configured(shards), printed.append)
    assert isinstance(corpus, Corpus)
    assert corpus.lengths == [3, 4]
    assert printed == [
        "data: 7 images in 2 shards; all indexes are intact, and each image is checked when it is first read"
    ]


def test_a_stream_reports_that_it_starts_again(printed, shards, tmp_path):
    names = open_data(configured(shards, reader="stream"), printed.append)
    assert isinstance(names, list)
    assert names == [f"{tmp_path}/0.tar", f"{tmp_path}/1.tar"]
    assert printed == [
        "data: 2 sources streamed by webdataset; a resumed run starts the stream again; "
        "only labels that are numbers and beside their image are used"
    ]
    pipes = [f"pipe:cat {name}" for name in names]
    assert open_data(configured(*pipes, reader="stream", allow_pipe=True), printed.append) == pipes


@pytest.mark.parametrize("reader", ["indexed", "stream"])
def test_a_bad_shard_is_found_before_any_reader_starts(printed, shards, tmp_path, reader):
    bad = tmp_path / "1.tar"
    bad.write_bytes(bad.read_bytes()[:9_000])
    with pytest.raises(UserError, match=rf"^{bad}: .*cut"):
        open_data(configured(shards, reader=reader), printed.append)
    assert printed == []


def test_a_stream_refuses_a_url_in_one_line(printed):
    """The indexed reader takes them: see test_remote_shards.py."""
    config = configured("http://localhost/{0..3}.tar", reader="stream")
    with pytest.raises(UsageError, match=r"^--data\.shards http://localhost/0\.tar: not a file; stream it with 'pipe:"):
        make_reader(config, open_data(config, printed.append), local_ranks=1, pinned=False, say=printed.append)


def test_there_is_a_cache_unless_it_is_forbidden_and_no_folder_before_it_is_needed(tmp_path):
    """Whatever the names, for what they stand for shows only when they are spelt out."""
    folder = tmp_path / "cache"
    assert make_opener(DataConfig(cache=folder)).plan is not None
    assert make_opener(DataConfig(cache=folder, cache_bytes=10**9)).plan == CachePlan(folder, 10**9)
    assert make_opener(DataConfig(cache=folder, cache_bytes=0)).plan is None
    assert not folder.exists()


@pytest.mark.parametrize("pattern", ["*", "a.tar.{gz,zst}", "*.gz"])
def test_compressed_shards_are_found_by_any_pattern(printed, tmp_path, pattern):
    data = (write_ours(tmp_path / "x.tar", 3)).read_bytes()
    (tmp_path / "x.tar").unlink()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data))
    if "zst" in pattern:
        (tmp_path / "a.tar.zst").write_bytes(zstandard.compress(data))
    corpus = open_data(configured(tmp_path / pattern), printed.append)
    assert isinstance(corpus, Corpus)
    assert corpus.size == (6 if "zst" in pattern else 3)


def test_compressed_shards_that_the_cache_cannot_hold_are_refused_at_the_start(printed, tmp_path):
    data = write_ours(tmp_path / "x.tar", 20).read_bytes()
    for name in "ab":
        (tmp_path / f"{name}.tar.gz").write_bytes(gzip.compress(data))
    config = Config(
        model=MODEL,
        data=DataConfig(shards=(f"{tmp_path}/*.gz",), cache=tmp_path / "cache", cache_bytes=len(data) * 3 // 2),
    )
    # found too many when all were unpacked, or while they were, two at a time
    many = r"the compressed shards take [\d,]+ bytes, but|.*not enough space in"
    with pytest.raises(UserError, match=rf"^({many}) the cache [^\n]* allow more --data\.cache_bytes"):
        open_data(config, printed.append)


def test_the_cache_may_take_80_percent_of_what_is_free_or_its_own(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / f"{0:032x}-entry.tar").write_bytes(bytes(500))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_500))
    assert make_opener(DataConfig(cache=folder)).plan == CachePlan(folder, 1_600)
    assert make_opener(DataConfig(cache=folder, cache_bytes=77)).plan == CachePlan(folder, 77)


def test_without_a_folder_the_cache_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plan = make_opener(DataConfig()).plan
    assert plan is not None
    assert plan.folder == tmp_path / "dcgan_dist" / "shards"


def test_a_folder_that_cannot_be_a_cache_is_named(tmp_path):
    (tmp_path / "file").touch()
    write_ours(tmp_path / "a.tar", 1)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    data = DataConfig(shards=(f"{tmp_path}/a.tar.gz",), cache=tmp_path / "file" / "cache")
    problem = rf"^{tmp_path}/file/cache: the cache cannot be used \(Not a directory\); [^\n]*name another folder$"
    with pytest.raises(UserError, match=problem):
        open_data(Config(model=MODEL, data=data), lambda line: None)


def test_the_options_of_remote_reads_are_handed_on():
    remote = make_opener(DataConfig(timeout=7, retries=2)).remote
    assert (remote.timeout, remote.retries) == (7, 2)


@pytest.mark.parametrize("classes", [("3",), ("3,1",)])
def test_the_classes_are_printed(printed, tmp_path, classes):
    write_ours(tmp_path / "0.tar", 20, label=lambda number: number % 5)
    corpus = open_data(configured(tmp_path / "0.tar", classes=classes), printed.append)
    assert isinstance(corpus, Corpus)
    named, count = ("1, 3", 8) if len(classes[0]) > 1 else ("3", 4)
    assert corpus.size == count
    assert printed == [
        "data: 20 images in 1 shard; all indexes are intact, and each image is checked when it is first read",
        f"data: {count} images of the classes {named}",
    ]


def test_the_choice_of_the_decoder_pool_is_printed_unless_it_was_given(printed, shards):
    """How it is chosen: see test_autotune.py."""
    config = configured(shards)
    corpus = open_data(config, lambda line: None)
    reader = make_reader(config, corpus, local_ranks=2, pinned=False, say=printed.append)
    assert reader.exact
    cores = len(os.sched_getaffinity(0))
    assert printed == [
        "data: decoding threads per rank: 1 (pixels at training size are only copied; "
        f"{cores} cores, 2 ranks on this node)"
    ]
    printed.clear()
    make_reader(
        configured(shards, workers=3, decode="threads"), corpus, local_ranks=1, pinned=False, say=printed.append
    )
    assert printed == []


def test_what_becomes_of_damaged_images_is_handed_on(tmp_path):
    shard = write_ours(tmp_path / "0.tar", 12)
    config = configured(shard, damaged="substitute", most_damaged=1)
    corpus = open_data(config, lambda line: None)
    assert isinstance(corpus, Corpus)

    def read(damaged):
        content = bytearray(shard.read_bytes())
        content[corpus.index(0).offset[damaged] + 99] ^= 1
        shard.write_bytes(content)
        reader = make_reader(config, corpus, local_ranks=1, pinned=False, say=lambda line: None)
        with closing(reader.batches(0, Split(batch=12, micro_batches=1, rank=0, world_size=1))) as batches:
            next(batches)
        return reader.counters.substituted

    assert read(3) == 1
    with pytest.raises(UserError, match=r"^more than --data\.most_damaged 1 damaged images, the last: "):
        read(8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["indexed", "stream"])
def test_the_reader_is_the_one_that_the_options_describe(shards, kind, channels):
    data = DataConfig(shards=(str(shards),), reader=kind, workers=1)
    config = Config(seed=5, model=ModelConfig(image_size=48, channels=channels), data=data)
    opened = open_data(config, lambda line: None)
    reader = make_reader(config, opened, local_ranks=1, pinned=False, say=lambda line: None)
    assert reader.exact == (kind == "indexed")
    batches = reader.batches(14, Split(batch=6, micro_batches=1, rank=0, world_size=1))
    batch = next(batches)
    batches.close()
    assert batch.images.shape == (6, channels, 48, 48)
    assert batch.rows.samples.tolist() == (Order([3, 4], 5).samples(14, 6).tolist() if kind == "indexed" else [-1] * 6)


@pytest.mark.parametrize("grey", [False, True])
def test_conversion_of_images_is_reported(printed, tmp_path, grey):
    folder = make_folder(tmp_path / "in")
    write_shards(FolderSource(folder), tmp_path / "out", Packing(size=48, channels=1 if grey else 3, processes=1))
    open_data(configured(tmp_path / "out" / "*.tar"), printed.append)
    scaled = "are not 32x32 (most: 48x48); each is cropped to its central square and scaled whenever it is read"
    assert [scaled in line for line in printed[1:2]] == [True]
    assert ("data: the images of the set are grey; they are read as RGB (--model.channels 3)" in printed) == grey
    printed.clear()
    fits = replace(configured(tmp_path / "out" / "*.tar"), model=ModelConfig(image_size=48, channels=1 if grey else 3))
    open_data(fits, printed.append)
    assert len([line for line in printed if "48" in line or "grey" in line]) == 0


def test_other_files_in_a_folder_of_shards_are_counted(tmp_path):
    write_ours(tmp_path / "a.tar", 2)
    for name in "a.idx", "b.idx", "README", "manifest.json.bak", *SIDE_FILES[:-1]:
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    for reader in "indexed", "stream":
        lines: list[str] = []
        open_data(Config(data=DataConfig(shards=(str(tmp_path),), reader=reader)), lines.append)
        counted = "5 other files (2 .idx, 1 .bak, 1 folders, 1 without ending)"
        assert lines[0] == f"data: skipped beside the shards: {counted}"
