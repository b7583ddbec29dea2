"""The command line of `dcgan-dist inspect`: its facts and its contact sheet."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from support.http_server import HttpServer
from support.manifests import manifest_of
from support.shards import encoded, picture, write_ours, write_tar

from dcgan_dist.commands import inspect
from dcgan_dist.data.checking.corpus_statistics import Picture
from dcgan_dist.data.shards.index import ShardWriter
from dcgan_dist.data.shards.manifest import manifest_json
from dcgan_dist.errors import UsageError, UserError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with shards of ours and their manifest in ./set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    paths = [
        write_ours(tmp_path / "set" / f"{n}.tar", 40, "ppm", first=40 * n, label=lambda number: int(number % 10 == 3))
        for n in range(2)
    ]
    (tmp_path / "set" / "manifest.json").write_bytes(manifest_json(manifest_of(paths, ("cat", "dog"))))
    return tmp_path


def run(capsys, *options):
    assert inspect.main([*map(str, options)]) == 0
    return capsys.readouterr().out


def test_facts(folder, capsys):
    size = sum(path.stat().st_size for path in folder.glob("set/*.tar")) / 1e6
    each = len(encoded(0, "ppm"))
    pixels = np.stack([np.asarray(picture(number)) for number in range(80)]).reshape(-1, 3) / 255
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (pixels.mean(axis=0), pixels.std(axis=0)))
    assert run(capsys, "set").splitlines() == [
        f"shards:   2 (2 with an index and checksums), {size:.1f} MB",
        f"images:   80 (80 .ppm), {each:,} bytes each",
        f"epoch:    {80 * each / 1e6:.1f} MB of images to read",
        "labels:   2 classes, the largest 0 (cat) with 72, the smallest 1 (dog) with 8 images",
        "manifest: duplicates were not searched for; 0 unreadable images left out",
        "of all images, decoded:",
        "  sizes:  all 32x32",
        "  pixels: all RGB",
        f"  mean:   {mean} (0 to 1)",
        f"  std:    {std} (0 to 1)",
        "contact sheet: 64 images in contact.png",
    ]


def test_facts_for_programs(capsys):
    run(capsys, "set/manifest.json", "--json", "facts.json", "--sample", 10, "--count", 0)
    with open("facts.json") as file:  # noqa: PTH123
        facts = json.load(file)
    assert facts["decoded"] == 10
    assert facts["labels"] == {"0": 72, "1": 8}
    assert facts["classes"] == {"0": "cat", "1": "dog"}
    assert facts["sizes"] == {"32x32": 10}
    assert len(facts["mean"]) == len(facts["std"]) == 3


def test_a_sample_of_the_images_is_reported_as_one(capsys):
    assert "of 10 images, decoded:" in run(capsys, "set", "--sample", 10)
    assert "of all images, decoded:" in run(capsys, "set", "--sample", 10, "--all", "--overwrite")


def test_no_sheet(folder, capsys):
    assert "contact sheet" not in run(capsys, "set", "--count", "0")
    assert not (folder / "contact.png").exists()


def test_the_sheet_shows_the_images_and_their_labels(folder, capsys):
    run(capsys, "set/0.tar", "--count", 4, "--out", "new/sheet.png")
    with Image.open(folder / "new" / "sheet.png") as image:
        sheet = np.asarray(image)
    side, pad = 64, 2  # 32 x 32, twice as large
    tall = side + inspect.CAPTION
    assert sheet.shape == (2 * (tall + pad) + pad, 2 * (side + pad) + pad, 3)
    shown = []
    for row in range(2):
        for column in range(2):
            top, left = pad + row * (tall + pad), pad + column * (side + pad)
            shown.append(sheet[top : top + side, left : left + side])
            assert (sheet[top + side : top + tall, left : left + side] < 128).any()  # letters
    known = [np.asarray(picture(number)).repeat(2, axis=0).repeat(2, axis=1) for number in range(40)]
    found = [next(n for n, other in enumerate(known) if np.array_equal(tile, other)) for tile in shown]
    assert [number // 10 for number in found] == [0, 1, 2, 3]


def test_the_sheet_shows_the_names_of_classes():
    def sheet(key, label, names):
        return inspect.contact_sheet([Picture(key, label, Image.new("RGB", (32, 32)))], names).tobytes()

    assert sheet("key", 3, {3: "cat"}) == sheet("cat", -1, {}) != sheet("key", 3, {})
    assert sheet("key", 3, {8: "cat"}) == sheet("3", -1, {})


def test_another_seed_shows_other_images(folder, capsys):
    run(capsys, "set", "--count", 9)
    run(capsys, "set", "--count", 9, "--seed", 1, "--out", "other.png")
    run(capsys, "set", "--count", 9, "--out", "again.png")
    first, other, again = ((folder / name).read_bytes() for name in ("contact.png", "other.png", "again.png"))
    assert first == again != other


def test_any_images(folder, capsys):
    """Of all sizes and kinds, without labels, with strange names, and broken."""
    with ShardWriter(folder / "mixed.tar") as shard:
        for number, (size, mode) in enumerate([((1, 1), "RGB"), ((500, 20), "L"), ((9, 300), "P"), ((64, 64), "RGBA")]):
            picture(number).resize(size).convert(mode).save(folder / "x.png")
            shard.add(f"a very long name with many letters, Ünï {number}", "png", (folder / "x.png").read_bytes())
        shard.add("broken", "jpg", b"x")
    write_tar(folder / "other.tar", [("a.webp", encoded(1, "webp")), ("b.pgm", encoded(2, "pgm"))])
    out = run(capsys, "mixed.tar", "other.tar").splitlines()
    assert out[0].startswith("shards:   2 (1 with an index and checksums, 1 made by other programs, no checksums)")
    assert out[1].startswith("images:   7 (4 .png, 1 .jpg, 1 .pgm, 1 .webp)")
    assert out[3] == "labels:   none"
    assert "  pixels: L (2), RGB (2), P (1), RGBA (1)" in out
    assert "  sizes:  32x32 (2), 1x1 (1), 500x20 (1), 64x64 (1), 9x300 (1); sides from 1 to 500 pixels" in out
    assert "  cannot be decoded: 1 (`dcgan-dist verify --deep` finds all)" in out
    assert any(line.startswith("    mixed.tar: broken.jpg at byte ") for line in out)
    with Image.open(folder / "contact.png") as image:
        assert image.size == (3 * (inspect.LARGEST + 2) + 2, 3 * (inspect.LARGEST + inspect.CAPTION + 2) + 2)


def test_grey(folder, capsys):
    write_ours(folder / "grey.tar", 3, "pgm")
    assert re.search(r"\n  mean:   0\.\d{4} \(0 to 1\)\n", run(capsys, "grey.tar"))


def test_remote_shards(folder, capsys):
    near = run(capsys, "set", "--out", "near.png").splitlines()
    files = {path.name: path.read_bytes() for path in (folder / "set").iterdir()}
    write_tar(folder / "other.tar", [("a.webp", encoded(1, "webp"))])
    with HttpServer({**files, "other.tar": (folder / "other.tar").read_bytes()}) as server:
        far = run(capsys, server.url("manifest.json"), "--out", "far.png").splitlines()
        other = run(capsys, server.url("other.tar"))
    assert far[:-1] == near[:-1]
    assert (folder / "near.png").read_bytes() == (folder / "far.png").read_bytes()
    assert "1 made by other programs" in other


def test_wrong_options_and_damaged_shards_are_one_line(folder):
    with pytest.raises(UsageError, match="SHARDS is missing"):
        inspect.main([])
    with pytest.raises(UsageError, match="--count -1"):
        inspect.main(["set", "--count", "-1"])
    with pytest.raises(UsageError, match="--sample 0"):
        inspect.main(["set", "--sample", "0"])
    (folder / "bad.tar").write_bytes(b"<html>")
    with pytest.raises(UserError, match="an HTML page"):
        inspect.main(["bad.tar"])
