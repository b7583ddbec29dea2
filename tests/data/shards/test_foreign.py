"""Tars made by other programs: the very samples that webdataset reads, found once and remembered."""

import gc
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shards import by_index, by_webdataset, encoded, open_corpus, write_ours, write_tar
from support.tars import as_webdataset_reads
from webdataset.writer import ShardWriter, TarWriter

from dcgan_dist.data.reading.stream import tar_images
from dcgan_dist.data.shards import foreign
from dcgan_dist.data.shards.foreign import foreign_index, members, walk
from dcgan_dist.data.shards.notes import merge_notes
from dcgan_dist.data.shards.samples import MemberChoice
from dcgan_dist.data.shards.tar_walker import TarWalker
from dcgan_dist.data.shards.tarfiles import Header
from dcgan_dist.errors import UserError

TEXTS = [".json", ".txt", ".cls"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dcgan_dist" / "indexes"


def with_shard_writer(folder):
    with ShardWriter(str(folder / "x-%03d.tar"), maxcount=100, verbose=0) as writer:
        for number in range(9):
            texts = {"cls": number, "json": {"a": number}}
            writer.write({"__key__": f"sample{number:03}", "png": encoded(number, "png"), **texts})
    return folder / "x-000.tar"


def with_tar_writer(folder):
    with TarWriter(str(folder / "x.tar")) as writer:
        for number in range(9):
            extra = {"seg.png": encoded(99, "png"), "txt": "a picture"} if number % 2 else {}
            writer.write({"__key__": f"train/{number}", "jpg": encoded(number, "jpg"), "__meta__": "no", **extra})
    return folder / "x.tar"


def files(folder):
    """Images in folders, with long and strange names, and texts beside them."""
    names = ["a.JPG", "b.jpg", "c.Png", "d.webp", "e.jpeg", "deep/er/f.ppm", "Ünï/ç.jpg", "two.dots/g.jpg", "h.v2.jpg"]
    for number, name in enumerate([*names, f"{'long' * 20}/{'name' * 30}.jpg"]):
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number, path.suffix[1:].lower()))
        for text in TEXTS if number % 2 else []:
            path.with_suffix(text).write_text(str(number))
    (folder / "in" / "readme").write_text("no suffix")
    (folder / "in" / "__meta__.jpg__").write_text("skipped")
    return folder / "in"


def with_tar(*options):
    def make(folder):
        command = ["tar", "cf", folder / "x.tar", "--sort=name", *options, "-C", files(folder), "."]
        subprocess.run(command, check=True)
        return folder / "x.tar"

    return make


def with_python(tar_format):
    def make(folder):
        content = [(str(path.relative_to(folder)), path) for path in sorted(files(folder).rglob("*")) if path.is_file()]
        return write_tar(folder / "x.tar", [(name, path.read_bytes()) for name, path in content], tar_format)

    return make


