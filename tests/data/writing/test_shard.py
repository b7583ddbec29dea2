"""Images from a folder, a .zip or torchvision become shards that hold just these images, whoever reads them."""

import io
import os
import random
import warnings
import zipfile
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.processes import children
from support.shards import encoded
from torchvision.datasets import FakeData
from webdataset.compat import WebDataset
from webdataset.tariterators import base_plus_ext

from dcgan_dist.data.shards.index import read_index
from dcgan_dist.data.sources import FolderSource, TorchvisionSource, ZipSource, find_source
from dcgan_dist.data.sources.base import Images
from dcgan_dist.data.writing.pack import key_digits, sample_key
from dcgan_dist.data.writing.packing import Packing
from dcgan_dist.data.writing.writer import Callbacks, write_shards
from dcgan_dist.errors import UsageError, UserError

COLOURS = {"blue": (0, 0, 250), "green": (0, 250, 0), "red": (250, 0, 0)}


def picture(colour, number, size=16):
    """One colour with a number written into it in bits, so that every picture is different."""
    pixels = np.full((size, size, 3), colour, np.uint8)
    pixels[:8, :8, 2] = np.unpackbits(np.array([number], ">u8").view(np.uint8)).reshape(8, 8) * 100
    return pixels


def file_bytes(pixels, file_format="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


FILES = {
    f"{colour}/batch.{number % 2}/img{number}.png": file_bytes(picture(value, number))
    for colour, value in COLOURS.items()
    for number in range(7)
}


def make_folder(folder, files=FILES):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def make_zip(path, files=FILES):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in random.Random(3).sample(sorted(files.items()), len(files)):
            archive.writestr(name, data)
    return path


def pack(source, out, progress=lambda done, total: None, **options):
    source = find_source(str(source)) if isinstance(source, Path) else source
    sized = {} if options.get("store") == "keep" else {"size": 16}
    packing = Packing(**{"shard_size": 5, "processes": 1, **sized, **options})
    return write_shards(source, out, packing, Callbacks(packed=progress))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SIDE_FILES = ["_info.json", "manifest.json", "sizes.json"]


def tars(folder):
    return {name: data for name, data in contents(folder).items() if name.endswith(".tar")}


def samples(folder: Path, decoder: str | None = "pil") -> list[dict[str, Any]]:
    """What plain webdataset makes of the shards, with its own image decoder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset never closes the files that it reads
        data_set: Any = WebDataset([str(path) for path in sorted(folder.glob("*.tar"))], shardshuffle=False)
        return list(data_set.decode(decoder) if decoder else data_set)


def test_the_same_bytes_from_a_folder_a_zip_and_any_number_of_processes(tmp_path):
    folder, archive = make_folder(tmp_path / "in"), make_zip(tmp_path / "in.zip")
    summary = pack(folder, tmp_path / "one")
    assert (summary.samples, len(summary.shards), summary.processes, summary.skipped) == (21, 5, 1, ())
    assert summary.bytes == sum(map(len, tars(tmp_path / "one").values()))
    seen = []
    assert pack(folder, tmp_path / "two", lambda *numbers: seen.append(numbers), processes=2).processes == 2
    assert seen[-1] == (21, 21)
    assert pack(archive, tmp_path / "zip", processes=3).processes == 3
    assert sorted(contents(tmp_path / "one")) == sorted(
        [*SIDE_FILES, *(f"shard-{number:05}.tar" for number in range(5))]
    )
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert contents(tmp_path / "zip") == contents(tmp_path / "one")


@pytest.mark.parametrize("store", ["png", "ppm", "jpg", "webp"])
def test_plain_webdataset_reads_every_image_with_its_label(tmp_path, store):
    pack(make_folder(tmp_path / "in"), tmp_path / "out", store=store)
    found = {sample["__key__"]: sample for sample in samples(tmp_path / "out")}
    assert len(found) == 21
    for label, (colour, value) in enumerate(COLOURS.items()):
        for number in range(7):
            sample = found[f"{colour}_batch_{number % 2}_img{number}"]
            assert sample["cls"] == label
            difference = np.abs(np.asarray(sample[store]).astype(int) - picture(value, number))
            assert difference.max() == 0 if store in ("png", "ppm") else difference.mean() < 8


def test_the_index_agrees_with_webdataset(tmp_path):
    pack(make_folder(tmp_path / "in"), tmp_path / "out")
    indexes = [read_index(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    assert [len(index or ()) for index in indexes] == [5, 5, 5, 5, 1]
    by_index = [pair for index in indexes if index for pair in zip(index.keys, index.label.tolist(), strict=True)]
    assert by_index == [(sample["__key__"], sample["cls"]) for sample in samples(tmp_path / "out")]


def test_shuffled_once_by_the_seed(tmp_path):
    folder = make_folder(tmp_path / "in")
    orders = {}
    for name, options in {"as is": {"shuffle": False}, "0": {}, "1": {"seed": 1}}.items():
        pack(folder, tmp_path / name, **options)
        orders[name] = [sample["__key__"] for sample in samples(tmp_path / name)]
    assert orders["as is"] == [name.removesuffix(".png").translate(str.maketrans("/.", "__")) for name in sorted(FILES)]
    assert len({tuple(order) for order in orders.values()}) == 3
    assert {tuple(sorted(order)) for order in orders.values()} == {tuple(sorted(orders["as is"]))}
    first_shard = Counter(key.split("_")[0] for key in orders["0"][:5])
    assert len(first_shard) > 1  # as is, it would hold blue alone


def test_grey_and_another_size(tmp_path):
    pack(make_folder(tmp_path / "in"), tmp_path / "out", size=8, channels=1, store="ppm", filter="box", shuffle=False)
    image = samples(tmp_path / "out")[0]["pgm"].convert("L")
    luma = picture(COLOURS["blue"], 0) @ [0.299, 0.587, 0.114]
    assert np.abs(np.asarray(image) - luma.reshape(8, 2, 8, 2).mean(axis=(1, 3))).max() <= 1


def test_padding_and_transparency_take_the_background(tmp_path):
    clear = np.dstack([picture((9, 9, 9), 1)[:4], np.zeros((4, 16), np.uint8)])
    folder = make_folder(tmp_path / "in", {"clear.png": file_bytes(clear)})
    pack(folder, tmp_path / "out", resize="pad", background="#0a1400", store="ppm")
    assert np.unique(np.asarray(samples(tmp_path / "out")[0]["ppm"]).reshape(-1, 3), axis=0).tolist() == [[10, 20, 0]]


def test_webp_is_lossy_by_quality_and_smaller_than_jpg(tmp_path):
    folder = make_folder(tmp_path / "in", {"photo.png": encoded(1, "png", size=96)})
    sizes = {}
    for store, quality in (("jpg", 80), ("webp", 80), ("webp", 20)):
        pack(folder, tmp_path / f"{store}{quality}", size=96, store=store, quality=quality)
        (sample,) = samples(tmp_path / f"{store}{quality}", decoder=None)
        sizes[store, quality] = len(sample[store])
    assert sizes["webp", 20] < sizes["webp", 80] < sizes["jpg", 80]


@pytest.mark.parametrize(
    ("size", "channels", "suffix", "reason"),
    [
        (128, 3, "ppm", "store: ppm, for 48.0 KiB of pixels an image (at most 48) are read faster than decoded"),
        (129, 3, "jpg", "store: jpg, for 48.8 KiB of pixels an image (more than 48) take much disk and bandwidth"),
        (221, 1, "pgm", "store: ppm, for 47.7 KiB of pixels an image (at most 48) are read faster than decoded"),
        (222, 1, "jpg", "store: jpg, for 48.1 KiB of pixels an image (more than 48) take much disk and bandwidth"),
    ],
)
def test_auto_takes_ppm_up_to_48_kib(tmp_path, size, channels, suffix, reason):
    folder = make_folder(tmp_path / "in", {"a.png": FILES["red/batch.0/img0.png"]})
    pack(folder, tmp_path / "out", size=size, channels=channels, store="auto")
    (sample,) = samples(tmp_path / "out", decoder=None)
    assert suffix in sample
    assert Packing(size=size, channels=channels, store="auto").decisions() == [reason]
    assert Packing(size=size, channels=channels, store="png").decisions() == []


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        ({"size": 8, "store": "png", "quality": 50, "resize": "pad"}, "not used with --store png: --quality"),
        ({"size": 8, "store": "ppm", "quality": 96}, "not used with --store ppm: --quality"),
        ({"store": "keep", "resize": "pad", "filter": "box", "quality": 9}, "keep: --quality, --resize, --filter"),
        ({"size": 8, "store": "webp", "quality": 9, "filter": "box"}, ""),
    ],
)
def test_options_that_a_store_does_not_use_are_reported(options, idle):
    assert [line.endswith(idle) for line in Packing(**options).decisions()] == [True] * bool(idle)


def test_keep_keeps_the_bytes(tmp_path):
    rgb, grey = picture((1, 200, 3), 5, size=20), picture((1, 200, 3), 5)[..., 0]
    files = {
        "photo.JPEG": file_bytes(rgb, "JPEG", quality=70),
        "drawing.png": file_bytes(rgb),
        "web.webp": file_bytes(rgb, "WEBP"),
        "colour.ppm": file_bytes(rgb, "PPM"),
        "grey.pnm": file_bytes(grey, "PPM"),
        "misnamed.png": file_bytes(rgb, "JPEG", quality=60),
    }
    pack(make_folder(tmp_path / "in", files), tmp_path / "out", store="keep", shuffle=False)
    found = samples(tmp_path / "out", decoder=None)
    kept = {f"{sample['__key__']}.{name}": sample[name] for sample in found for name in sample if name[0] != "_"}
    assert kept == {
        "colour.ppm": files["colour.ppm"],
        "drawing.png": files["drawing.png"],
        "grey.pgm": files["grey.pnm"],
        "misnamed.jpg": files["misnamed.png"],
        "photo.jpg": files["photo.JPEG"],
        "web.webp": files["web.webp"],
    }


def test_keep_refuses_what_is_no_file(tmp_path):
    with pytest.raises(UsageError, match="use --store png"):
        pack(TorchvisionSource("FakeData", (("size", "2"),), tmp_path, download=False), tmp_path / "out", store="keep")


def labels(source):
    return {item.name: item.label for item in source.items().images}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["b/1.png", "a/2.png", "a/x/3.png"], {"a/2.png": 0, "a/x/3.png": 0, "b/1.png": 1}),
        (["1.png", "a/2.png"], {"1.png": None, "a/2.png": None}),
        (["1.png", "2.png"], {"1.png": None, "2.png": None}),
        (["all/b/1.png", "all/a/2.png"], {"all/a/2.png": 0, "all/b/1.png": 1}),
        (["all/1.png", "all/2.png"], {"all/1.png": None, "all/2.png": None}),
        (["a-b/1.png", "a/2.png"], {"a-b/1.png": 1, "a/2.png": 0}),
    ],
    ids=["classes", "some outside", "flat", "classes below one folder", "one folder", "sorted by name"],
)
def test_labels_are_the_folders_numbers(tmp_path, kind, names, wanted):
    files = dict.fromkeys(names, b"")
    source = make_folder(tmp_path / "in", files) if kind == "folder" else make_zip(tmp_path / "in.zip", files)
    found = labels(find_source(str(source)))
    assert found == wanted
    assert list(found) == sorted(wanted, key=os.fsencode)


def test_hidden_and_other_files_are_left_out_and_counted(tmp_path):
    others = [".a.png", ".cache/b.png", "c.txt", "png", "d/LICENSE", "__MACOSX/e.png"]
    files = dict.fromkeys([*others, "d/f.PNG", "d/g.jpeg"], b"")
    for source in make_folder(tmp_path / "in", files), make_zip(tmp_path / "in.zip", files):
        images, left_out, *_ = find_source(str(source)).items()
        assert [item.name for item in images] == ["d/f.PNG", "d/g.jpeg"]
        assert left_out == {"hidden": 3, "without ending": 2, ".txt": 1}


def test_links_are_followed_but_not_in_circles(tmp_path):
    make_folder(tmp_path / "elsewhere", {"x.png": b""})
    folder = make_folder(tmp_path / "in", {"a/1.png": b""})
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "back").symlink_to(folder)
    assert labels(FolderSource(folder)) == {"a/1.png": 0, "b/x.png": 1}


def test_mnist_from_its_raw_files(tmp_path):
    digits, numbers = (
        np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8),
        np.arange(12, dtype=np.uint8) % 10,
    )
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in "train", "t10k":
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            np.array([0x803, 12, 28, 28], ">i4").tobytes() + digits.tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(np.array([0x801, 12], ">i4").tobytes() + numbers.tobytes())
    pack(find_source("torchvision:MNIST", tmp_path), tmp_path / "out", size=28, channels=1, store="png", shuffle=False)
    found = samples(tmp_path / "out")
    assert [(sample["__key__"], sample["cls"]) for sample in found] == [(f"{n:02}", n % 10) for n in range(12)]
    np.testing.assert_array_equal([np.asarray(sample["png"].convert("L")) for sample in found], digits)


def test_torchvision_with_options(tmp_path):
    source = find_source("torchvision:FakeData?size=9&image_size=(3,16,16)&num_classes=4")
    ForkingPickler.dumps(source)  # as it travels to other processes
    pack(source, tmp_path, store="png")
    found = {sample["__key__"]: sample for sample in samples(tmp_path)}
    expected = FakeData(9, (3, 16, 16), 4)
    assert len(found) == 9
    for number in range(9):
        image, label = expected[number]
        assert found[str(number)]["cls"] == label
        np.testing.assert_array_equal(np.asarray(found[str(number)]["png"]), np.asarray(image))


CHARACTERS = st.characters(exclude_characters="\0/", exclude_categories=["Cs"])
NAMES = st.text(CHARACTERS, min_size=1).filter(lambda name: name not in (".", ".."))


def keys_of(names):
    digits = key_digits(Images(names))
    return [sample_key(name, number, digits) for number, name in enumerate(names)]


@given(st.lists(NAMES))
def test_keys_are_distinct_and_webdatasets(names):
    keys = keys_of([f"{name}/{name[::-1]}.jpg" for name in names])
    assert len(set(keys)) == len(keys) == len(names)
    for key in keys:
        key.encode()
        assert base_plus_ext(f"{key}.jpg") == (key, "jpg")
        assert len(key) <= 90


def test_clashing_names_keep_distinct_keys():
    assert keys_of(["a/b.jpg", "a_b-2.jpg"]) == ["a_b", "a_b-2"]
    assert keys_of(["a/b.jpg", "a_b.jpg", "a.b.png", "a_b-2.jpg"]) == ["a_b-0", "a_b-1", "a_b-2", "a_b-2-3"]
    assert keys_of([f"{number}/same.png" for number in range(2)] * 6)[-2:] == ["0_same-10", "1_same-11"]
    long = ["x" * 300 + "/1.png", "y" + "x" * 300 + "/1.png"]
    assert len(set(keys_of(long))) == 2


def test_names_that_clash_only_across_shards_have_distinct_keys(tmp_path):
    files = {f"{number}.{suffix}": FILES["red/batch.0/img0.png"] for number in range(4) for suffix in ("jpg", "png")}
    pack(make_folder(tmp_path / "in", files), tmp_path / "out", shard_size=1, shuffle=False)
    assert [sample["__key__"] for sample in samples(tmp_path / "out")] == [f"{n // 2}-{n}" for n in range(8)]


BAD = {"blue/bad.png": b"<html>", "red/cut.png": FILES["red/batch.0/img0.png"][:50]}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_bad_image_stops_the_command_and_shows_nothing(tmp_path, processes):
    for source in make_folder(tmp_path / "in", FILES | BAD), make_zip(tmp_path / "in.zip", FILES | BAD):
        with pytest.raises(UserError, match=r"(bad|cut)\.png: .*; --skip_bad leaves such images out") as refused:
            pack(source, tmp_path / "out", processes=processes)
        assert str(refused.value).startswith(str(source))
        # what is complete is kept for the next try
        assert [path.name for path in tmp_path.glob("out/*")] in ([], [".partial"])


def test_a_name_of_two_lines_is_one_line(tmp_path):
    folder = make_folder(tmp_path / "in", {"a\nb.png": b""})
    with pytest.raises(UserError, match=r"^[^\n]*in/a b\.png: .*; --skip_bad leaves such images out$"):
        pack(folder, tmp_path / "out")


def test_skip_bad_leaves_bad_images_out_and_lists_them(tmp_path):
    summary = pack(make_folder(tmp_path / "in", FILES | BAD), tmp_path / "out", skip_bad=True, store="png")
    assert (summary.samples, len(summary.skipped)) == (21, 2)
    assert all(any(name in message for message in summary.skipped) for name in BAD)
    assert len(samples(tmp_path / "out")) == 21


def test_a_shard_of_bad_images_leaves_no_gap(tmp_path):
    files = dict.fromkeys(["a1.png", "a2.png"], b"") | {"b.png": FILES["red/batch.0/img0.png"]}
    folder = make_folder(tmp_path / "in", files)
    pack(folder, tmp_path / "out", skip_bad=True, shard_size=2, shuffle=False)
    assert list(tars(tmp_path / "out")) == ["shard-00000.tar"]
    (folder / "b.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 3 images can be read"):
        pack(folder, tmp_path / "none", skip_bad=True)


def test_old_shards_stay_until_new_ones_are_complete(tmp_path):
    folder, out = make_folder(tmp_path / "in"), tmp_path / "out"
    pack(folder, out)
    (out / "mine.tar").write_bytes(b"x")
    (out / "notes.txt").write_text("x")
    before = contents(out)
    with pytest.raises(UsageError, match=r"holds 6 \.tar files already; .*--overwrite"):
        pack(folder, out)
    make_folder(folder, BAD)
    with pytest.raises(UserError, match="skip_bad"):
        pack(folder, out, overwrite=True)
    assert contents(out) == before
    pack(folder, out, overwrite=True, skip_bad=True, shard_size=12)
    new = [*SIDE_FILES, "bad.txt", "shard-00000.tar", "shard-00001.tar"]
    assert sorted(contents(out)) == sorted([*new, "mine.tar", "notes.txt"])
    assert (out / "mine.tar").read_bytes() == b"x"


def test_a_killed_process_is_one_line(tmp_path):
    folder = make_folder(tmp_path / "in")
    # takes a second to decode, so that there is time to be killed
    Image.new("L", (10_000, 10_000)).save(large := io.BytesIO(), "PNG", compress_level=1)
    for colour in COLOURS:
        (folder / colour / "large.png").write_bytes(large.getvalue())

    def kill(_done, _total):
        for child in children("spawn_main"):
            child.kill()

    with pytest.raises(UserError, match="killed, perhaps for want of memory"):
        pack(folder, tmp_path / "out", kill, shard_size=12, processes=2)
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file: cannot be written \(Not a directory\)"):
        pack(make_folder(tmp_path / "in"), tmp_path / "file")


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"out: cannot be written \(No space left on device\)"):
        pack(make_folder(tmp_path / "in"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere", r"nowhere: no such file or folder; give a folder of images, a \.zip of one, or torchvision:NAME"),
        ("some.txt", r"some\.txt: neither a folder nor a \.zip"),
        ("no.zip", r"no\.zip: cannot be read as a \.zip"),
        ("empty", r"empty: no images in it; 1 other file \(1 without ending\); images end with \.jpg"),
        (
            "torchvision:CIFAR",
            r"CIFAR: torchvision has no such data set; did you mean CIFAR10 or CIFAR100\?",
        ),
        ("torchvision:mnist", r"did you mean MNIST"),
        ("torchvision:MNIST", r"torchvision:MNIST in data: Dataset not found.*; --download fetches it"),
        ("torchvision:FakeData?size", r"torchvision:FakeData\?size: bad query field: 'size'; write options as in"),
        ("torchvision:MNIST?train=maybe", r"torchvision:MNIST in data: train=maybe: is a switch; give true or false"),
        ("torchvision:FakeData?sizes=3", r"torchvision:FakeData in data: .*unexpected keyword argument 'sizes'"),
        ("torchvision:FakeData?size=-1", r"torchvision:FakeData in data: __len__\(\) should return >= 0"),
        ("torchvision:VisionDataset", r"torchvision:VisionDataset in data: NotImplementedError"),
        ("torchvision:FakeData?size=0", r"torchvision:FakeData: no images in it"),
    ],
)
def test_sources_that_are_none(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path, {"some.txt": b"x", "no.zip": b"<html>", "empty/readme": b""})
    with pytest.raises(UsageError, match=message) as refused:
        pack(find_source(text), tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_member_that_cannot_be_read(tmp_path):
    archive = make_zip(tmp_path / "in.zip", {"a.png": FILES["red/batch.0/img0.png"]})
    data = bytearray(archive.read_bytes())
    data[60] ^= 1
    archive.write_bytes(data)
    with pytest.raises(UserError, match=r"in\.zip: a\.png: cannot be read \(Bad CRC-32"):
        pack(archive, tmp_path / "out")


def test_a_data_set_without_images(tmp_path):
    class Words(TorchvisionSource):
        def _opened(self, download):
            return [("word", 1)]

    with pytest.raises(UsageError, match="torchvision:Words: yields str, not images"):
        pack(Words("Words", (), tmp_path, download=False), tmp_path / "out")
    images, *others = Words("Words", (), tmp_path, download=False).items()
    assert (list(images), *others) == ([("0", None)], {}, {}, ())


@pytest.mark.parametrize(
    ("label", "wanted", "lines"),
    [
        (torch.tensor(3), 3, ()),
        (np.int64(4), 4, ()),
        (-1, None, ("labels: none, for those of the data set are no numbers of classes (a negative number)",)),
        (torch.zeros(40), None, ("labels: none, for those of the data set are no numbers of classes (a Tensor)",)),
        ("cat", None, ("labels: none, for those of the data set are no numbers of classes (a text)",)),
        (None, None, ()),
    ],
)
def test_labels_of_a_data_set(tmp_path, label, wanted, lines):
    class Pictures(TorchvisionSource):
        def _opened(self, download):
            return [(Image.new("RGB", (8, 8)), label)]

    source = Pictures("Pictures", (), tmp_path, download=False)
    assert source.items().lines == lines
    with source.open() as load:
        assert load(source.items().images[0])[1] == wanted


def test_files_with_several_pictures_are_counted(tmp_path, capsys):
    files = {}
    for suffix, name in {"gif": "GIF", "tif": "TIFF", "webp": "WEBP", "png": "PNG"}.items():
        file = io.BytesIO()
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        frames[0].save(file, name, save_all=True, append_images=frames[1:])
        files[f"{suffix}.{suffix}"] = file.getvalue()
    files["one.gif"] = file_bytes(picture((0, 0, 0), 1)[..., 0], "GIF")
    assert pack(make_folder(tmp_path / "in", files), tmp_path / "out").several == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"--size is missing: .*--size 64"),
        ({"size": 0}, r"--size 0: must be at least 1"),
        ({"size": 8193}, r"--size 8193: must be at most 8,192"),
        ({"size": 32, "store": "keep"}, r"--size with --store keep"),
        ({"size": 32, "quality": 0}, r"--quality 0: must be at least 1"),
        ({"size": 32, "quality": 101}, r"--quality 101"),
        ({"size": 32, "shard_size": 0}, r"--shard_size 0"),
        ({"size": 32, "processes": -1}, r"--processes -1"),
        ({"size": 32, "background": "#12"}, r"--background #12: no colour; write it as '#rrggbb'"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(UsageError, match=message):
        Packing(**options)


def test_a_colour_by_name():
    assert Packing(size=1, background="navy").colour() == (0, 0, 128)


def test_zip_source_is_the_zip(tmp_path):
    assert find_source(str(make_zip(tmp_path / "A.ZIP"))) == ZipSource(tmp_path / "A.ZIP")
