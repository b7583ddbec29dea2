"""From the options to a reader, and what the console is told on the way."""

import os

import pytest
from support.shards import write_ours

from dcgan_dist.config import Config, DataConfig, ModelConfig
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.loading import make_reader, open_data
from dcgan_dist.data.order import Order
from dcgan_dist.data.reader import Split
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
def said():
    """The lines for the console."""
    return []


@pytest.mark.parametrize("reader", ["indexed", "stream"])
def test_without_shards_the_embedded_faces_are_drawn_once_and_the_console_says_so(tmp_path, monkeypatch, said, reader):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = configured(faces=64, reader=reader)
    data = open_data(config, said.append)
    folder = tmp_path / "cache" / "dcgan_dist" / "faces"
    assert said[0] == "data: no --data.shards given, so the embedded set of 64 cartoon faces, drawn by code"
    assert said[1] == f"data: drawing them, once, into {folder} .."
    assert len(list(folder.glob("*.tar"))) == 1
    assert data.size == 64 if isinstance(data, Corpus) else len(data) == 1
    again: list[str] = []
    open_data(config, again.append)
    assert again == [line for line in said if "drawing" not in line]


def test_the_corpus_is_counted_and_checked(said, shards):
    corpus = open_data(configured(shards), said.append)
    assert isinstance(corpus, Corpus)
    assert corpus.lengths == [3, 4]
    assert said == ["data: 7 images in 2 shards, all checked"]


def test_a_stream_says_that_it_begins_anew(said, shards, tmp_path):
    names = open_data(configured(shards, reader="stream"), said.append)
    assert isinstance(names, list)
    assert names == [f"{tmp_path}/0.tar", f"{tmp_path}/1.tar"]
    assert said == ["data: 2 sources streamed by webdataset; a resumed run begins the stream anew"]
    pipes = [f"pipe:cat {name}" for name in names]
    assert open_data(configured(*pipes, reader="stream", allow_pipe=True), said.append) == pipes


@pytest.mark.parametrize("reader", ["indexed", "stream"])
def test_a_bad_shard_is_found_before_any_reader_starts(said, shards, tmp_path, reader):
    bad = tmp_path / "1.tar"
    bad.write_bytes(bad.read_bytes()[:9_000])
    with pytest.raises(UserError, match=rf"^{bad}: .*cut"):
        open_data(configured(shards, reader=reader), said.append)
    assert said == []


@pytest.mark.parametrize("reader", ["indexed", "stream"])
def test_a_remote_shard_is_refused_in_one_line(said, reader):
    config = configured("s3://bucket/{0..3}.tar", reader=reader)

    def begin():
        make_reader(config, open_data(config, said.append), local_ranks=1, pinned=False, say=said.append)

    with pytest.raises(UsageError, match=r"^--data\.shards s3://bucket/0\.tar: [^\n]*$"):
        begin()


@pytest.mark.parametrize(
    ("cores", "local_ranks", "pinned", "threads"),
    [
        (1, 1, False, 1),
        (2, 1, False, 1),
        (8, 1, False, 7),
        (8, 2, False, 3),
        (8, 2, True, 4),
        (2, 4, False, 1),
        (64, 1, True, 16),
    ],
)
def test_the_choice_of_threads_is_said(monkeypatch, said, shards, cores, local_ranks, pinned, threads):
    """One core of each rank is left to the networks where they run on the CPU."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    config = configured(shards)
    corpus = open_data(config, lambda line: None)
    reader = make_reader(config, corpus, local_ranks=local_ranks, pinned=pinned, say=said.append)
    (line,) = said
    assert line == f"data: decoding threads per rank: {threads} (cores: {cores}, ranks on this node: {local_ranks})"
    assert reader.exact


def test_given_threads_are_taken_as_they_are(said, shards):
    config = configured(shards, threads=3)
    make_reader(config, open_data(config, lambda line: None), local_ranks=1, pinned=False, say=said.append)
    assert said == []


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["indexed", "stream"])
def test_the_reader_is_the_one_that_the_options_describe(shards, kind, channels):
    data = DataConfig(shards=(str(shards),), reader=kind, threads=1)
    config = Config(seed=5, model=ModelConfig(image_size=48, channels=channels), data=data)
    opened = open_data(config, lambda line: None)
    reader = make_reader(config, opened, local_ranks=1, pinned=False, say=lambda line: None)
    assert reader.exact == (kind == "indexed")
    batches = reader.batches(14, Split(batch=6, micro_batches=1, rank=0, world_size=1))
    batch = next(batches)
    batches.close()
    assert batch.images.shape == (6, channels, 48, 48)
    assert batch.samples.tolist() == (Order([3, 4], 5).samples(14, 6).tolist() if kind == "indexed" else [-1] * 6)
