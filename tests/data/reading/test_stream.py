"""The stream reader: webdataset's samples in our batches, for sources that cannot be indexed."""

import bz2
import gc
import itertools
import lzma
import tarfile
import threading
from collections import Counter

import numpy as np
import psutil
import pytest
import torch
from support.processes import open_files
from support.shards import encoded, open_corpus, write_ours, write_tar

from dcgan_dist import keyed
from dcgan_dist.config import Config
from dcgan_dist.config.groups import DataConfig
from dcgan_dist.data.loading import open_data
from dcgan_dist.data.order import Split
from dcgan_dist.data.reading import stream as stream_module
from dcgan_dist.data.reading.decode_pool import DecodePlan
from dcgan_dist.data.reading.fetch import Fetcher
from dcgan_dist.data.reading.reader import IndexedReader
from dcgan_dist.data.reading.stream import StreamReader, StreamUrls, TarPipeline, tar_images
from dcgan_dist.data.shards.foreign import DEFAULT
from dcgan_dist.data.shards.notes import Notes
from dcgan_dist.data.shards.samples import MemberChoice
from dcgan_dist.errors import UsageError, UserError

SIZE, SEED = 32, 9
ALONE = Split(batch=8, micro_batches=1, rank=0, world_size=1)


def make_reader(urls, channels=3, choice=DEFAULT, **options):
    pipeline = TarPipeline([str(url) for url in urls], choice, **options)
    return StreamReader(pipeline, shape=(SIZE, channels), seed=SEED, prefetch=2, pinned=False)


def contents(reader, batches, split=ALONE, position=0):
    """Pixels and label of every image of the first batches, one list for each."""
    stream = reader.batches(position, split)
    try:
        return [
            [(pixels.tobytes(), label) for pixels, label in zip(batch.rows.pixels, batch.labels.tolist(), strict=True)]
            for batch in itertools.islice(stream, batches)
        ]
    finally:
        stream.close()


def joined(lists):
    return Counter(itertools.chain.from_iterable(lists))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """48 images of all kinds in 6 shards of 8, ours and others'."""
    folder = tmp_path_factory.mktemp("shards")
    for number, suffix in enumerate(["jpg", "png", "webp", "ppm"]):
        write_ours(folder / f"{suffix}.tar", 8, suffix, first=8 * number, label=lambda image: image % 5)
    for number, tar_format in ((4, tarfile.GNU_FORMAT), (5, tarfile.PAX_FORMAT)):
        files = [(f"x/{image}", encoded(image, "png")) for image in range(8 * number, 8 * number + 8)]
        members = [
            member
            for key, data in files
            for member in ((f"{key}.PNG", data), (f"{key}.txt", b"text"), (f"{key}.cls", b"3"))
        ]
        write_tar(folder / f"theirs{number}.tar", members, tar_format)
    return sorted(folder.glob("*.tar"))


@pytest.mark.parametrize("channels", [1, 3])
def test_an_epoch_holds_the_same_images_and_labels_as_the_indexed_readers(shards, channels):
    shape = (SIZE, channels)
    corpus = open_corpus([str(path) for path in shards])
    indexed = IndexedReader(Fetcher(corpus, shape), seed=SEED, plan=DecodePlan(count=2, prefetch=2))
    wanted = joined(contents(indexed, 6))
    assert len(wanted) == 48
    assert {label for _, label in wanted} == {0, 1, 2, 3, 4}
    epochs = contents(make_reader(shards, channels), 18)
    for epoch in (epochs[:6], epochs[6:12], epochs[12:]):
        assert joined(epoch) == wanted
    assert epochs[:6] != epochs[6:12]


def test_what_a_batch_is(shards):
    stream = make_reader(shards, channels=1).batches(80, Split(batch=16, micro_batches=2, rank=1, world_size=2))
    batch = next(stream)
    assert (batch.images.shape, batch.images.dtype) == ((8, 1, SIZE, SIZE), torch.uint8)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.rows.samples.tolist() == [-1] * 8
    # the coins of positions 80 + 8, .., and of the next global batch
    coins = keyed.words(keyed.key(SEED, "flip"), 80, 32) % 2 == 1
    assert batch.flips.tolist() == coins[8:16].tolist()
    assert next(stream).flips.tolist() == coins[24:32].tolist()
    stream.close()


