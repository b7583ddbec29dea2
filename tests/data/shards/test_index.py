"""A shard is a plain tar that anyone reads, and knows where everything in it lies."""

import io
import itertools
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shards import by_index, by_webdataset, encoded, write_ours

from dcgan_dist.data.shards.index import BLOCK, END_MARK, FOOTER, MAGIC, ShardWriter, read_index
from dcgan_dist.data.system import storage
from dcgan_dist.errors import UserError

KEYS = [
    "a",
    "name with spaces",
    "folder/sub folder/b",
    "folder.with.dots/c",
    "x" * 99,
    "y" * 240,
    "deep/" * 40 + "z" * 90,
    "Ünïcödé-名前",
    "é" * 70,
    "__begins",
    "ends__",
    "folder/__x__",
    "0",
]


def write(path, samples):
    with ShardWriter(path) as shard:
        for sample in samples:
            shard.add(*sample)
    return path


def samples(keys=KEYS):
    """Every kind of image, some with labels, of all lengths modulo tar's block."""
    suffixes = ["ppm", "jpg", "png", "webp", "jpeg", "pgm"]
    for number, key in enumerate(keys):
        suffix = suffixes[number % len(suffixes)]
        yield key, suffix, encoded(number, suffix), (number if number % 3 else None)


def footer(content):
    return FOOTER.unpack(content[-len(END_MARK) - FOOTER.size : -len(END_MARK)])


def test_a_shard_reads_back_alike_by_its_index_by_tar_and_by_webdataset(tmp_path):
    path = write(tmp_path / "shard.tar", samples())
    wanted = [(key, suffix, data, -1 if label is None else label) for key, suffix, data, label in samples()]

    index = read_index(path)
    assert index is not None
    assert len(index) == len(wanted)
    assert by_index(index) == wanted

    plain = by_webdataset(path)
    assert [sample["__key__"] for sample in plain] == KEYS
    for sample, (_, suffix, data, label) in zip(plain, wanted, strict=True):
        assert sample[suffix] == data
        assert sample.get("cls") == (None if label < 0 else str(label).encode())
        assert set(sample) - {"__key__", "__url__", "__local_path__", "cls"} == {suffix}

    names = [
        name
        for key, suffix, _, label in wanted
        for name in ([f"{key}.{suffix}"] if label < 0 else [f"{key}.{suffix}", f"{key}.cls"])
    ]
    with tarfile.open(path) as tar:
        assert tar.getnames() == [*names, "__index__"]
    command = ["tar", "tf", path, "--quoting-style=literal"]
    listed = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "LC_ALL": "C"})
    assert listed.stdout.decode().splitlines() == [*names, "__index__"]
    assert listed.stderr == b""


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0\n."), min_size=1, max_size=130),
            st.binary(max_size=1_200),
            st.none() | st.integers(0, 10**6),
        ),
        unique_by=lambda sample: sample[0],
        max_size=8,
    )
)
def test_any_names_and_bytes_survive(tmp_path_factory, rows):
    rows = [row for row in rows if not row[0].endswith("/") and not (row[0].startswith("__") and "__/" in row[0])]
    path = write(tmp_path_factory.mktemp("any") / "shard.tar", [(key, "jpg", data, label) for key, data, label in rows])
    index = read_index(path)
    assert index is not None
    assert by_index(index) == [(key, "jpg", data, -1 if label is None else label) for key, data, label in rows]
    plain = [(sample["__key__"], sample["jpg"], sample.get("cls")) for sample in by_webdataset(path)] if rows else []
    assert plain == [(key, data, None if label is None else str(label).encode()) for key, data, label in rows]


def test_the_footer_stands_at_a_fixed_distance_from_the_end(tmp_path):
    for count in (0, 1, 70):
        content = write_ours(tmp_path / "shard.tar", count).read_bytes()
        assert len(content) % 512 == 0
        assert content.endswith(END_MARK)
        magic, start, length, checksum, images, fingerprint, _ = footer(content)
        assert magic == MAGIC
        assert xxhash.xxh3_64_intdigest(content[start : start + length]) == checksum
        index = read_index(tmp_path / "shard.tar")
        assert index is not None
        assert (images, fingerprint) == (count, index.fingerprint)
        with tarfile.open(tmp_path / "shard.tar") as tar:
            assert tar.getmembers()[-1].offset_data == start


def test_pixels_lie_at_a_fixed_stride(tmp_path):
    """Shards of .ppm are an array: no need to look up where an image begins."""
    index = read_index(write_ours(tmp_path / "shard.tar", 20))
    assert index is not None
    assert len(set(np.diff(index.offset))) == 1


def test_checksums_cover_every_byte_before_the_index(tmp_path):
    path = write(tmp_path / "shard.tar", samples())
    content, index = path.read_bytes(), read_index(path)
    assert index is not None
    # a sample begins with its first tar header (long names need several) and ends where the next begins
    with tarfile.open(path) as tar:
        images = [info.offset for info in tar if not info.name.endswith(".cls")]
    assert images[0] == 0
    assert index.start.tolist() == images
    wanted = [xxhash.xxh3_64_intdigest(content[a:b]) for a, b in itertools.pairwise(images)]
    assert index.checksum.tolist() == wanted


def test_the_writer_reports_what_it_wrote(tmp_path):
    path = tmp_path / "shard.tar"
    with ShardWriter(path) as shard:
        for sample in samples():
            shard.add(*sample)
    content, index = path.read_bytes(), read_index(path)
    assert index is not None
    assert (shard.size, shard.checksum) == (len(content), xxhash.xxh3_128_hexdigest(content))
    assert shard.fingerprint == index.fingerprint


