"""Encoded images to pixels and back: any image file to 8-bit RGB or grey of one size.

Colour profiles are ignored, as everywhere in the field; of animations and multi-page files the first image is used.
"""

import io
import warnings
import zlib
from contextlib import suppress
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dcgan_dist.data.images.formats import FORMATS, JPEG_SUFFIXES
from dcgan_dist.data.images.jpeg import decode_jpeg, plain_size, require_complete, unsupported_kind
from dcgan_dist.errors import UserError

Resize = Literal["crop", "pad", "stretch"]
Filter = Literal["lanczos", "bicubic", "box"]
StoreFormat = Literal["jpg", "png", "webp", "ppm"]
Colour = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)
FULL_CHROMA_FROM = 90  # JPEG quality
PNG = b"\x89PNG\r\n\x1a\n"
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
IMAGE_MAGICS = (PNG, b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")  # first bytes that only images have

Image.MAX_IMAGE_PIXELS = 2**28  # 16,384 x 16,384, which take 1 GiB; Pillow's own limit is a third of it

# set once, because a filter around each call would not be thread-safe
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def open_image(data: bytes, where: str) -> Image.Image:
    """Decodes a complete image file. to_rgb_or_grey applies its EXIF rotation.

    Raises UserError with `where` in front when the data are damaged, cut, of a format not in FORMATS, or more than
    Image.MAX_IMAGE_PIXELS pixels. Only wrong pixels count as damage, not wrong metadata.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
            return _open_jpeg(image, data)
        image.load()
        if image.format == "JPEG":
            require_complete(data, np.asarray(image), lambda changed: np.asarray(Image.open(io.BytesIO(changed))))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: more than {Image.MAX_IMAGE_PIXELS:,} pixels; scale it down first") from error
    except MemoryError as error:
        raise UserError(f"{where}: the image needs more memory than there is; scale it down first") from error
    except Exception as error:  # on damaged input Pillow's decoders raise errors of any kind
        plain = _without_extras(data)
        if plain != data:
            return open_image(plain, where)
        raise UserError(f"{where}: {_problem(data, error)}") from error
    if image.mode == "LAB":
        raise UserError(f"{where}: the colours are LAB; convert it to RGB first")
    return image


@cache
def _formats() -> tuple[str, ...]:
    """FORMATS that the installed Pillow can open."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _problem(data: bytes, error: Exception) -> str:
    """Why a file could not be decoded."""
    if kind := unsupported_kind(data):
        return f"an unsupported kind of JPEG ({kind}); convert it first"
    if isinstance(error, UnidentifiedImageError):
        if data.startswith(IMAGE_MAGICS) or data[4:12] in (b"ftypavif", b"ftypavis"):
            return "a damaged image (its header cannot be read)"
        begin = f"begins with {data[:12]!r}" if data else "is empty"
        return f"not an image in a supported format (see docs/data.md); the file {begin}"
    return f"a damaged image ({error})"


def _without_extras(data: bytes) -> bytes:
    """A PNG without metadata, of which Pillow refuses some, but for an intact EXIF rotation; other files unchanged."""
    if not data.startswith(PNG):
        return data
    kept, at = [PNG], len(PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind, checksum = data[at + 4 : at + 8], int.from_bytes(data[end - 4 : end], "big")
        if kind in PIXEL_CHUNKS or (kind == b"eXIf" and zlib.crc32(data[at + 4 : end - 4]) == checksum):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _open_jpeg(image: Image.Image, data: bytes) -> Image.Image:
    # Pillow fills the missing pixels of a cut JPEG with grey if an end marker follows; decode_jpeg refuses it
    pixels = decode_jpeg(data, 1 if image.mode == "L" else 3)
    complete = Image.fromarray(pixels[..., 0] if image.mode == "L" else pixels)
    complete.info, complete.format = image.info, image.format
    return complete


def to_rgb_or_grey(image: Image.Image, channels: int, background: Colour = WHITE) -> Image.Image:
    """The upright image in mode RGB (3 channels) or L (1), from any mode.

    Transparency is composited over `background`. 16-bit values are divided by 257. Floating-point values are taken as
    0 to 1 if none is larger, else as 0 to 255.
    """
    with suppress(Exception):  # unreadable EXIF data, of a readable image
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = (np.clip(np.asarray(image, dtype=np.int64), 0, 65535) + 128) // 257
        image = Image.fromarray(values.astype(np.uint8))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        values = np.rint(np.clip(values * (255 if values.max() <= 1 else 1), 0, 255))
        image = Image.fromarray(values.astype(np.uint8))
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image.convert("RGBA"))
    return image.convert("RGB" if channels == 3 else "L")


def fit(
    image: Image.Image, size: int, resize: Resize = "crop", filter_: Filter = "lanczos", background: Colour = WHITE
) -> Image.Image:
    """The image at size x size pixels, antialiased; unchanged if it has that size.

    crop: the central square, scaled. pad: the complete image, scaled, centred on `background`. stretch: the
    complete image, its aspect ratio changed.
    """
    width = height = size
    if resize == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    elif resize == "pad":
        width, height = (max(1, round(side * size / max(image.size))) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling[filter_.upper()])
    if width == height:
        return image
    canvas = Image.new("RGB", (size, size), background).convert(image.mode)
    canvas.paste(image, ((size - width) // 2, (size - height) // 2))
    return canvas


def encode(image: Image.Image, store: StoreFormat, quality: int = 95) -> tuple[str, bytes]:
    """File suffix and bytes of an RGB or L image. `quality`, 1 to 100, is that of the lossy formats, jpg and webp."""
    if store == "ppm":
        channels = len(image.getbands())
        return ("ppm" if channels == 3 else "pgm"), netpbm_header(*image.size, channels) + image.tobytes()
    buffer = io.BytesIO()
    subsampling = "4:4:4" if quality >= FULL_CHROMA_FROM else "4:2:0"
    jpeg = {"subsampling": subsampling, "optimize": True} if store == "jpg" else {}
    image.save(buffer, "JPEG" if store == "jpg" else store, quality=quality, **jpeg)
    return store, buffer.getvalue()


def netpbm_header(width: int, height: int, channels: int) -> bytes:
    """The bytes before the pixels of a .ppm (3 channels) or .pgm (1)."""
    return b"P%d\n%d %d\n255\n" % (6 if channels == 3 else 5, width, height)


def decode_into(data: bytes, suffix: str, out: NDArray[np.uint8], where: str) -> None:
    """Decodes one image file into `out`: uint8 (size, size, 1 or 3), C-contiguous.

    JPEG and netpbm images of exactly that size are decoded directly into the buffer, JPEG without the GIL. Any other is
    turned upright, composited over white, and fitted by `crop`. Raises UserError with `where` in front.
    """
    size, _, channels = out.shape
    header = netpbm_header(size, size, channels)
    if suffix in JPEG_SUFFIXES and plain_size(data) == (size, size):
        try:
            decode_jpeg(data, channels, out)
        except ValueError as error:
            raise UserError(f"{where}: {_problem(data, error)}") from error
    elif len(data) == len(header) + out.nbytes and data.startswith(header):
        out[:] = np.frombuffer(data, dtype=np.uint8, offset=len(header)).reshape(out.shape)
    else:
        image = fit(to_rgb_or_grey(open_image(data, where), channels), size)
        out[:] = np.asarray(image).reshape(out.shape)