@pytest.mark.parametrize(
    "files",
    [
        pytest.param([48], id="one shard"),
        pytest.param([24, 24], id="fewer shards than ranks"),
        pytest.param([6] * 8, id="more"),
    ],
)
def test_the_ranks_share_out_the_images_of_an_epoch(tmp_path, files):
    firsts = [sum(files[:number]) for number in range(len(files))]
    paths = [
        write_ours(tmp_path / f"{n}.tar", count, first=first)
        for n, (first, count) in enumerate(zip(firsts, files, strict=True))
    ]
    epochs = [
        contents(make_reader(paths), 6, Split(batch=16, micro_batches=2, rank=rank, world_size=4)) for rank in range(4)
    ]
    for batches in (slice(0, 3), slice(3, 6)):
        together = joined(itertools.chain.from_iterable(rank[batches] for rank in epochs))
        assert len(together) == 48
        assert set(together.values()) == {1}


def test_every_rank_gets_full_batches_without_end_from_ragged_shards(tmp_path):
    counts = [1, 13, 2, 7, 5]
    images = {encoded(image)[-SIZE * SIZE * 3 :] for image in range(28)}
    paths = [write_ours(tmp_path / f"{n}.tar", count, first=sum(counts[:n])) for n, count in enumerate(counts)]
    for rank in range(4):
        for batch in contents(make_reader(paths), 25, Split(batch=24, micro_batches=1, rank=rank, world_size=4)):
            assert len(batch) == 6
            assert {pixels for pixels, _ in batch} <= images


def test_the_same_seed_and_position_give_the_same_stream(shards):
    assert contents(make_reader(shards), 8) == contents(make_reader(shards), 8)
    assert contents(make_reader(shards), 8) != contents(make_reader(shards), 8, position=64)