WRITE = """
import sys
from pathlib import Path
from dcgan_dist.data.shards.index import ShardWriter
with ShardWriter(Path(sys.argv[1])) as shard:
    for key in ("a", "b" * 150, "ü"):
        shard.add(key, "jpg", key.encode() * 100, 3)
"""


def test_the_bytes_depend_on_nothing_but_the_samples(tmp_path):
    """Not on the time, the process, the user's hash seed, the path or the folder."""
    (tmp_path / "elsewhere").mkdir()
    paths = [tmp_path / "one.tar", tmp_path / "elsewhere" / "two.tar"]
    for path, seed in zip(paths, "12", strict=True):
        subprocess.run([sys.executable, "-c", WRITE, path], check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    rows = [(key, "jpg", key.encode() * 100, 3) for key in ("a", "b" * 150, "ü")]
    assert paths[0].read_bytes() == paths[1].read_bytes() == write(tmp_path / "three.tar", rows).read_bytes()


def test_an_exception_while_writing_leaves_nothing_and_an_old_shard_as_it_was(tmp_path):
    path = write_ours(tmp_path / "old.tar", 2)
    before = path.read_bytes()
    for target in (path, tmp_path / "new.tar"):
        with pytest.raises(TypeError):
            write(target, [("key", "jpg", b"data"), ("other", "jpg", None)])
    assert [found.name for found in tmp_path.iterdir()] == ["old.tar"]
    assert path.read_bytes() == before


def test_a_shard_has_no_name_before_it_is_complete(tmp_path):
    path = tmp_path / "shard.tar"
    with ShardWriter(path) as shard:
        shard.add("key", "jpg", b"data")
        assert not path.exists()
    assert [found.name for found in tmp_path.iterdir()] == ["shard.tar"]


KILLED = """
import os, signal, sys
from pathlib import Path
from dcgan_dist.data.shards.index import ShardWriter
with ShardWriter(Path(sys.argv[1])) as shard:
    shard.add("key", "jpg", b"data")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next_of_the_same_shard(tmp_path):
    path = tmp_path / "shard.tar"
    assert subprocess.run([sys.executable, "-c", KILLED, path], check=False).returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".shard.tar.")
    others = [
        storage.temporary_path(path).with_suffix(".1.tmp"),  # no pid
        tmp_path / left.name.replace("shard.tar", "other.tar"),
        tmp_path / f".shard.tar.another-machine.{left.suffixes[-2][1:]}.tmp",
        tmp_path / left.name.replace(left.suffixes[-2], f".{os.getppid()}"),  # a process that lives
    ]
    for other in others:
        other.write_bytes(b"")
    write_ours(path, 1)
    assert set(tmp_path.iterdir()) == {path, *others}


@pytest.mark.parametrize(
    ("key", "suffix"),
    [("", "jpg"), ("a.b", "jpg"), ("folder/", "jpg"), ("a\nb", "jpg"), ("__x__/a", "jpg"), ("a", "txt"), ("a", "JPG")],
)
def test_names_that_webdataset_would_read_otherwise_are_refused(tmp_path, key, suffix):
    with pytest.raises(ValueError, match="not a sample name"):
        write(tmp_path / "shard.tar", [(key, suffix, b"data")])


def test_two_samples_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two samples named 'a'"):
        write(tmp_path / "shard.tar", [(key, "jpg", b"data") for key in ("a", "b", "a")])


def test_a_tar_without_index_has_none(tmp_path):
    for content in (b"", b"x" * 40, b"<html>" * 1_000):
        (tmp_path / "x.tar").write_bytes(content)
        assert read_index(tmp_path / "x.tar") is None
    with tarfile.open(tmp_path / "plain.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO(b""))
    assert read_index(tmp_path / "plain.tar") is None


@pytest.mark.parametrize(
    "change", [lambda c: c[:2048] + c[2048 + BLOCK :], lambda c: c[:2048] + bytes(BLOCK) + c[2048:]]
)
def test_a_block_lost_or_put_in_between_is_noticed_at_the_end(tmp_path, change):
    path = write_ours(tmp_path / "shard.tar", 3)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=r"shard\.tar: .*damaged.* copy or write this shard again"):
        read_index(path)


def test_every_flipped_byte_of_the_index_is_noticed(tmp_path):
    content = bytearray(write_ours(tmp_path / "shard.tar", 3).read_bytes())
    _, start, length, *_ = footer(content)
    whole = read_index(tmp_path / "shard.tar")
    assert whole is not None
    last = len(content) - len(END_MARK) - FOOTER.size
    for place in [*range(start, start + length, 7), *range(start + length, last + FOOTER.size)]:
        damaged = content.copy()
        damaged[place] ^= 0x81
        (tmp_path / "shard.tar").write_bytes(damaged)
        if place < last or place >= last + len(MAGIC):
            with pytest.raises(UserError, match=r"shard\.tar: .*damaged.* copy or write this shard again"):
                read_index(tmp_path / "shard.tar")
        else:  # then it is a tar like those of others
            assert read_index(tmp_path / "shard.tar") is None


def test_the_fingerprint_knows_the_samples_and_not_the_place(tmp_path):
    def fingerprint(name, rows):
        index = read_index(write(tmp_path / name, rows))
        assert index is not None
        return index.fingerprint

    rows = list(samples())
    one = fingerprint("one.tar", rows)
    assert fingerprint("two.tar", rows) == one
    renamed, longer = ("renamed", *rows[0][1:]), (*rows[0][:2], b"longer" * 999)
    replaced = (*rows[0][:2], bytes(len(rows[0][2])), rows[0][3])
    others = [rows[1:], rows[::-1], *([first, *rows[1:]] for first in (renamed, longer, replaced))]
    assert len({one, *(fingerprint("other.tar", each) for each in others)}) == 6
