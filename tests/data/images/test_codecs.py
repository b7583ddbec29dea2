"""Every kind of image file becomes the right pixels, and a damaged one an error."""

import io
from typing import get_args
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from dcgan_dist.data.images import codecs
from dcgan_dist.data.images.codecs import decode_into, encode, fit, open_image, to_rgb_or_grey
from dcgan_dist.errors import UserError

BACKGROUND = (10, 200, 30)


def picture(width=24, height=24, seed=0):
    """Smooth colours with some noise, different in every corner: (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x * 255 / width, y * 255 / height, 255 - (x + y) * 255 / (width + height)], axis=-1)
    noise = np.random.default_rng(seed).integers(-9, 10, smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def to_bytes(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def read(data, channels=3, background=BACKGROUND):
    """What the package makes of a file."""
    return np.asarray(to_rgb_or_grey(open_image(data, "x"), channels, background)).astype(int)


def decoded(data, suffix, size=24, channels=3):
    out = np.full((size, size, channels), 77, np.uint8)
    decode_into(data, suffix, out, "x")
    return out


def over(rgb, alpha, background=BACKGROUND):
    share = alpha[..., None] / 255
    return rgb * share + np.array(background) * (1 - share)


def luma(rgb):
    return rgb @ [0.299, 0.587, 0.114]


def test_grey_becomes_three_equal_channels_and_stays_one():
    grey = picture()[..., 0]
    data = to_bytes(Image.fromarray(grey), "PNG")
    np.testing.assert_array_equal(read(data), np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(read(data, channels=1), grey)


def test_colour_becomes_luma():
    rgb = picture()
    assert np.abs(read(to_bytes(Image.fromarray(rgb), "PNG"), channels=1) - luma(rgb)).max() <= 1


def test_one_bit():
    bits = picture()[..., 0] > 127
    np.testing.assert_array_equal(read(to_bytes(Image.fromarray(bits), "PNG"), channels=1), bits * 255)


@pytest.mark.parametrize("transparent", [None, 3, bytes(range(0, 256, 16))])
def test_palette(transparent):
    table = np.random.default_rng(1).integers(0, 256, (16, 3), dtype=np.uint8)
    indices = np.random.default_rng(2).integers(0, 16, (20, 24), dtype=np.uint8)
    image = Image.fromarray(indices, "L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(table.tobytes())
    options = {} if transparent is None else {"transparency": transparent}
    alpha = np.full(16, 255)
    if isinstance(transparent, int):
        alpha[transparent] = 0
    elif transparent is not None:
        alpha = np.frombuffer(transparent, np.uint8)
    wanted = over(table.astype(float), alpha)[indices]
    assert np.abs(read(to_bytes(image, "PNG", **options)) - wanted).max() <= 1


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_transparency_lies_over_the_background(file_format):
    rgb, alpha = picture(), picture(seed=3)[..., 1]
    image = Image.fromarray(np.dstack([rgb, alpha]))
    data = to_bytes(image, file_format, **({"lossless": True, "exact": True} if file_format == "WEBP" else {}))
    assert np.abs(read(data) - over(rgb.astype(float), alpha)).max() <= 1
    assert np.abs(read(data, channels=1) - luma(over(rgb.astype(float), alpha))).max() <= 2


def test_grey_with_transparency():
    grey, alpha = picture()[..., 0], picture(seed=3)[..., 1]
    image = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    wanted = over(np.repeat(grey[..., None], 3, axis=2).astype(float), alpha)
    assert np.abs(read(to_bytes(image, "PNG")) - wanted).max() <= 1


def test_one_colour_that_counts_as_transparent():
    rgb = picture()
    rgb[4:9] = (1, 2, 3)
    wanted = np.where((rgb == (1, 2, 3)).all(axis=-1, keepdims=True), BACKGROUND, rgb)
    np.testing.assert_array_equal(read(to_bytes(Image.fromarray(rgb), "PNG", transparency=(1, 2, 3))), wanted)


def test_cmyk():
    cmyk = np.dstack([picture(), picture(seed=3)[..., 1] // 3])
    data = to_bytes(Image.frombytes("CMYK", (24, 24), cmyk.tobytes()), "TIFF")
    wanted = (255 - cmyk[..., :3].astype(float)) * (255 - cmyk[..., 3:].astype(float)) / 255
    assert np.abs(read(data) - wanted).max() <= 1


def test_cmyk_jpeg_with_adobe_inversion_keeps_its_colours():
    rgb = picture()
    data = to_bytes(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=98, subsampling=0)
    assert b"Adobe" in data
    assert np.abs(read(data) - rgb).mean() < 4
    np.testing.assert_array_equal(decoded(data, "jpg"), read(data))


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(read(to_bytes(Image.fromarray(values), "PNG"), channels=1), np.rint(values / 257))
    netpbm = b"P5\n256 256\n65535\n" + values.astype(">u2").tobytes()
    np.testing.assert_array_equal(read(netpbm, channels=1), np.rint(values / 257))
    big_endian = Image.frombytes("I;16B", (256, 256), values.astype(">u2").tobytes())
    np.testing.assert_array_equal(np.asarray(to_rgb_or_grey(big_endian, 1)), np.rint(values / 257))


@pytest.mark.parametrize("largest", [1, 255])
def test_floating_point(largest):
    values = np.linspace(0, largest, 24 * 24, dtype=np.float32).reshape(24, 24)
    values[0, 0] = np.nan
    wanted = np.rint(np.nan_to_num(values).astype(float) * 255 / largest)
    assert np.abs(read(to_bytes(Image.fromarray(values), "TIFF"), channels=1) - wanted).max() <= 1


@pytest.mark.parametrize("file_format", ["GIF", "BMP", "PPM", "TIFF", "PNG"])
def test_exact_formats(file_format):
    rgb = picture() if file_format != "GIF" else np.repeat(picture()[..., :1], 3, axis=2)
    np.testing.assert_array_equal(read(to_bytes(Image.fromarray(rgb), file_format)), rgb)


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation(orientation, file_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for size in (24, 24), (32, 24):
        plain = to_bytes(Image.fromarray(picture(*size)), file_format)
        data = to_bytes(Image.fromarray(picture(*size)), file_format, exif=exif)
        np.testing.assert_array_equal(read(data), TURNED[orientation](read(plain)))
    square = to_bytes(Image.fromarray(picture()), file_format, exif=exif)
    suffix = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[file_format]
    np.testing.assert_array_equal(decoded(square, suffix), read(square))


def test_rotation_in_xmp_alone():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    plain, data = (to_bytes(Image.fromarray(picture()), "JPEG", **options) for options in ({}, {"xmp": xmp}))
    np.testing.assert_array_equal(decoded(data, "jpg"), np.rot90(decoded(plain, "jpg"), -1))


def test_crop_takes_the_middle():
    wide = picture(30, 24)
    np.testing.assert_array_equal(np.asarray(fit(Image.fromarray(wide), 24)), wide[:, 3:27])
    tall = wide.transpose(1, 0, 2)
    np.testing.assert_array_equal(np.asarray(fit(Image.fromarray(tall), 24)), tall[3:27])


def block_means(rgb, height, width):
    rows, columns = rgb.shape[0] // height, rgb.shape[1] // width
    return rgb.reshape(height, rows, width, columns, -1).mean(axis=(1, 3))


def test_crop_then_scale_is_the_mean_of_blocks():
    rgb = picture(128, 96)
    scaled = np.asarray(fit(Image.fromarray(rgb), 24, filter_="box")).astype(float)
    assert np.abs(scaled - block_means(rgb[:, 16:112], 24, 24)).max() <= 1


def test_stretch_uses_everything():
    rgb = picture(48, 96)
    scaled = np.asarray(fit(Image.fromarray(rgb), 24, "stretch", "box")).astype(float)
    assert np.abs(scaled - block_means(rgb, 24, 24)).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pad_keeps_proportions_in_the_middle_of_the_background(mode):
    rgb = picture(96, 48)
    padded = np.asarray(fit(Image.fromarray(rgb), 24, "pad", "box", BACKGROUND).convert("RGB"))
    assert np.abs(padded[6:18].astype(float) - block_means(rgb, 12, 24)).max() <= 1
    assert (padded[:6] == BACKGROUND).all()
    assert (padded[18:] == BACKGROUND).all()
    grey = np.asarray(fit(Image.fromarray(rgb).convert("L"), 24, "pad", "box", BACKGROUND))
    assert grey.shape == (24, 24)
    assert np.abs(grey[:6] - luma(np.array(BACKGROUND))).max() <= 1


@pytest.mark.parametrize("filter_", get_args(codecs.Filter))
def test_scaling_down_is_antialiased(filter_):
    checks = (np.indices((96, 96)).sum(axis=0) % 2 * 255).astype(np.uint8)
    scaled = np.asarray(fit(Image.fromarray(checks), 24, filter_=filter_)).astype(float)
    assert np.abs(scaled[4:-4, 4:-4] - 127.5).max() < 3


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.sampled_from(get_args(codecs.Resize)))
def test_fit_always_gives_the_size(width, height, size, resize):
    assert fit(Image.new("RGB", (width, height)), size, resize).size == (size, size)


@pytest.mark.parametrize("store", get_args(codecs.StoreFormat))
def test_a_file_has_the_suffix_of_its_format(store):
    suffix, data = encode(Image.fromarray(picture()), store)
    assert (suffix, Image.open(io.BytesIO(data)).format) == (store, "JPEG" if store == "jpg" else store.upper())


@pytest.mark.parametrize("store", ["png", "ppm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_png_and_ppm_are_exact(store, channels):
    pixels = picture()[..., :channels]
    image = Image.fromarray(pixels.squeeze())
    suffix, data = encode(image, store)
    assert suffix == ("pgm" if (store, channels) == ("ppm", 1) else store)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels.squeeze())
    np.testing.assert_array_equal(decoded(data, suffix, channels=channels), pixels)


def test_ppm_is_a_fixed_header_and_the_pixels():
    rgb = picture()
    assert encode(Image.fromarray(rgb), "ppm") == ("ppm", b"P6\n24 24\n255\n" + rgb.tobytes())
    assert encode(Image.fromarray(rgb[..., 0]), "ppm") == ("pgm", b"P5\n24 24\n255\n" + rgb[..., 0].tobytes())


@pytest.mark.parametrize(("quality", "sampling"), [(90, 0), (89, 2)])
def test_jpeg_keeps_full_chroma_from_quality_90(quality, sampling):
    suffix, data = encode(Image.fromarray(picture()), "jpg", quality)
    image = Image.open(io.BytesIO(data))
    assert (suffix, image.format) == ("jpg", "JPEG")
    assert JpegImagePlugin.get_sampling(image) == sampling
    assert Image.open(io.BytesIO(encode(Image.fromarray(picture()[..., 0]), "jpg", quality)[1])).mode == "L"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}])
def test_jpeg_of_the_right_size_equals_pillow(options):
    data = to_bytes(Image.fromarray(picture()), "JPEG", **options)
    np.testing.assert_array_equal(decoded(data, "jpg"), np.asarray(Image.open(io.BytesIO(data))))
    grey = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
    assert np.abs(decoded(data, "jpeg", channels=1)[..., 0] - grey).max() <= 6  # the file's own luma, before clipping


def test_grey_jpeg():
    data = to_bytes(Image.fromarray(picture()[..., 0]), "JPEG")
    grey = np.asarray(Image.open(io.BytesIO(data)))[..., None]
    np.testing.assert_array_equal(decoded(data, "jpg", channels=1), grey)
    np.testing.assert_array_equal(decoded(data, "jpg"), np.repeat(grey, 3, axis=2))


@pytest.mark.parametrize("size", [(24, 32), (12, 48), (48, 12), (7, 5), (64, 64)])
@pytest.mark.parametrize(("file_format", "suffix"), [("JPEG", "jpg"), ("PPM", "ppm"), ("PNG", "png"), ("WEBP", "webp")])
def test_another_size_is_cropped_and_scaled(size, file_format, suffix):
    data = to_bytes(Image.fromarray(picture(*size)), file_format)
    np.testing.assert_array_equal(decoded(data, suffix), np.asarray(fit(Image.open(io.BytesIO(data)), 24)))


def test_decodes_into_its_own_row_of_a_batch_alone():
    batch = np.full((3, 24, 24, 3), 77, np.uint8)
    for suffix, file_format in ("jpg", "JPEG"), ("ppm", "PPM"), ("png", "PNG"):
        decode_into(to_bytes(Image.fromarray(picture()), file_format), suffix, batch[1], "x")
        assert (batch[[0, 2]] == 77).all()
        assert np.abs(batch[1].astype(int) - picture()).mean() < 8


@pytest.mark.parametrize(
    "data",
    [
        b"P6 # by hand\n24 24\n255\n" + picture().tobytes(),
        b"P6\n24 24\n65535\n" + (picture().astype(">u2") * 257).tobytes(),
        b"P3\n24 24\n255\n" + b" ".join(b"%d" % value for value in picture().ravel()),
        b"P6\n24 24\n255\n" + picture().tobytes() + b"\n",
    ],
    ids=["comment", "16 bits", "text", "newline at the end"],
)
def test_any_netpbm(data):
    np.testing.assert_array_equal(decoded(data, "ppm"), picture())


def test_the_content_counts_not_the_suffix():
    np.testing.assert_array_equal(decoded(to_bytes(Image.fromarray(picture()), "PNG"), "jpg"), picture())
    jpeg = to_bytes(Image.fromarray(picture()), "JPEG")
    np.testing.assert_array_equal(decoded(jpeg, "png"), decoded(jpeg, "jpg"))


def refused(data, suffix="jpg", size=24):
    """The one line with which the data are refused, by the reader and by the writer of shards."""
    with pytest.raises(UserError) as by_reader:
        decode_into(data, suffix, np.zeros((size, size, 3), np.uint8), "a.tar: key")
    with pytest.raises(UserError) as by_writer:
        open_image(data, "a.tar: key")
    for message in str(by_reader.value), str(by_writer.value):
        assert message.startswith("a.tar: key: ")
        assert "\n" not in message
    return str(by_reader.value)


JPEG = to_bytes(Image.fromarray(picture()), "JPEG", quality=90)


@pytest.mark.parametrize("size", [24, 16])
def test_a_cut_jpeg_is_never_half_an_image(size):
    first_byte_of_pixels = JPEG.index(b"\xff\xda") + 14
    for cut in range(len(JPEG)):
        refused(JPEG[:cut], size=size)
    for cut in range(first_byte_of_pixels, len(JPEG) - 2):  # as if a program had closed the file properly
        refused(JPEG[:cut] + b"\xff\xd9", size=size)


@pytest.mark.parametrize(("file_format", "suffix"), [("PNG", "png"), ("PPM", "ppm"), ("WEBP", "webp")])
def test_other_cut_images_are_complete_or_refused(file_format, suffix):
    data = to_bytes(Image.fromarray(picture()), file_format)
    whole = decoded(data, suffix)
    behind_the_pixels = 24 if file_format == "PNG" else 0  # checksums and an empty last chunk
    for cut in range(len(data)):
        try:
            np.testing.assert_array_equal(decoded(data[:cut], suffix), whole)
            assert cut >= len(data) - behind_the_pixels
        except UserError as error:
            assert str(error).startswith("x: ")  # noqa: PT017


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "PPM", "GIF", "BMP", "TIFF"])
@given(data=st.data())
def test_flipped_bits_are_pixels_or_one_line(file_format, data):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if file_format in ("JPEG", "PNG", "WEBP") else {}
    damaged = bytearray(to_bytes(Image.fromarray(picture()), file_format, **options))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, min(len(damaged), 400) - 1))] ^= data.draw(st.integers(1, 255))
    with mock.patch.object(Image, "MAX_IMAGE_PIXELS", 100_000):
        try:
            decoded(bytes(damaged), "jpg")
        except UserError as error:
            assert str(error).startswith("x: ")  # noqa: PT017


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_that_cannot_be_read_is_no_rotation():
    data = to_bytes(Image.fromarray(picture()), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    np.testing.assert_array_equal(decoded(data, "jpg"), np.asarray(Image.open(io.BytesIO(data))))


def test_what_is_no_image():
    assert "begins with b'<!DOCTYPE ht'" in refused(b"<!DOCTYPE html><html>not found</html>")
    assert "is empty" in refused(b"")


def test_too_many_pixels(monkeypatch):
    data = to_bytes(Image.new("RGB", (40, 30)), "PNG")
    for limit in 1000, 100:  # Pillow warns above the limit, and raises above its double
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert f"more than {limit:,} pixels" in refused(data, "png")


def test_lab_is_refused():
    assert "LAB" in refused(to_bytes(Image.new("LAB", (8, 8)), "TIFF"), "png")


def test_a_format_with_code_in_it_is_not_opened():
    assert "not an image in a supported format" in refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