MAKERS = {
    "webdataset.ShardWriter": with_shard_writer,
    "webdataset.TarWriter": with_tar_writer,
    "tar": with_tar(),
    "tar --format=pax": with_tar("--format=pax"),
    "tar --format=ustar": with_tar("--format=ustar", "--exclude=*name*"),
    "tar --format=v7": with_tar("--format=v7", "--exclude=*name*"),
    "tar --format=oldgnu": with_tar("--format=oldgnu"),
    "tar -b 200": with_tar("--blocking-factor=200"),
    "tarfile gnu": with_python(tarfile.GNU_FORMAT),
    "tarfile pax": with_python(tarfile.PAX_FORMAT),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_the_samples_are_those_of_webdataset(tmp_path, maker):
    path = MAKERS[maker](tmp_path)
    wanted = as_webdataset_reads(path)
    assert len(wanted) >= 8
    assert by_index(foreign_index(path)) == wanted
    # a second time from the cache
    assert by_index(foreign_index(path)) == wanted
    assert len({label for *_, label in wanted}) > 1 or maker == "webdataset.TarWriter"


PARTS = st.sampled_from(["a", "b", "a/a", "__x__", "a.b/a", "", "x/", "__", "é"])
SUFFIXES = st.sampled_from([".jpg", ".JPG", ".png", ".cls", ".txt", "", ".", ".seg.png", ".a.jpg", ".jpg/", ".__"])


@settings(max_examples=150)
@given(st.lists(st.tuples(PARTS, SUFFIXES, st.sampled_from([b"", b"7", b"x" * 600])), max_size=12))
def test_any_names_are_grouped_as_webdataset_groups_them(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "grouped.tar"
    write_tar(path, [(part + suffix, data) for part, suffix, data in rows])
    try:
        wanted = as_webdataset_reads(path)
    except ValueError as error:
        with pytest.raises(
            UserError, match="a second member of this name" if "duplicate" in str(error) else str(error)
        ):
            walk(path)
    else:
        assert by_index(walk(path)) == wanted


def test_names_that_are_not_utf8_survive(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("caf\udce9.jpg", b"1"), ("tea.jpg", b"2")], tarfile.GNU_FORMAT)
    for _ in range(2):
        assert foreign_index(path).keys == ["caf\udce9", "tea"]


def test_links_folders_and_devices_are_no_images(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"data")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "c.jpg").mkdir()
    os.mkfifo(tmp_path / "d.jpg")
    command = ["tar", "cf", tmp_path / "x.tar", "-C", tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    subprocess.run(command, check=True)
    assert by_index(foreign_index(tmp_path / "x.tar")) == [("a", "jpg", b"data", -1)]


def write_sparse(folder, names, *options):
    """A tar by `tar --sparse` of files that are mostly holes, and of an image."""
    for name in names:
        with (folder / name).open("wb") as file:
            file.truncate(10**6)
            file.write(b"data")
    (folder / "a.jpg").touch()
    command = ["tar", "cfS", folder / "x.tar", *options, "-C", folder, *sorted({"a.jpg", *names})]
    subprocess.run(command, check=True)
    return folder / "x.tar"


SPARSE = [["--format=gnu"], *(["--format=pax", f"--sparse-version={version}"] for version in ("0.0", "0.1", "1.0"))]


@pytest.mark.parametrize("options", SPARSE, ids="".join)
def test_a_sparse_image_or_label_is_refused(tmp_path, options):
    """Its bytes do not lie in the tar as they are in the file."""
    for name in ("a.jpg", "a.cls"):
        path = write_sparse(tmp_path, [name], *options)
        with pytest.raises(
            UserError, match=rf"x\.tar: '{name}' at byte \d+ is sparse; write .* without --sparse, or leave"
        ):
            walk(path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize("options", SPARSE, ids="".join)
def test_other_sparse_members_do_no_harm(tmp_path, options):
    path = write_sparse(tmp_path, ["0.txt", "a.json", "b.txt"], *options)
    assert by_index(walk(path)) == as_webdataset_reads(path) == [("a", "jpg", b"", -1)]


def test_which_of_several_images_is_the_samples(tmp_path):
    """For both readers: the one whose whole suffix stands first in IMAGE_SUFFIXES, wherever it stands in the tar."""
    suffixes = ["seg.png", "txt", "ppm", "png", "jpeg", "JPG", "a.jpg"]
    names = [f"1.{suffix}" for suffix in suffixes] + ["2.seg.png", "2.txt", "3.webp", "3.pgm", "4.PNG", "4.ppm"]
    path = write_tar(tmp_path / "x.tar", [(name, name.encode()) for name in names])
    wanted = [("1", "jpg", b"1.JPG"), ("3", "webp", b"3.webp"), ("4", "png", b"4.PNG")]
    assert [row[:3] for row in by_index(walk(path))] == wanted
    assert [(suffix, data) for suffix, data, *_ in tar_images(str(path))] == [row[1:] for row in wanted]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.jpg", "a.JPG"], r"'a\.JPG' at byte 1024: a second member of this name, or leave such members out"),
        (["b.jpg", "a.__key__"], r"'a\.__key__' at byte 1024: webdataset has '__key__' for its own use, or"),
    ],
)
def test_names_that_cannot_be_used(tmp_path, names, message):
    path = write_tar(tmp_path / "x.tar", [(name, b"data") for name in names])
    with pytest.raises(UserError, match=rf"^{path}: {message}"):
        walk(path)


