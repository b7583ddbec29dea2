"""Odd image files whose pixels are intact are accepted by both JPEG decoders; cut files are refused by both."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.shards import picture

from dcgan_dist.data.images import jpeg
from dcgan_dist.data.images.codecs import decode_into, open_image
from dcgan_dist.errors import UserError

SIZE = 48
EOI = b"\xff\xd9"


@pytest.fixture(params=["simplejpeg", "PIL"], autouse=True)
def decoder(request, monkeypatch):
    """With "PIL", simplejpeg refuses every file as odd."""

    def refuse(*_, **__):
        raise ValueError("an oddity")

    if request.param == "PIL":
        monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", refuse)
    return request.param


def saved(mode="RGB", **options):
    file = io.BytesIO()
    picture(3, SIZE).convert(mode).save(file, "JPEG", **{"quality": 90} | options)
    return file.getvalue()


def put(what, before=b"\xff\xdb", data=None):
    data = saved() if data is None else data
    at = data.index(before)
    return data[:at] + what + data[at:]


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def sampled(wide, high):
    """A flat grey picture with `wide` x `high` blocks of luma to one of each chroma, its scan written anew."""
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (128, 128, 128)).save(file, "JPEG", subsampling="4:2:0")
    data = bytearray(file.getvalue())
    data[data.index(b"\xff\xc0") + 11] = wide << 4 | high
    units = -(-SIZE // (8 * wide)) * -(-SIZE // (8 * high))
    bits = ("001010" * wide * high + "0000" * 2) * units
    bits += "1" * (-len(bits) % 8)
    scan = data.index(b"\xff\xda")
    header = 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
    coded = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    return bytes(data[: scan + header]) + coded + EOI


def cut(data, part):
    """Without the last bytes of its last scan, but with the mark of its end."""
    begin = data.rindex(b"\xff\xda") + 14
    return data[: begin + int((len(data) - begin) * part)] + EOI


def without(data, marker, count, part=0):
    """Without some bytes in front of a marker that follows a scan: the `part`-th after the first scan."""
    at = data.index(b"\xff\xda")
    for _ in range(part + 1):
        at = data.index(marker, at + 1)
    return data[: at - count] + data[at:]


ICC = b"ICC_PROFILE\0"
RESTARTS = saved(restart_marker_rows=1)
FILLED = re.sub(rb"\xff([\xd0-\xd7])", b"\xff\xff\\1", RESTARTS)
INTACT = {
    "plain": saved(),
    "progressive": saved(progressive=True),
    "restart markers": RESTARTS,
    "sampling 4x1": saved(subsampling="4:1:1"),
    "sampling 4x2": sampled(4, 2),
    "sampling 2x4": sampled(2, 4),
    "sampling 1x3": sampled(1, 3),
    "one of two ICC chunks": put(segment(0xE2, ICC + bytes([1, 2]) + bytes(200))),
    "ICC chunk 3 of 2": put(segment(0xE2, ICC + bytes([3, 2]) + bytes(200))),
    "a broken ICC profile": put(segment(0xE2, ICC + bytes([1, 1]) + b"junk")),
    "EXIF that is none": put(segment(0xE1, b"Exif\0\0junk")),
    "stray zeros": put(b"\0\0\0"),
    "stray bytes before the frame": put(b"\xaa\xbb", b"\xff\xc0"),
    "stray bytes before the scan": put(b"\xaa\xbb", b"\xff\xda"),
    "stray bytes in a progressive file": put(b"\1", b"\xff\xc2", saved(progressive=True)),
    "a JFIF version of tomorrow": saved().replace(b"JFIF\0\1\1", b"JFIF\0\11\1"),
    "an Adobe transform of tomorrow": put(segment(0xEE, b"Adobe\0\x64\0\0\0\0\7")),
    "fill bytes before restart markers": FILLED,
    "fill bytes before its end": saved(progressive=True)[:-2] + b"\xff\xff\xff\xd9",
    "fill bytes": put(b"\xff\xff\xff"),
    "zeros behind its pixels": saved()[:-2] + bytes(40) + EOI,
    "text behind its end": saved() + b"GIF89a" * 9,
    "CMYK": saved("CMYK"),
    "CMYK and stray bytes": put(b"\0\0\0", data=saved("CMYK")),
    "grey": saved("L"),
    "grey and stray bytes": put(b"\0\0\0", data=saved("L")),
}
CUT = {
    "no mark of its end": saved()[:-2],
    "half a mark of its end": saved()[:-1],
    "half": saved()[: len(saved()) // 2],
    "half, with an end": cut(saved(), 0.5),
    "the last bytes, with an end": cut(saved(), 0.97),
    "progressive": cut(saved(progressive=True), 0.5),
    "restart markers": cut(RESTARTS, 0.5),
    "from a restart marker on": RESTARTS[: RESTARTS.index(b"\xff\xd1")] + EOI,
    "without one restart marker": RESTARTS.replace(b"\xff\xd1", b"", 1),
    "in front of a restart marker": without(RESTARTS, b"\xff\xd1", 30),
    "in front of a restart marker with fill bytes": without(FILLED, b"\xff\xff\xd1", 30),
    "the end of an earlier scan": without(saved(progressive=True), b"\xff\xc4", 20, 3),
    "fill bytes before its end": saved(progressive=True)[:-200] + b"\xff\xff\xd9",
    "CMYK": cut(saved("CMYK"), 0.5),
    "grey": cut(saved("L"), 0.5),
    "stray bytes, and cut": cut(put(b"\0\0\0"), 0.5),
    "an odd sampling, and cut": cut(sampled(4, 2), 0.5),
    "half an ICC profile, and cut": cut(INTACT["one of two ICC chunks"], 0.5),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", INTACT)
def test_intact_pixels_are_taken(name, channels):
    out = np.zeros((SIZE, SIZE, channels), np.uint8)
    decode_into(INTACT[name], "jpg", out, "x")
    with Image.open(io.BytesIO(INTACT[name])) as image:
        wanted = np.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(out.shape)
        assert open_image(INTACT[name], "x").size == image.size
    assert np.abs(out.astype(int) - wanted).mean() < 2


@pytest.mark.parametrize("name", CUT)
def test_cut_pixels_are_not(name):
    out = np.zeros((SIZE, SIZE, 3), np.uint8)
    for read in lambda data: decode_into(data, "jpg", out, "x"), lambda data: open_image(data, "x"):
        with pytest.raises(UserError, match=r"^x: a damaged image \(.+\)$"):
            read(CUT[name])


def changed(place, value, marker=b"\xff\xc0"):
    data = bytearray(saved())
    data[data.index(marker) + place] = value
    return bytes(data)


ODD_KINDS = {
    "12 bits": changed(4, 12),
    "lossless": changed(1, 0xC3),
    "several resolutions": changed(1, 0xC5),
    "JPEG-LS": changed(1, 0xF7),
    "2 channels": changed(9, 2),
}


@pytest.mark.parametrize("kind", ODD_KINDS)
def test_a_kind_that_cannot_be_read_is_no_damage(kind):
    with pytest.raises(UserError) as caught:
        decode_into(ODD_KINDS[kind], "jpg", np.zeros((SIZE, SIZE, 3), np.uint8), "x")
    assert str(caught.value) == f"x: an unsupported kind of JPEG ({kind}); convert it first"


def test_whatever_an_encoder_writes_is_complete():
    """Also where the last blocks lie outside of the picture, whose bytes change nothing."""
    draw = np.random.default_rng(0)
    for _ in range(150):
        size = draw.integers(1, 60, 2).tolist()
        file = io.BytesIO()
        options = {"subsampling": int(draw.integers(3)), "progressive": bool(draw.integers(2))}
        options |= {"quality": int(draw.choice([1, 50, 90, 100])), "restart_marker_rows": int(draw.integers(2))}
        picture(int(draw.integers(99)), 64).resize(size).save(file, "JPEG", **options)
        data = file.getvalue()
        jpeg.require_complete(data, jpeg.pillow_decode(data, 3), lambda other: jpeg.pillow_decode(other, 3))


ORDINARY = {
    "4:2:0": saved(subsampling=2),
    "4:4:4": saved(subsampling=0, optimize=True),
    "4:2:2": saved(subsampling=1),
    "grey": saved("L"),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_file_is_decoded_once_and_in_silence(name, decoder, monkeypatch, capfd):
    monkeypatch.setattr(jpeg, "_complete", np.zeros(16, np.uint64))
    jpeg.decode_jpeg(ORDINARY[name], 3)
    if decoder == "simplejpeg":
        with monkeypatch.context() as patch:
            patch.setattr(jpeg, "pillow_decode", None)
            jpeg.decode_jpeg(ORDINARY[name], 3)
    for data in CUT.values():
        with pytest.raises(ValueError, match=r"."):
            jpeg.decode_jpeg(data, 3)
    assert capfd.readouterr() == ("", "")


def test_an_odd_file_is_compared_once(decoder, monkeypatch):
    checks = []
    check = jpeg.require_complete
    monkeypatch.setattr(jpeg, "require_complete", lambda *given: checks.append(0) or check(*given))
    monkeypatch.setattr(jpeg, "_complete", np.zeros(16, np.uint64))
    for _ in range(3):
        jpeg.decode_jpeg(INTACT["stray zeros"], 3)
        with pytest.raises(ValueError, match=r"."):
            jpeg.decode_jpeg(CUT["an odd sampling, and cut"], 3)
    assert len(checks) == 1 + 3


@pytest.mark.parametrize("name", ORDINARY)
def test_a_scan_that_lacks_its_last_bytes_is_refused(name):
    """Also where what is missing is a part of the last block, so that no block is all grey."""
    data = ORDINARY[name]
    for missing in range(1, 40):
        short = data[: -2 - missing]
        if short[-1] != 0xFF:
            with pytest.raises(ValueError, match=r"."):
                jpeg.decode_jpeg(short + EOI, 3)


def png(*chunks):
    """With chunks before its pixels, each with its checksum, or another."""
    file = io.BytesIO()
    picture(3, SIZE).save(file, "PNG")
    written = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ wrong)
        for kind, data, wrong in chunks
    )
    return file.getvalue()[:33] + written + file.getvalue()[33:]


EXIF = Image.Exif()
EXIF[0x0112] = 6
ROTATION = (b"eXIf", EXIF.tobytes()[6:], 0)
ODD_PNGS = {
    "a wrong checksum of a text": [(b"tEXt", b"a\0b", 1)],
    "a gamma that is too short": [(b"gAMA", b"1", 0)],
    "a long text": [(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**21)), 0)],
    "an unknown compression": [(b"zTXt", b"a\0\7", 0)],
    "a profile that is none": [(b"iCCP", b"x\0\0junk", 0)],
}


@pytest.mark.parametrize("name", ODD_PNGS)
def test_pngs_whose_other_chunks_are_odd(name):
    out = np.zeros((SIZE, SIZE, 3), np.uint8)
    for rotation in [], [ROTATION]:
        decode_into(png(*ODD_PNGS[name], *rotation), "png", out, "x")
        np.testing.assert_array_equal(out, np.rot90(np.asarray(picture(3, SIZE)), -1 if rotation else 0))


@pytest.mark.parametrize(
    "data", [png()[:200], png()[:29] + bytes(4) + png()[33:], png(*ODD_PNGS["a long text"])[:-300]]
)
def test_damaged_pngs_are_damaged(data):
    with pytest.raises(UserError, match=r"^x: a damaged image \("):
        open_image(data, "x")


def test_a_hundred_million_pixels_are_no_bomb():
    row = bytes(1 + 10_400 // 8)
    head = struct.pack(">IIBBBBB", 10_400, 10_400, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(row * 10_400)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)) for kind, part in chunks
    )
    assert open_image(data, "x").size == (10_400, 10_400)
