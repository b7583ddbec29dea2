"""Files that are equal to the byte: found wherever they lie, the first one stays."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.folders import contents, make_pictures
from support.shards import by_webdataset, encoded, picture

from dcgan_dist.data.shards.manifest import load_manifest
from dcgan_dist.data.sources import find_source
from dcgan_dist.data.writing import writer as shard_module
from dcgan_dist.data.writing.duplicates import UNREADABLE, digest, find_duplicates
from dcgan_dist.data.writing.packing import Packing, Part
from dcgan_dist.data.writing.writer import Callbacks, merge_shards, write_shards
from dcgan_dist.errors import UserError

COPIES = {"newt/b.png": "cat/000.png", "cat/zz.png": "cat/000.png", "dog/other name.jpg": "cat/003.jpg"}
"""The source's order is that of the names, and a copy's original is the first of its equals there."""


@pytest.fixture
def pictures(tmp_path):
    folder = make_pictures(tmp_path / "in", 12)
    for copy, original in COPIES.items():
        (folder / copy).write_bytes((folder / original).read_bytes())
    return folder


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(shard_module, "HASHED_TOGETHER", 4)


def pack(folder, out, duplicates, part=None, watch=None, **options):
    packing = Packing(**{"size": 12, "shard_size": 4, "processes": 1, "duplicates": duplicates, **options})
    return write_shards(find_source(str(folder)), out, packing, watch, part)


def keys(out):
    return sorted(sample["__key__"] for sample in by_webdataset(*sorted(out.glob("*.tar"))))


def key(name):
    return name.rpartition(".")[0].replace("/", "_").replace(" ", "_")


def listed(folder):
    return [f"{folder}/{copy}: the same as {folder}/{original}" for copy, original in sorted(COPIES.items())]


@pytest.mark.parametrize("duplicates", ["report", "drop", "keep"])
def test_listed_dropped_or_left_alone(pictures, tmp_path, duplicates):
    summary = pack(pictures, tmp_path / "out", duplicates)
    everything = [path.relative_to(pictures).as_posix() for path in pictures.rglob("*.*")]
    wanted = everything if duplicates != "drop" else [name for name in everything if name not in COPIES]
    assert keys(tmp_path / "out") == sorted(map(key, wanted))
    assert summary.samples == len(wanted)
    found = None if duplicates == "keep" else 3
    assert summary.duplicates == load_manifest(tmp_path / "out/manifest.json").duplicates == found
    text = contents(tmp_path / "out").get("duplicates.txt", b"").decode()
    assert text.splitlines() == ([] if duplicates == "keep" else listed(pictures))


def test_dropping_leaves_full_shards(pictures, tmp_path):
    pack(pictures, tmp_path / "out", "drop")
    lengths = [entry.samples for entry in load_manifest(tmp_path / "out/manifest.json").shards]
    assert lengths == [4, 4, 4]


def test_without_duplicates_nothing_is_listed(tmp_path):
    folder = make_pictures(tmp_path / "in", 12)
    for duplicates in ("report", "drop"):
        summary = pack(folder, tmp_path / duplicates, duplicates)
        assert (summary.samples, summary.duplicates) == (12, 0)
        assert not (tmp_path / duplicates / "duplicates.txt").exists()


def test_the_checksums_are_shared_by_the_parts_and_kept(pictures, tmp_path):
    """Files are read once more for packing, but not for their checksums."""
    hashed = []
    for number in (2, 1, 3, 2):
        watch = Callbacks(hashed=lambda done, total: hashed.append((done, total)))
        pack(pictures, tmp_path / "out", "drop", Part(number, 3), watch)
    assert hashed == [(done, 15) for done in range(16)] + [(15, 15)] * 3
    merge_shards(tmp_path / "out", overwrite=False)
    pack(pictures, tmp_path / "one", "drop", processes=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def test_a_cut_file_of_checksums_is_written_again(pictures, tmp_path):
    out = tmp_path / "out"
    pack(pictures, out, "drop", Part(1, 3))
    next(out.rglob("0000001.bin")).write_bytes(b"cut")
    hashed = []
    pack(pictures, out, "drop", Part(2, 3), Callbacks(hashed=lambda done, total: hashed.append(done)))
    assert hashed == [11, 12, 13, 14, 15]


def test_files_that_cannot_be_read_are_not_each_others_equals(pictures, tmp_path):
    """A file that is there but no image is; the list of bad images names its first one."""
    for name in ("gone1", "gone2"):
        (pictures / f"{name}.png").symlink_to(tmp_path / "nowhere")
        (pictures / f"html{name}.png").write_bytes(b"<html>")
    with pytest.raises(UserError, match="--skip_bad"):
        pack(pictures, tmp_path / "out", "drop", shuffle=False)
    summary = pack(pictures, tmp_path / "out", "drop", skip_bad=True, shuffle=False)
    bad = [message.partition(": ")[0] for message in summary.skipped]
    assert bad == [f"{pictures}/{name}.png" for name in ("gone1", "gone2", "htmlgone1")]
    assert (summary.samples, summary.duplicates) == (12, 4)


def test_pictures_without_files_are_compared_by_pixels():
    assert digest(picture(1)) == digest(picture(1).copy())
    different = [picture(1), picture(2), picture(1, channels=1), picture(1).resize((16, 64))]
    for one, other in itertools.combinations(different, 2):
        assert digest(one) != digest(other)
    pixels = np.arange(12, dtype=np.uint8)
    assert digest(Image.fromarray(pixels.reshape(3, 4))) != digest(Image.fromarray(pixels.reshape(4, 3)))
    assert digest(encoded(1)) != digest(encoded(2))


@given(st.lists(st.sampled_from([UNREADABLE, *(bytes([n]) * 8 + bytes([m]) * 8 for n in (0, 1) for m in (1, 2))])))
def test_duplicates_are_those_of_a_dictionary(digests):
    seen: dict[bytes, int] = {}
    wanted = []
    for number, one in enumerate(digests):
        if one != UNREADABLE and seen.setdefault(one, number) != number:
            wanted.append((number, seen[one]))
    order = np.random.default_rng(len(digests)).permutation(len(digests))
    for numbers in (np.arange(len(digests)), order):
        found = find_duplicates(b"".join(digests[number] for number in numbers), numbers)
        assert list(zip(*map(list, found), strict=True)) == wanted
