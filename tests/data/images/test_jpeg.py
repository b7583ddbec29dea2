"""JPEG decoding: the pixels are Pillow's, and a damaged image is refused."""

import io
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from dcgan_dist.data.images import jpeg
from dcgan_dist.data.images.codecs import decode_into
from dcgan_dist.errors import UserError

RNG = np.random.default_rng(0)


def photo(size: int, mode: str) -> bytes:
    pixels = RNG.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).convert(mode).save(
        buffer, "JPEG", quality=95
    )
    return buffer.getvalue()


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("L", 3), ("RGB", 1)])
def test_pixels_are_those_of_pillow(mode, channels):
    data = photo(64, mode)
    out = np.zeros((64, 64, channels), dtype=np.uint8)
    decode_into(data, "jpg", out, "here")
    with Image.open(io.BytesIO(data)) as image:
        reference = np.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(out.shape)
    # libjpeg-turbo's chroma upsampling and grey conversion differ from Pillow's by rounding
    assert np.abs(out.astype(int) - reference.astype(int)).mean() < 1.0


def test_other_sizes_are_fitted():
    out = np.zeros((32, 32, 3), dtype=np.uint8)
    decode_into(photo(64, "RGB"), "jpg", out, "here")
    assert out.std() > 10


def test_a_cut_image_is_refused():
    data = photo(64, "RGB")
    for kept in (100, len(data) // 2, len(data) - 40):
        with pytest.raises(UserError, match="shard x"):
            decode_into(data[:kept], "jpg", np.zeros((64, 64, 3), dtype=np.uint8), "shard x")


ORIENTATION = 0x0112
TURNED = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    options=st.fixed_dictionaries(
        {
            "progressive": st.booleans(),
            "optimize": st.booleans(),
            "quality": st.sampled_from([1, 75, 100]),
            "restart_marker_rows": st.integers(0, 2),
            "comment": st.sampled_from([b"", b"\xff\xda\xff\xe1Exif\0\0"]),
            "icc_profile": st.sampled_from([None, b"\xff\xda" * 50_000]),
        }
    ),
    orientation=st.sampled_from([None, 1, 3, 6]),
    xmp=st.sampled_from([None, b"<x:xmpmeta/>", TURNED]),
)
def test_what_is_decoded_as_it_lies_is_known_by_its_segments(size, mode, options, orientation, xmp):
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"][ORIENTATION] = orientation
    if xmp:
        options["xmp"] = xmp
    buffer = io.BytesIO()
    with mock.patch.object(ImageFile, "MAXBLOCK", 2**20):  # else Pillow has no room for a small picture and a profile
        Image.new(mode, size, 90).save(buffer, "JPEG", **options)
    data = buffer.getvalue()
    found = jpeg.plain_size(data)
    if found is not None:
        assert found == size[::-1]
        assert jpeg.decode_jpeg(data, 3).shape[:2] == found
        with Image.open(io.BytesIO(data)) as image:
            assert image.mode in ("RGB", "L")
            assert ImageOps.exif_transpose(image).tobytes() == image.tobytes()
    # what has no orientation and the usual colours is always known as such
    assert (found is not None) == (mode != "CMYK" and not orientation and xmp != TURNED)
    assert jpeg.plain_size(memoryview(data)) == found


@given(st.binary(max_size=400))
def test_what_is_no_jpeg_has_no_size(data):
    assert jpeg.plain_size(b"\xff\xd8" + data) is None or data.startswith(b"\xff")
    assert jpeg.plain_size(b"GIF" + data) is None


def test_a_jpeg_that_ends_in_its_segments_has_no_size():
    data = photo(64, "RGB")
    begin = data.index(b"\xff\xda")
    assert jpeg.plain_size(data[: begin + 2]) == (64, 64)
    assert [jpeg.plain_size(data[:kept]) for kept in range(begin)] == [None] * begin