def test_the_output_of_img2dataset(tmp_path):
    """Triples of image, caption and metadata; failed downloads leave no member; tables and counts lie beside."""
    for shard in range(2):
        with TarWriter(str(tmp_path / f"{shard:05}.tar")) as writer:
            for number in range(7):
                if number == 3:
                    continue
                key = f"{shard:05}{number:04}"
                metadata = {"url": f"https://host/{key}.png", "caption": "a face", "status": "success", "key": key}
                image = encoded(10 * shard + number, "jpg")
                writer.write({"__key__": key, "jpg": image, "json": metadata, "txt": "a face"})
        (tmp_path / f"{shard:05}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"{shard:05}_stats.json").write_text("{}")
    paths = [tmp_path / "00000.tar", tmp_path / "00001.tar"]
    assert open_corpus([str(tmp_path / "{00000..00001}.tar")]).size == 12
    found = [(key, data) for path in paths for key, _, data, _ in by_index(foreign_index(path))]
    assert found == [(sample["__key__"], sample["jpg"]) for sample in by_webdataset(*paths)]
    assert found[-1][0] == "000010006"


def test_a_sample_that_webdataset_holds_to_be_bad_is_left_out(tmp_path):
    members = [("a.jpg", b"1"), ("a.__bad__", b"yes"), ("b.jpg", b"2"), ("b.__bad__", b"")]
    path = write_tar(tmp_path / "x.tar", members)
    assert by_index(walk(path)) == as_webdataset_reads(path) == [("b", "jpg", b"2", -1)]


def test_headers_that_lead_backwards_come_to_an_end(tmp_path):
    """A negative size sends tarfile back to where it has been, for ever."""
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("b.jpg", b"2")])
    content = bytearray(path.read_bytes())
    content[1024 + 124 : 1024 + 136] = b"\xff" * 10 + b"\xfa\x00"  # 1,536 bytes less than nothing, base 256
    content[1024 + 148 : 1024 + 156] = b" " * 8
    content[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(content[1024 : 1024 + 512])
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.tar: no readable tar, cut or damaged \(.*(size of -1536|invalid header)"):
        walk(path)


@pytest.fixture
def walks(monkeypatch):
    """The tars that were walked."""
    walked: list[Path] = []
    monkeypatch.setattr(foreign, "walk", lambda path, *choice: walked.append(path) or walk(path, *choice))
    return walked


def test_a_tar_is_walked_once(tmp_path, walks, cache):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("a.cls", b"4"), ("b.png", b"22")])
    first, second = foreign_index(path), foreign_index(path)
    assert len(walks) == 1
    assert len(list(cache.iterdir())) == 1
    assert second.name == str(path)
    assert by_index(first) == by_index(second) == [("a", "jpg", b"1", 4), ("b", "png", b"22", -1)]
    assert first.fingerprint == second.fingerprint
    foreign_index(write_tar(tmp_path / "y.tar", [("a.jpg", b"1")]))
    assert len(walks) == 2


@pytest.mark.parametrize("changed", ["size", "time"])
def test_a_tar_that_has_changed_is_walked_again(tmp_path, walks, changed):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"1")])
    foreign_index(path)
    stat = path.stat()
    write_tar(path, [("b.jpg", b"2" * (20_000 if changed == "size" else 1))])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + (changed == "time")))
    assert (path.stat().st_size == stat.st_size) == (changed == "time")
    assert foreign_index(path).keys == ["b"]
    assert len(walks) == 2


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other", "folder"])
def test_a_damaged_cache_costs_a_walk_and_nothing_else(tmp_path, walks, cache, damage):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("b.jpg", b"2")])
    wanted = by_index(foreign_index(path))
    (cached,) = cache.iterdir()
    content = cached.read_bytes()
    if damage == "folder":
        cached.unlink()
        cached.mkdir()
    else:
        flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
        cached.write_bytes({"empty": b"", "cut": content[:100], "flipped": flipped, "other": b"<html>" * 99}[damage])
    assert by_index(foreign_index(path)) == wanted
    assert len(walks) == 2
    if damage != "folder":
        assert cached.read_bytes() == content


