"""manifest.json tells the truth about the shards, and open_clip and timm find what they look for."""

import io
import json
from collections import Counter

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.folders import CLASSES, make_pictures
from support.shards import by_webdataset, open_corpus, picture

from dcgan_dist.data.images.statistics import PixelCounts
from dcgan_dist.data.remote.client import Remote
from dcgan_dist.data.shards import manifest as manifest_file
from dcgan_dist.data.shards.index import read_index
from dcgan_dist.data.shards.manifest import (
    ShardEntry,
    commonest,
    load_manifest,
    manifest_beside,
    numbered_shard_names,
    parse_manifest,
)
from dcgan_dist.data.sources import find_source
from dcgan_dist.data.writing.packing import Packing
from dcgan_dist.data.writing.writer import write_shards
from dcgan_dist.errors import UserError


@pytest.fixture
def pictures(tmp_path):
    return make_pictures(tmp_path / "in")


def pack(folder, out, **options):
    packing = Packing(**{"shard_size": 5, "processes": 1, **options})
    write_shards(find_source(str(folder)), out, packing)
    return load_manifest(out / "manifest.json")


def images(out, channels=3):
    """The decoded images of all shards, by webdataset and Pillow."""
    for sample in by_webdataset(*sorted(out.glob("*.tar"))):
        (suffix,) = set(sample) & {"jpg", "png", "webp", "ppm", "pgm"}
        with Image.open(io.BytesIO(sample[suffix])) as image:
            yield np.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(*image.size[::-1], channels)


@pytest.mark.parametrize(
    "options",
    [
        {"size": 12, "store": "ppm"},
        {"size": 12, "store": "png", "channels": 1},
        {"size": 12, "store": "jpg"},
        {"size": 12, "store": "webp", "quality": 50},
        {"store": "keep"},
    ],
    ids=["ppm", "grey png", "jpg", "webp", "keep"],
)
def test_mean_std_and_sizes_are_those_of_the_stored_pixels(pictures, tmp_path, options):
    manifest = pack(pictures, tmp_path / "out", **options)
    channels = options.get("channels", 3)
    found = list(images(tmp_path / "out", channels))
    pixels = np.concatenate([image.reshape(-1, channels) for image in found]) / 255.0
    # between two JPEG decoders, a rounding
    near = 0.002 if options["store"] in ("jpg", "keep") else 1e-12
    np.testing.assert_allclose(manifest.mean, pixels.mean(axis=0), rtol=0, atol=near)
    np.testing.assert_allclose(manifest.std, pixels.std(axis=0), rtol=0, atol=near)
    assert manifest.stored_sizes == Counter(f"{image.shape[1]}x{image.shape[0]}" for image in found)
    assert manifest.source_sizes == {"16x16": 6, "20x20": 6, "24x24": 6}
    assert (manifest.size, manifest.channels) == (options.get("size"), channels)
    assert manifest.store == manifest.options["store"] == options["store"]


def test_names_bytes_samples_checksums_and_fingerprints_are_the_files(pictures, tmp_path):
    out = tmp_path / "out"
    manifest = pack(pictures, out, size=8)
    paths = sorted(out.glob("*.tar"))
    indexes = [index for index in map(read_index, paths) if index]
    assert manifest.shards == tuple(
        ShardEntry(
            name=path.name,
            bytes=path.stat().st_size,
            samples=len(index),
            xxh128=xxhash.xxh3_128_hexdigest(path.read_bytes()),
            fingerprint=f"{index.fingerprint:016x}",
        )
        for path, index in zip(paths, indexes, strict=True)
    )
    assert manifest.samples == 18
    assert manifest.bytes == sum(path.stat().st_size for path in paths)
    assert manifest.fingerprint == open_corpus([f"{out}/*.tar"]).fingerprint


def test_classes_have_the_names_of_their_folders(pictures, tmp_path):
    (pictures / CLASSES[1] / "001.png").unlink()
    manifest = pack(pictures, tmp_path / "out", size=8)
    assert [(entry.label, entry.name, entry.samples) for entry in manifest.classes] == [
        (0, "cat", 6),
        (1, "dog", 5),
        (2, "newt", 6),
    ]
    labels = Counter(int(sample["cls"]) for sample in by_webdataset(*sorted((tmp_path / "out").glob("*.tar"))))
    assert labels == {entry.label: entry.samples for entry in manifest.classes}
    assert manifest.unlabelled == 0


def test_images_without_labels_are_counted(pictures, tmp_path):
    manifest = pack(pictures / "cat", tmp_path / "out", size=8)
    assert (manifest.classes, manifest.unlabelled) == ((), 6)


def test_a_class_of_which_nothing_can_be_read_is_there_with_no_sample(pictures, tmp_path):
    for path in (pictures / "dog").iterdir():
        path.write_bytes(b"")
    manifest = pack(pictures, tmp_path / "out", size=8, skip_bad=True)
    assert [(entry.name, entry.samples) for entry in manifest.classes] == [("cat", 6), ("dog", 0), ("newt", 6)]
    assert manifest.bad == 6
    listed = (tmp_path / "out/bad.txt").read_text().splitlines()
    assert [line.partition(": ")[0] for line in listed] == [str(path) for path in sorted((pictures / "dog").iterdir())]


