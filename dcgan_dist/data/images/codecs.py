"""Encoded images to pixels and back: any image file to 8-bit RGB or grey of one size.

Colour profiles are ignored, as everywhere in the field; of animations and multi-page files the first picture counts.
"""

import io
import warnings
import zlib
from collections.abc import Callable
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
Size = tuple[int, int]  # width, height

WHITE: Colour = (255, 255, 255)
FULL_CHROMA_FROM = 90  # JPEG quality
PNG = b"\x89PNG\r\n\x1a\n"
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
IMAGE_MAGICS = (PNG, b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")  # of files that must be what they say

Image.MAX_IMAGE_PIXELS = 2**28  # 16,384 x 16,384, which take 1 GiB; Pillow's own limit is a third of it

# turned on once and for all, because a filter set around each call would not be safe with decoding threads
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def open_image(data: bytes, where: str) -> Image.Image:
    """Decodes a complete image file. Its EXIF rotation is left to to_rgb_or_grey.

    Raises UserError with `where` in front when the data are damaged, cut, of a format not in FORMATS, or more than
    Image.MAX_IMAGE_PIXELS pixels. What is wrong in a file beside its pixels is no damage.
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
    """Those that this machine's Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _problem(data: bytes, error: Exception) -> str:
    """What is wrong with a file that could not be decoded."""
    if kind := unsupported_kind(data):
        return f"an unsupported kind of JPEG ({kind}); convert it first"
    if isinstance(error, UnidentifiedImageError):
        if data.startswith(IMAGE_MAGICS) or data[4:12] in (b"ftypavif", b"ftypavis"):
            return "a damaged image (its header cannot be read)"
        begin = f"begins with {data[:12]!r}" if data else "is empty"
        return f"not an image in a supported format (see docs/data.md); the file {begin}"
    return f"a damaged image ({error})"


def _without_extras(data: bytes) -> bytes:
    """A PNG without the chunks that say nothing of its pixels, of which Pillow refuses some; other files as they are.

    That of the rotation stays, if its checksum is right.
    """
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
    # Pillow fills what is missing of a cut JPEG with grey if an end marker follows; simplejpeg refuses it
    pixels = decode_jpeg(data, 1 if image.mode == "L" else 3)
    complete = Image.fromarray(pixels[..., 0] if image.mode == "L" else pixels)
    complete.info, complete.format = image.info, image.format
    return complete


def to_rgb_or_grey(image: Image.Image, channels: int, background: Colour = WHITE) -> Image.Image:
    """The upright image in mode RGB (3 channels) or L (1), from any mode.

    Transparency is laid over `background`. 16-bit values are divided by 257. Floating-point values run from 0 to 1
    where none is larger, else from 0 to 255.
    """
    image = _upright(image)
    if image.mode.startswith("I"):
        image = _from_array((np.clip(np.asarray(image, dtype=np.int64), 0, 65535) + 128) // 257)
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        image = _from_array(np.rint(np.clip(values * (255 if values.max() <= 1 else 1), 0, 255)))
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image.convert("RGBA"))
    return image.convert("RGB" if channels == 3 else "L")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF data that cannot be read say nothing about the image, which can
        return image


def _from_array(values: NDArray[np.integer | np.floating]) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8))


def fit(
    image: Image.Image, size: int, resize: Resize = "crop", filter_: Filter = "lanczos", background: Colour = WHITE
) -> Image.Image:
    """The image at size x size pixels, antialiased; one of that size comes back as it is.

    crop: the central square, scaled. pad: the complete image, scaled, centred on `background`. stretch: the
    complete image, its aspect ratio changed.
    """
    part, shape = RESIZES[resize](image, size)
    scaled = part if part.size == shape else part.resize(shape, FILTERS[filter_])
    if shape == (size, size):
        return scaled
    canvas = Image.new("RGB", (size, size), background).convert(image.mode)
    canvas.paste(scaled, ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return canvas


def _crop(image: Image.Image, size: int) -> tuple[Image.Image, Size]:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)), (size, size)


def _pad(image: Image.Image, size: int) -> tuple[Image.Image, Size]:
    longest = max(image.size)
    return image, (max(1, round(image.width * size / longest)), max(1, round(image.height * size / longest)))


def _stretch(image: Image.Image, size: int) -> tuple[Image.Image, Size]:
    return image, (size, size)


def encode(image: Image.Image, store: StoreFormat, quality: int = 95) -> tuple[str, bytes]:
    """File suffix and bytes of an RGB or L image. `quality`, 1 to 100, matters to jpg and webp, the lossy ones."""
    return STORES[store](image, quality)


def _encode_jpg(image: Image.Image, quality: int) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    subsampling = "4:4:4" if quality >= FULL_CHROMA_FROM else "4:2:0"
    image.save(buffer, "JPEG", quality=quality, subsampling=subsampling, optimize=True)
    return "jpg", buffer.getvalue()


def _encode_png(image: Image.Image, _quality: int) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "png", buffer.getvalue()


def _encode_webp(image: Image.Image, quality: int) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return "webp", buffer.getvalue()


def _encode_ppm(image: Image.Image, _quality: int) -> tuple[str, bytes]:
    channels = len(image.getbands())
    return ("ppm" if channels == 3 else "pgm"), netpbm_header(image.width, image.height, channels) + image.tobytes()


def netpbm_header(width: int, height: int, channels: int) -> bytes:
    """What stands in front of the pixels in a .ppm (3 channels) or .pgm (1)."""
    return b"P%d\n%d %d\n255\n" % (6 if channels == 3 else 5, width, height)


def decode_into(data: bytes, suffix: str, out: NDArray[np.uint8], where: str) -> None:
    """Decodes one image file into `out`: uint8 (size, size, 1 or 3), C-contiguous.

    JPEG and netpbm images of that very size go straight into the buffer, JPEG without the GIL; anything else is turned
    upright, laid over white, and fitted by `crop`. Raises UserError with `where` in front; never delivers a part.
    """
    done = _jpeg_into(data, out, where) if suffix in JPEG_SUFFIXES else _netpbm_into(data, out)
    if not done:
        size, _, channels = out.shape
        image = fit(to_rgb_or_grey(open_image(data, where), channels), size)
        out[:] = np.asarray(image).reshape(out.shape)


def _jpeg_into(data: bytes, out: NDArray[np.uint8], where: str) -> bool:
    if plain_size(data) != out.shape[:2]:
        return False
    try:
        decode_jpeg(data, out.shape[2], out)
    except ValueError as error:
        raise UserError(f"{where}: {_problem(data, error)}") from error
    return True


def _netpbm_into(data: bytes, out: NDArray[np.uint8]) -> bool:
    height, width, channels = out.shape
    header = netpbm_header(width, height, channels)
    if len(data) != len(header) + out.nbytes or not data.startswith(header):
        return False
    out[:] = np.frombuffer(data, dtype=np.uint8, offset=len(header)).reshape(out.shape)
    return True


# what of the image is used, and the width and height that it gets
RESIZES: dict[Resize, Callable[[Image.Image, int], tuple[Image.Image, Size]]] = {
    "crop": _crop,
    "pad": _pad,
    "stretch": _stretch,
}
FILTERS: dict[Filter, Image.Resampling] = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
}
STORES: dict[StoreFormat, Callable[[Image.Image, int], tuple[str, bytes]]] = {
    "jpg": _encode_jpg,
    "png": _encode_png,
    "webp": _encode_webp,
    "ppm": _encode_ppm,
}
