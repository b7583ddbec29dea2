"""Both JPEG decoders: the same pixels, and no damaged image passes for a whole one."""

import io

import numpy as np
import pytest
from PIL import Image

from dcgan_dist.data import jpeg
from dcgan_dist.data.codecs import decode_into
from dcgan_dist.errors import UserError

RNG = np.random.default_rng(0)


def photo(size: int, mode: str) -> bytes:
    pixels = RNG.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).convert(mode).save(
        buffer, "JPEG", quality=95
    )
    return buffer.getvalue()


@pytest.fixture(params=list(jpeg.DECODERS))
def decoder(request, monkeypatch):
    monkeypatch.setattr(jpeg, "_CHOSEN", request.param)
    return request.param


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("L", 3), ("RGB", 1)])
def test_pixels_are_those_of_pillow(decoder, mode, channels):
    data = photo(64, mode)
    out = np.zeros((64, 64, channels), dtype=np.uint8)
    decode_into(data, "jpg", out, "here")
    with Image.open(io.BytesIO(data)) as image:
        reference = np.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(out.shape)
    # libjpeg-turbo's chroma upsampling and grey conversion differ from Pillow's by rounding
    assert np.abs(out.astype(int) - reference.astype(int)).mean() < 1.0


def test_other_sizes_are_fitted(decoder):
    out = np.zeros((32, 32, 3), dtype=np.uint8)
    decode_into(photo(64, "RGB"), "jpg", out, "here")
    assert out.std() > 10


def test_a_cut_image_is_refused(decoder):
    data = photo(64, "RGB")
    for kept in (100, len(data) // 2, len(data) - 40):
        with pytest.raises(UserError, match="shard x"):
            decode_into(data[:kept], "jpg", np.zeros((64, 64, 3), dtype=np.uint8), "shard x")


def test_simplejpeg_comes_first():
    assert jpeg.choose() == "simplejpeg"
