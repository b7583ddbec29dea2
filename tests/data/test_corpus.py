"""Patterns become shards, and shards one numbered list of images."""

import os

import numpy as np
import pytest
from support.shards import key_of, open_corpus, write_ours, write_tar

from dcgan_dist.data.corpus import Corpus, expand_shards
from dcgan_dist.data.remote.client import Remote
from dcgan_dist.data.shards.opener import Opener
from dcgan_dist.data.shards.patterns import shards_of
from dcgan_dist.errors import UsageError, UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Empty files with the names of shards, in the working folder."""
    for name in [
        "b-10.tar",
        "b-9.tar",
        "a-000.tar",
        "a-001.tar",
        "a-002.tar",
        "c.tar",
        ".a.tar.host.1.tmp",
        "notes.txt",
    ]:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["a-000.tar"], ["a-000.tar"]),
        (["a-{000..002}.tar"], ["a-000.tar", "a-001.tar", "a-002.tar"]),
        (["a-{002,000}.tar"], ["a-002.tar", "a-000.tar"]),
        (["s-{08..10}-{x,y}.tar"], [f"s-{number}-{letter}.tar" for number in ("08", "09", "10") for letter in "xy"]),
        (["*.tar"], ["a-000.tar", "a-001.tar", "a-002.tar", "b-10.tar", "b-9.tar", "c.tar"]),
        (["?.tar"], ["c.tar"]),
        (["a-00[12].tar"], ["a-001.tar", "a-002.tar"]),
        (["{c,a-*}.tar"], ["c.tar", "a-000.tar", "a-001.tar", "a-002.tar"]),
        (["c.tar", "b-*.tar", "a-{000..001}.tar"], ["c.tar", "b-10.tar", "b-9.tar", "a-000.tar", "a-001.tar"]),
        (["s3://bucket/{0..1}.tar"], ["s3://bucket/0.tar", "s3://bucket/1.tar"]),
        (["http://host/x.tar?key=[1]"], ["http://host/x.tar?key=[1]"]),
        (["pipe:cat {c,*}.tar"], ["pipe:cat {c,*}.tar"]),
        ([], []),
    ],
)
def test_patterns_are_spelt_out_in_a_fixed_order(folder, patterns, names):
    assert expand_shards(patterns, Remote()) == names


def test_absolute_patterns_and_folders(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "d.tar").touch()
    found = expand_shards([f"{folder}/b-*.tar", "*/*.tar"], Remote())
    assert found == [f"{folder}/b-10.tar", f"{folder}/b-9.tar", "sub/d.tar"]


@pytest.mark.parametrize("spelling", ["sub", "sub/", "su?", "~/sub", "FOLDER/sub"])
def test_a_folder_stands_for_its_shards(folder, monkeypatch, spelling):
    (folder / "sub").mkdir()
    for name in ("b.tar", "a.tar.gz", "c.tgz", ".a.tar.host.1.tmp", ".hidden.tar", "manifest.json", "photo.jpg"):
        (folder / "sub" / name).touch()
    monkeypatch.setenv("HOME", str(folder))
    found = expand_shards([spelling.replace("FOLDER", str(folder))], Remote())
    assert [str((folder / name).relative_to(folder)) for name in found] == ["sub/a.tar.gz", "sub/b.tar", "sub/c.tgz"]


def test_a_folders_shards_may_be_packed_in_every_way_that_is_read(tmp_path):
    ends = ["tar", "TAR", "tar.gz", "tgz", "tar.bz2", "tbz2", "tbz", "tar.xz", "txz", "tar.zst", "tzst"]
    for end in (*ends, "zip", "gz"):
        (tmp_path / f"a.{end}").touch()
    assert sorted(expand_shards([str(tmp_path)], Remote())) == sorted(f"{tmp_path}/a.{end}" for end in ends)


@pytest.mark.parametrize("pattern", ["*.tar", "a-{000..002}.tar", "a-000.tar"])
def test_the_disk_is_not_asked_about_every_shard(folder, monkeypatch, pattern):
    asked = []
    stat = os.stat

    def noted(path, *arguments, **options):
        asked.append(str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", noted)
    assert len(shards_of(pattern, Remote())) >= 1
    assert not set(asked) & {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("files", "what"),
    [
        (["a.jpg", "b.png"], "these are images, not shards"),
        (["cat/1.JPEG", "dog/1.webp"], "these are images, not shards"),
        (["a.parquet", "notes.txt"], "holds no shards (.tar)"),
        ([], "holds no shards (.tar)"),
    ],
)
def test_a_folder_without_shards_is_refused_with_what_makes_some(tmp_path, files, what):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UsageError) as error:
        expand_shards([str(tmp_path)], Remote())
    command = f"dcgan-dist shard {tmp_path} OUT --size 64"
    assert str(error.value) == f"--data.shards {tmp_path}: {what}; {command} makes shards of a folder"


@pytest.mark.parametrize("name", ["a/*.PNG", "a.parquet", "s3://bucket/train-00000.parquet", "list.csv", "{a,b}.zip"])
def test_files_that_are_sources_of_shards_are_refused_with_what_makes_some(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.PNG").touch()
    with pytest.raises(UsageError, match="is no shard; dcgan-dist shard SOURCE OUT --size 64 makes shards of images"):
        expand_shards([name], Remote())
    with pytest.raises(UsageError, match=r"a/manifest\.json: is no shard; name the folder of the shards"):
        expand_shards(["a/manifest.json"], Remote())
    (tmp_path / "set.png").mkdir()
    (tmp_path / "set.png" / "0.tar").touch()
    assert expand_shards(["set.png"], Remote()) == ["set.png/0.tar"]


def test_the_name_of_a_file_is_no_pattern_and_two_stars_are_folders_of_any_depth(folder):
    odd = folder / "deep" / "er" / "odd [1]{2,3}.tar"
    odd.parent.mkdir(parents=True)
    odd.touch()
    assert expand_shards([str(odd)], Remote()) == expand_shards([f"{folder}/deep/**/*.tar"], Remote()) == [str(odd)]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["x-*.tar"], r"--data\.shards x-\*\.tar: no such files \(seen from /"),
        (["{c,x?}.tar"], r"--data\.shards x\?\.tar: no such files"),
        (["a-{000..002.tar"], r"--data\.shards a-\{000\.\.002\.tar: the braces do not match"),
        (["c.tar", "*.tar"], r"--data\.shards names c\.tar more than once"),
        (["{c,c}.tar"], r"--data\.shards names c\.tar more than once"),
        (["c.tar", "./c.tar"], r"--data\.shards names \./c\.tar more than once"),
        (["pipe:cat c.tar", "pipe:cat c.tar"], r"--data\.shards names pipe:cat \.\.\. more than once"),
        (["{pipe:rm c,c}.tar"], r"--data\.shards '\{pipe:rm \.\.\.': give every pipe:COMMAND by itself"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(folder, patterns, message):
    with pytest.raises(UsageError, match=message) as caught:
        expand_shards(patterns, Remote())
    assert "\n" not in str(caught.value)


def test_an_absolute_and_a_relative_name_of_one_file_are_twice_the_same(folder):
    with pytest.raises(UsageError, match="more than once"):
        expand_shards(["c.tar", str(folder / "c.tar")], Remote())


def make_corpus(folder, counts):
    """Ours and others' in turn."""
    for number, count in enumerate(counts):
        path = folder / f"{number:02}.tar"
        if number % 2 and count:
            write_tar(path, [(f"{image}.png", b"x" * (image + 1)) for image in range(count)])
        else:
            write_ours(path, count, label=lambda image, number=number: 100 * number + image)
    return open_corpus([str(folder / "*.tar")])