def test_a_small_set_is_shuffled_uniformly(tmp_path):
    """Sorted classes are as well mixed in the first batches as in the last: 10 classes, batches of 16."""
    path = write_ours(tmp_path / "sorted.tar", 389, "pgm", label=lambda number: number * 10 // 389)
    samples, epochs = make_reader([path], 1)._samples(0, ALONE), []
    for _ in range(30):
        labels = np.array([sample.label for sample in itertools.islice(samples, 389)])
        assert np.bincount(labels).tolist() == [39, 39, 39, 39, 39, 39, 39, 39, 39, 38]
        epochs.append([len(set(batch)) for batch in labels[:384].reshape(-1, 16).tolist()])
    uniform = 10 * (1 - 0.9**16)
    assert np.allclose(np.mean(epochs, axis=0), uniform, rtol=0.1)


def test_a_pipe_is_read(shards):
    pipes = [f"pipe:cat {path}" for path in shards]
    assert contents(make_reader(pipes), 6) == contents(make_reader(shards), 6)
    packed = [f"pipe:gzip -c {path}" for path in shards]
    assert joined(contents(make_reader(packed), 6)) == joined(contents(make_reader(shards), 6))


@pytest.mark.parametrize("url", ["s3://bucket/x.tar", "https://host/x.tar", "file:///x.tar"])
def test_a_remote_shard_is_refused_in_one_line(shards, url):
    with pytest.raises(UsageError) as caught:
        make_reader([shards[0], url])
    assert str(caught.value) == f"--data.shards {url}: not a file; stream it with 'pipe:COMMAND' and --data.allow_pipe"


def test_a_missing_file_is_refused_before_the_first_batch(shards):
    with pytest.raises(UserError, match=r"^nowhere/x\.tar: no such file$"):
        make_reader([shards[0], "nowhere/x.tar"])


NO_END = r"no readable tar, cut or damaged \(no tar header and no end mark at byte 8192\)"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("{folder}", r"cannot be read \(Is a directory\)"),
        ("{folder}/cut.tar", r"no readable tar, cut or damaged \(it ends at byte \d+ without tar's end mark"),
        ("{folder}/web.tar", r"no readable tar, cut or damaged \(invalid header\)"),
        ("{folder}/empty.tar", r"no readable tar, cut or damaged \(empty file\)"),
        ("{folder}/twice.tar", r"'a\.png' at byte \d+: a second member of this name, or leave such"),
        ("pipe:cat {folder}/cut.tar", r"no readable tar, cut or damaged \(it ends at byte \d+ without tar's end mark"),
        ("{folder}/flipped.tar", NO_END),
        ("pipe:cat {folder}/flipped.tar", NO_END),
        ("pipe:gzip -c {folder}/flipped.tar", NO_END),
        (
            "pipe:head -c 8192 {folder}/good.tar",
            r"no readable tar, cut or damaged \(it ends at byte 8192 without tar's end mark",
        ),
        (
            "pipe:cat {folder}/good.tar {folder}/good.tar",
            r"no readable tar, cut or damaged \(more data after the end mark",
        ),
        ("pipe:cat {folder}/good.tar; sleep 0.2; exit 7", r"cannot be read \(the command failed\)"),
        ("pipe:exit 7", r"(cannot be read \(the command failed\)|no readable tar, cut or damaged \(empty file\))"),
        ("{folder}/bad.tar", r"a\.png: not an image in a supported format"),
        ("{folder}/texts.tar", r"no image for rank 0"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(tmp_path, url, message):
    good = write_ours(tmp_path / "good.tar", 5)
    content = bytearray(good.read_bytes())
    (tmp_path / "cut.tar").write_bytes(content[:7_000])
    content[8_192 + 4] ^= 1  # in the name of the third image
    (tmp_path / "flipped.tar").write_bytes(content)
    (tmp_path / "web.tar").write_bytes(b"<html>" * 500)
    (tmp_path / "empty.tar").touch()
    write_tar(tmp_path / "twice.tar", [("a.png", encoded(0, "png"))] * 2)
    write_tar(tmp_path / "bad.tar", [("a.png", b"no picture")])
    write_tar(tmp_path / "texts.tar", [("a.txt", b"text")])
    url = url.format(folder=tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        contents(make_reader([url]), 5)
    assert str(caught.value).removeprefix("--data.shards ").startswith(f"{url}: ")
    assert "\n" not in str(caught.value)


def test_more_ranks_than_images_are_refused(tmp_path):
    """The last rank would look for an image for ever."""
    path = write_ours(tmp_path / "few.tar", 3)
    splits = [Split(batch=4, micro_batches=1, rank=rank, world_size=4) for rank in range(4)]
    for split in splits[:3]:
        assert len(contents(make_reader([path]), 4, split)) == 4
    with pytest.raises(UserError, match="no image for rank 3"):
        contents(make_reader([path]), 1, splits[3])


@pytest.mark.parametrize("kind", ["{path}", "pipe:cat {path}", "pipe:cat {path}; sleep 1000"])
def test_nothing_is_left_of_a_stream_that_is_closed_early(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(stream_module, "SHUFFLE_BUFFER", 100)  # full before the command ends
    path = write_ours(tmp_path / "many.tar", 400)

    def resources():
        gc.collect()
        children = [child for child in psutil.Process().children(recursive=True) if child.status() != "zombie"]
        return {thread.name for thread in threading.enumerate()}, open_files(), len(children)

    before = resources()
    stream = make_reader([kind.format(path=path)]).batches(0, ALONE)
    first = next(stream).rows.pixels.copy()
    assert np.unique(first).size > 2
    assert "reader" in resources()[0] - before[0]
    stream.close()
    del stream
    threads, files, children = resources()
    # threads of earlier tests' web servers may end meanwhile, and take what they held with them
    assert threads <= before[0]
    assert files <= before[1]
    assert children <= before[2]


def test_what_is_not_used_of_pipes_is_counted_in_the_first_pass(tmp_path, capsys):
    """Of plain files it is known, and said, before training begins."""
    members = [
        (f"{image}.{suffix}", data)
        for image in range(8)
        for suffix, data in (("png", encoded(image, "png")), ("txt", b"-"))
    ]
    whole = write_tar(tmp_path / "whole.tar", members)
    content = whole.read_bytes().rstrip(b"\0")
    (tmp_path / "cut.tar").write_bytes(content + bytes(-len(content) % 512))
    urls = [
        f"pipe:cat {tmp_path}/cut.tar",
        f"pipe:gzip -c {tmp_path}/cut.tar",
        f"pipe:cat {whole}",
        tmp_path / "cut.tar",
    ]
    contents(make_reader(urls, choice=MemberChoice(allow_cut=True)), 12)
    assert capsys.readouterr().err.splitlines() == [
        "data: tars without an end mark, perhaps cut: 2; what is there is used (allow_cut) (pipes and packed files)",
        "data: skipped: 24 other members (24 .txt) (pipes and packed files)",
    ]


WORD, APART = "1 a word, which a stream cannot number", "1 apart from its image"
NONE = "1 no JSON in .json, 1 no label found"


@pytest.mark.parametrize(
    ("labels", "reasons"),
    [
        ([("0.cls", b"cat"), ("1.cls", b"3")], f"2 of 3 images have none ({WORD}, 1 no label found)"),
        ([("0.cls", b"cat")], f"3 of 3 images have none (2 no label found, {WORD})"),
        (
            [("z/0.cls", b"3"), ("0.json", b"{")],
            f"3 of 3 images have none ({APART}, 1 no JSON in .json, 1 no label found)",
        ),
        ([], None),
    ],
)
def test_labels_that_a_stream_cannot_use_are_counted(tmp_path, labels, reasons):
    images = [(f"{n}.png", encoded(n, "png")) for n in range(3)]
    path, found = write_tar(tmp_path / "x.tar", sorted(images + labels)), list[Notes]()
    assert len(list(tar_images(f"pipe:cat {path}", on_notes=found.append))) == 3
    assert found[0].lines() == ([] if reasons is None else [f"labels: {reasons}"])


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
def test_a_flipped_bit_is_no_cut(tmp_path, pack):
    path = write_tar(tmp_path / "x.tar", [(f"{n}.png", encoded(n, "png")) for n in range(20)])
    packed, path = pack(path.read_bytes()), tmp_path / "x.tar.packed"
    for place in range(len(packed) // 4, len(packed) - 40, len(packed) // 9):
        path.write_bytes(packed[:place] + bytes([packed[place] ^ 16]) + packed[place + 1 :])
        with pytest.raises(UserError, match="no readable tar, cut or damaged"):
            list(tar_images(f"pipe:cat {path}", MemberChoice(allow_cut=True)))


def test_pipes_are_known_by_the_names_of_their_tars():
    known = [StreamUrls([f"pipe:gunzip <{name}"]).fingerprint for name in ("a.tgz", "b.tgz", "c.txz", "a.tar")]
    assert len(set(known)) == 4
    assert StreamUrls(["pipe:curl https://host/a.tar.gz?sig=1 | gunzip"]).fingerprint == known[3]


def test_plain_files_are_looked_into_before_they_are_streamed(tmp_path):
    write_tar(tmp_path / "x.tar", [("a.png", encoded(0, "png")), ("b.png", b"")])
    options = {"shards": (f"{tmp_path}/x.tar",), "reader": "stream"}
    with pytest.raises(UserError, match=r"b\.png at byte \d+ is an empty file; leave such images out"):
        open_data(Config(data=DataConfig(**options)), print)
    lines: list[str] = []
    assert open_data(Config(data=DataConfig(**options, damaged="substitute")), lines.append) == [f"{tmp_path}/x.tar"]
    assert any("b.png" in line and line.endswith("is an empty file; left out") for line in lines)
    assert "--data.damaged substitute needs the indexed reader" in lines[-1]
    reader = make_reader([tmp_path / "x.tar"], choice=MemberChoice(skip_bad=True))
    assert len({pixels for batch in contents(reader, 2) for pixels, _ in batch}) == 1


def test_keys_are_not_used_for_shards_of_ours(shards):
    ours = [path for path in shards if "theirs" not in path.name]
    assert contents(make_reader(ours, choice=MemberChoice(image_key="input.jpg")), 4) == contents(make_reader(ours), 4)


def test_resampled_shards_are_drawn_with_replacement(tmp_path):
    """By the seed, and otherwise on every rank and after a resume; no rank runs out of images."""
    paths = [write_ours(tmp_path / f"{n}.tar", 1, first=n, label=lambda number: number) for n in range(40)]

    def drawn(rank=0, position=0):
        split = Split(batch=80, micro_batches=1, rank=rank, world_size=2)
        batches = contents(make_reader(paths, resampled=True), 2, split, position)
        return [label for batch in batches for _, label in batch]

    first = drawn()
    assert len(first) == 80
    assert set(first) < set(range(40))  # of 80 draws from 40 about 5 are never drawn
    assert first == drawn()
    assert len({tuple(labels) for labels in (first, drawn(rank=1), drawn(position=80))}) == 3
    many = joined(
        contents(make_reader(paths, resampled=True), 50, Split(batch=80, micro_batches=1, rank=0, world_size=1))
    )
    counts = np.array(list(many.values()))
    assert len(counts) == 40
    assert 0.4 < counts.var() / 100 < 2  # binomial: about 100, and 0 for permutations


def test_a_resampled_stream_passes_over_shards_without_images_and_reports_what_it_does_not_use(tmp_path, capsys):
    path = write_tar(tmp_path / "x.tar", [("a.png", encoded(0, "png")), ("a.txt", b"-")])
    texts = write_tar(tmp_path / "texts.tar", [("a.txt", b"text")])
    assert len(contents(make_reader([f"pipe:cat {path}", texts, texts], resampled=True), 3)) == 3
    assert "data: skipped: 1 other member (1 .txt)" in capsys.readouterr().err
    with pytest.raises(UserError, match="no image for rank 0"):
        contents(make_reader([texts], resampled=True), 1)


def test_resampling_is_announced(shards):
    lines: list[str] = []
    data = DataConfig(shards=tuple(map(str, shards)), reader="stream", resampled=True, workers=3)
    open_data(Config(data=data), lines.append)
    assert "; shards are drawn with replacement, so an epoch is no permutation: some images repeat" in lines[-2]
    assert lines[-1] == "data: not used by --data.reader stream: --data.workers"