def test_a_cache_that_cannot_be_written_costs_a_walk_and_nothing_else(tmp_path, walks, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"1")])
    assert foreign_index(path).keys == foreign_index(path).keys == ["a"]
    assert len(walks) == 2


def test_our_shards_need_no_walk(tmp_path, walks):
    write_ours(tmp_path / "ours.tar", 3)
    write_tar(tmp_path / "other.tar", [("a.jpg", b"1")])
    corpus = open_corpus([str(tmp_path / "*.tar")])
    assert corpus.size == 4
    assert walks == [tmp_path / "other.tar"]


def test_a_tar_that_another_replaces_with_its_times_is_walked_again(tmp_path, walks):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"1")])
    stat = path.stat()
    before = foreign_index(path)
    other = write_tar(tmp_path / "other.tar", [("b.jpg", b"2")])
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert foreign_index(path).keys == ["b"] != before.keys


CONTENT = [
    (f"{number}.{suffix}", data) for number in range(300) for suffix, data in (("ppm", bytes(50)), ("cls", b"3"))
]


@pytest.mark.parametrize("changed", [0, 1, 299, 598], ids=["first image", "first label", "a label", "last image"])
def test_the_fingerprint_distinguishes_tars_with_the_same_names_and_lengths(tmp_path, changed):
    """By labels and by bytes in the middle of images; what a run is trained on must not change without a word."""
    other = list(CONTENT)
    name, data = other[changed]
    other[changed] = name, b"4" if len(data) == 1 else bytes(25) + b"1" + bytes(24)
    paths = [write_tar(tmp_path / f"{n}.tar", members) for n, members in enumerate((CONTENT, other, CONTENT))]
    indexes = [walk(path) for path in paths]
    assert indexes[0].fingerprint == indexes[2].fingerprint != indexes[1].fingerprint
    kept = [foreign_index(path) for path in paths + paths]
    assert [index.fingerprint for index in kept] == [index.fingerprint for index in indexes] * 2


def test_hardly_any_image_data_are_read(tmp_path, monkeypatch):
    """A walk costs the headers and a small sample for the fingerprint, whatever the images weigh."""
    read = []

    class Counted(io.FileIO):
        def read(self, size=-1, /):
            data = super().read(size)
            read.append(len(data))
            return data

    path = write_tar(tmp_path / "x.tar", [(f"{number}.jpg", bytes(200_000)) for number in range(20)])
    monkeypatch.setattr(Path, "open", lambda self, mode: Counted(self, mode))
    assert len(walk(path)) == 20
    assert sum(read) < 20 * (2_000 + 4_096) + 3 * 10_240


def test_a_cut_between_members_is_counted_where_it_is_allowed(tmp_path):
    """No member shows it: what came after the cut is gone."""
    path = write_tar(tmp_path / "x.tar", [(f"{n}.jpg", b"1") for n in range(6)])
    path.write_bytes(path.read_bytes()[: 3 * 1024])
    index = walk(path, MemberChoice(allow_cut=True))
    assert len(index) == 3
    line = "tars without an end mark, perhaps cut: 1; what is there is used (allow_cut)"
    assert merge_notes([index.notes, index.notes]).lines() == [line.replace("1", "2", 1)]
    assert foreign_index(path, MemberChoice(allow_cut=True)).notes.lines() == [line]
    with pytest.raises(UserError, match="cut"):
        walk(path)


def test_no_header_is_kept_for_an_image(tmp_path):
    """They are many times the size of what is known of an image in the end."""
    path = write_tar(tmp_path / "x.tar", [(f"{number}.jpg", b"-") for number in range(50)])
    with path.open("rb") as file:
        found = TarWalker("x.tar", members("x.tar", file, path.stat().st_size), lambda _: b"", MemberChoice())
        assert len(found.joined(list(found.images()))) == 50
    gc.collect()
    assert sum(type(each) is Header for each in gc.get_objects()) < 10