def test_images_are_numbered_in_the_order_of_the_shards(tmp_path):
    corpus = make_corpus(tmp_path, [3, 2, 0, 1, 4])
    assert (corpus.size, corpus.lengths) == (10, [3, 2, 1, 4])  # a shard without images is none
    located = [corpus.locate(sample) for sample in range(10)]
    assert located == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (3, 0), (3, 1), (3, 2), (3, 3)]
    assert key_of(corpus, 2) == "00.tar/00002"
    assert key_of(corpus, 4) == "01.tar/1"
    assert corpus.index(3).describe(1) == f"{tmp_path}/04.tar: 00001.ppm at byte {corpus.index(3).offset[1]}"
    assert np.array_equal(corpus.labels, [0, 1, 2, -1, -1, -1, 400, 401, 402, 403])


def test_the_fingerprint_changes_with_the_samples_and_their_order_but_not_with_the_place(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = make_corpus(tmp_path / "one", [3, 2, 4]), make_corpus(tmp_path / "two", [3, 2, 4])
    assert one.fingerprint == two.fingerprint
    others = [Corpus(shards, Opener()) for shards in (one.shards[::-1], one.shards[:-1])]
    assert len({corpus.fingerprint for corpus in (one, *others)}) == 3


def test_shards_without_any_images_are_refused(tmp_path):
    for name in ("a.tar", "b.tar"):
        write_ours(tmp_path / name, 0)
    with pytest.raises(UserError, match=r"--data\.shards: the 2 shards hold no images"):
        open_corpus([str(tmp_path / "*.tar")])
