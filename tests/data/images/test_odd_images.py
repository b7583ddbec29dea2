"""Bombs, 16 bits, CMYK, one pixel and very many: one defined answer each, in training, in verify and in shard."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from support.shards import by_index

from dcgan_dist.data.checking.access import ShardJob
from dcgan_dist.data.checking.verify import check_shard
from dcgan_dist.data.images.codecs import decode_into, open_image
from dcgan_dist.data.shards.index import ShardWriter, read_index
from dcgan_dist.data.sources import find_source
from dcgan_dist.data.writing.packing import Packing
from dcgan_dist.data.writing.writer import write_shards
from dcgan_dist.errors import UserError

SIZE = 24
TOO_MANY = "more than 268,435,456 pixels; scale it down first"


def png(width, height, bits, colour, rows):
    """A PNG from rows that are already compressed, or plain bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def black_png(side):
    """A whole, valid black-and-white PNG of a few hundred kilobytes, however large the side is."""
    row = bytes(1 + -(-side // 8))
    compress = zlib.compressobj(9, wbits=-15)
    block = compress.compress(row * 8) + compress.flush(zlib.Z_FULL_FLUSH)
    total = len(row) * side
    end = compress.flush()
    checksum = struct.pack(">I", ((total % 65521) << 16) | 1)  # Adler-32 of so many zeros
    return png(side, side, 1, 0, b"\x78\x01" + block * (side // 8) + end + checksum)


def large_jpeg(side, mode):
    """A JPEG whose header promises so many pixels."""
    file = io.BytesIO()
    Image.new(mode, (16, 16)).save(file, "JPEG")
    data = file.getvalue()
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", side, side) + data[place + 4 :]


def values():
    """(SIZE, SIZE, 3), smooth, 16 bits."""
    y, x = np.mgrid[:SIZE, :SIZE]
    return np.stack([x * 2_700 + 11, y * 2_700 + 140, (x + y) * 1_400], axis=-1).astype(np.uint16)


def cmyk(adobe):
    """Colours in CMYK as a JPEG, and what Pillow makes of it: it takes all as Adobe's programs write them."""
    file = io.BytesIO()
    Image.fromarray((values() // 257).astype(np.uint8)).convert("CMYK").save(file, "JPEG", quality=98, subsampling=0)
    data = file.getvalue()
    if not adobe:
        place = data.index(b"\xff\xee")
        data = data[:place] + data[place + 2 + int.from_bytes(data[place + 2 : place + 4], "big") :]
    assert (b"Adobe" in data) == adobe
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "CMYK"
        return data, np.asarray(image.convert("RGB"))


def sixteen_bit_png():
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values())
    return png(SIZE, SIZE, 16, 2, zlib.compress(rows))


def sixteen_bit_ppm():
    return b"P6\n%d %d\n65535\n" % (SIZE, SIZE) + values().astype(">u2").tobytes()


def sixteen_bit_grey(file_format):
    grey = values()[..., 0]
    if file_format == "png":
        return png(SIZE, SIZE, 16, 0, zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in grey)))
    return b"P5\n%d %d\n65535\n" % (SIZE, SIZE) + grey.astype(">u2").tobytes()


def one_pixel(file_format):
    file = io.BytesIO()
    Image.new("RGB", (1, 1), (200, 16, 32)).save(
        file, file_format, **({"quality": 100} if file_format == "JPEG" else {})
    )
    return file.getvalue()


EXACT = np.rint(values() / 257).astype(np.uint8)
HIGH_BYTE = (values() >> 8).astype(np.uint8)  # all that Pillow reads of colour PNGs
GREY = np.repeat(EXACT[..., :1], 3, axis=2)
PIXEL = np.full((SIZE, SIZE, 3), (200, 16, 32), dtype=np.uint8)
# name in a shard -> file, pixels at SIZE x SIZE
ANSWERS = {
    "rgb16-png.png": (sixteen_bit_png(), HIGH_BYTE),
    "rgb16-ppm.ppm": (sixteen_bit_ppm(), EXACT),
    "grey16-png.png": (sixteen_bit_grey("png"), GREY),
    "grey16-pgm.pgm": (sixteen_bit_grey("pgm"), GREY),
    "cmyk-adobe.jpg": cmyk(adobe=True),
    "cmyk-plain.jpg": cmyk(adobe=False),
    "pixel-png.png": (one_pixel("PNG"), PIXEL),
    "pixel-ppm.ppm": (one_pixel("PPM"), PIXEL),
    "pixel-jpg.jpg": (one_pixel("JPEG"), PIXEL),
}
REFUSED = {
    "bomb-png.png": black_png(60_000),
    "black20000.png": black_png(20_000),
    "rgb20000.jpg": large_jpeg(20_000, "RGB"),
    "grey20000.jpg": large_jpeg(20_000, "L"),
    "cmyk20000.jpg": large_jpeg(20_000, "CMYK"),
    "bomb-jpg.jpg": large_jpeg(60_000, "RGB"),
    "bomb-ppm.ppm": b"P6\n60000 60000\n255\n" + bytes(100),
}


def tolerance(name):
    return 2 if name == "pixel-jpg.jpg" else 0  # JPEG's own colours


@pytest.mark.parametrize("name", ANSWERS)
def test_training_sees_the_right_pixels(name):
    data, wanted = ANSWERS[name]
    out = np.zeros((SIZE, SIZE, 3), np.uint8)
    decode_into(data, name[-3:], out, "x")
    assert np.abs(out.astype(int) - wanted).max() <= tolerance(name)


@pytest.mark.parametrize("name", REFUSED)
def test_training_refuses_what_is_too_large(name):
    with pytest.raises(UserError) as caught:
        decode_into(REFUSED[name], name[-3:], np.zeros((SIZE, SIZE, 3), np.uint8), "a.tar: key")
    assert str(caught.value) == f"a.tar: key: {TOO_MANY}"


def test_verify_takes_the_ones_and_names_the_others(tmp_path):
    files = {name: data for name, (data, _) in ANSWERS.items()} | REFUSED
    with ShardWriter(tmp_path / "a.tar") as shard:
        for name, data in files.items():
            shard.add(name[:-4], name[-3:], data)
    report = check_shard(ShardJob(name=str(tmp_path / "a.tar"), deep=True), lambda _: None)
    assert report.sizes == {f"{SIZE}x{SIZE}": 6, "1x1": 3}
    found = [(problem.key, problem.kind, problem.what) for problem in report.problems]
    assert found == [(name[:-4], "image", TOO_MANY) for name in REFUSED]


@pytest.mark.parametrize("store", ["png", "keep"])
def test_shard_takes_the_ones_and_lists_the_others(tmp_path, store):
    (tmp_path / "in").mkdir()
    for name, data in ({name: data for name, (data, _) in ANSWERS.items()} | REFUSED).items():
        (tmp_path / "in" / name).write_bytes(data)
    size = None if store == "keep" else SIZE
    packing = Packing(size=size, store=store, skip_bad=True, processes=1)
    summary = write_shards(find_source(str(tmp_path / "in")), tmp_path / "out", packing)
    assert sorted(summary.skipped) == sorted(f"{tmp_path}/in/{name}: {TOO_MANY}" for name in REFUSED)
    (path,) = (tmp_path / "out").glob("*.tar")
    assert check_shard(ShardJob(name=str(path), deep=True), lambda _: None).problems == []
    index = read_index(path)
    assert index is not None
    assert sorted(index.keys) == sorted(name[:-4] for name in ANSWERS)
    for key, suffix, stored, _ in by_index(index):
        name = next(name for name in ANSWERS if name[:-4] == key)
        data, wanted = ANSWERS[name]
        assert stored == data or store != "keep"
        out = np.zeros((SIZE, SIZE, 3), np.uint8)
        decode_into(stored, suffix, out, name)
        assert np.abs(out.astype(int) - wanted).max() <= tolerance(name)


def test_the_limit_holds_for_jpegs_of_any_size(monkeypatch):
    """The reader and the writer, whoever decodes: a picture of exactly the limit is read, one row more is not."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 30)
    for height, fits in (30, True), (31, False):
        file = io.BytesIO()
        Image.new("RGB", (40, height), "red").save(file, "JPEG")
        if fits:
            assert open_image(file.getvalue(), "x").size == (40, 30)
        else:
            with pytest.raises(UserError, match="more than 1,200 pixels"):
                open_image(file.getvalue(), "x")


MEASURE = """
import resource, sys
import numpy as np
from dcgan_dist.data.images.codecs import decode_into
from dcgan_dist.errors import UserError

out, refused = np.zeros((24, 24, 3), np.uint8), 0
files = [open(name, "rb").read() for name in sys.argv[1:]]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, data in zip(sys.argv[1:], files):
    try:
        decode_into(data, name[-3:], out, "x")
    except UserError:
        refused += 1
print(refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_bomb_is_refused_before_it_takes_memory(tmp_path):
    for name, data in REFUSED.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", MEASURE, *(str(tmp_path / name) for name in REFUSED)]
    refused, kilobytes = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert refused == len(REFUSED)
    assert kilobytes < 30_000