def test_open_clip_and_timm_find_names_and_counts(pictures, tmp_path):
    out = tmp_path / "out"
    pack(pictures, out, size=8)
    lengths = {path.name: len(by_webdataset(path)) for path in sorted(out.glob("*.tar"))}
    # open_clip: the sum over the base names of its --train-data
    sizes = json.loads((out / "sizes.json").read_text())
    assert sum(int(sizes[name]) for name in lengths) == 18
    assert sizes == lengths
    # timm: the split's fields
    split = json.loads((out / "_info.json").read_text())["splits"]["train"]
    assert dict(zip(split["filenames"], split["shard_lengths"], strict=True)) == lengths
    assert (split["name"], split["num_samples"]) == ("train", 18)


@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=5), st.sampled_from([1, 3]))
def test_statistics_of_any_division_are_exact(seeds, channels):
    whole, halves = PixelCounts(channels), [PixelCounts(channels), PixelCounts(channels)]
    for place, seed in enumerate(seeds):
        image = picture(seed, size=3 + place, channels=channels)
        whole.add(image)
        halves[seed % 2].add(image)
    halves[0].merge(halves[1])
    assert halves[0].mean() == whole.mean()
    assert halves[0].std() == whole.std()
    values = [np.asarray(picture(seed, 3 + place, channels)).reshape(-1, channels) for place, seed in enumerate(seeds)]
    pixels = np.concatenate(values) / 255.0
    np.testing.assert_allclose(whole.mean(), pixels.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(whole.std(), pixels.std(axis=0), rtol=1e-9, atol=1e-9)


def test_statistics_of_more_pixels_than_floats_can_count():
    counts = PixelCounts(1)
    counts.counts[0, [0, 255]] = 2**61
    assert counts.mean() == [0.5]
    assert counts.std() == [0.5]
    assert PixelCounts(3).mean() == PixelCounts(3).std() == [0.0] * 3


@pytest.mark.parametrize("count", [1, 100_000, 100_001])
def test_shards_have_the_order_of_their_names(count):
    names = numbered_shard_names(count)
    assert sorted(names) == names
    assert len(set(names)) == count
    assert names[0] == ("shard-00000.tar" if count <= 100_000 else "shard-000000.tar")


def test_the_list_of_sizes_stays_short(monkeypatch):
    monkeypatch.setattr(manifest_file, "SIZES_LISTED", 2)
    sizes = Counter({"8x8": 3, "9x9": 5, "7x7": 3, "1x1": 1})
    assert commonest(sizes) == {"9x9": 5, "7x7": 3, "other": 4}


def changed(path, **fields):
    return json.dumps(json.loads(path.read_text()) | fields).encode()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 9}, "m.json: has version 9, this program reads 1"),
        ({"samples": 17}, r"m.json: contradicts itself \(samples of the shards\)"),
        ({"bytes": 17}, r"m.json: contradicts itself \(bytes of the shards\)"),
        ({"fingerprint": "0"}, r"m.json: contradicts itself \(fingerprint\)"),
        ({"mean": [0.5]}, r"m.json: contradicts itself \(number of channels\)"),
        ({"unlabelled": 3}, r"m.json: contradicts itself \(samples of the classes\)"),
        ({"channels": 2, "mean": [0, 0], "std": [1, 1]}, r"m.json: contradicts itself \(number of channels\)"),
        ({"stored_sizes": {"8x8": "18"}}, r"m.json: contradicts itself \(stored_sizes\)"),
        ({"stored_sizes": {"8x8": 17}}, r"m.json: contradicts itself \(stored_sizes\)"),
        ({"stored_sizes": []}, "m.json: is not a manifest of shards"),
        ({"classes": [{"label": "0", "name": None, "samples": 18}]}, r"itself \(labels of the classes\)"),
        ({"classes": [{"label": 0, "name": 7, "samples": 18}]}, r"itself \(names of the classes\)"),
        ({"shards": [{"name": "a.tar"}]}, "m.json: is not a manifest of shards"),
        ({"colour": "red"}, "m.json: is not a manifest of shards"),
    ],
)
def test_a_wrong_manifest_is_refused(pictures, tmp_path, fields, message):
    pack(pictures, tmp_path / "out", size=8)
    with pytest.raises(UserError, match=message) as refused:
        parse_manifest("m.json", changed(tmp_path / "out/manifest.json", **fields))
    assert "\n" not in str(refused.value)


def test_a_name_that_leads_elsewhere_is_refused(pictures, tmp_path):
    pack(pictures, tmp_path / "out", size=8)
    text = (tmp_path / "out/manifest.json").read_bytes().replace(b"shard-00000.tar", b"../shard-0.tar")
    with pytest.raises(UserError, match="a shard's name is a path"):
        parse_manifest("m.json", text)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b"7", b'{"version": 1}', b"[" * 100_000])
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(UserError, match=r"m\.json: is not a manifest of shards"):
        parse_manifest("m.json", data)


def test_a_missing_manifest_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read \(No such file or directory\)"):
        load_manifest(tmp_path / "manifest.json")


def test_a_manifest_that_is_no_file_is_no_missing_one(tmp_path):
    assert manifest_beside(str(tmp_path), Remote()) is None
    (tmp_path / "manifest.json").symlink_to("gone")
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read \(No such file or directory\)"):
        manifest_beside(str(tmp_path), Remote())
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read \(Is a directory\)"):
        manifest_beside(str(tmp_path), Remote())
