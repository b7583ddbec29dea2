"""The image files that are read, in folders, archives, tables and tars alike, and names for other files."""

OF_ONE_SUFFIX = ("BLP", "CUR", "DCX", "DDS", "DIB", "ICNS", "ICO", "MSP", "PCX", "PSD", "QOI", "SGI")  # their own name
# Pillow's name of a format -> suffixes of its files; a fixed list, so that an index does not depend on the build of
# Pillow. Without formats that hold only a stub for an image, or run a program to draw it (PDF, EPS). TGA comes last,
# because its files have no magic number.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "PPM": ("ppm", "pgm", "pbm", "pnm", "pfm"),
    "AVIF": ("avif", "avifs"),
    "BMP": ("bmp",),
    "GIF": ("gif",),
    "TIFF": ("tif", "tiff"),
    "JPEG2000": ("jp2", "j2k", "j2c", "jpc", "jpf", "jpx"),
    **{name: (name.lower(),) for name in OF_ONE_SUFFIX},
    "SUN": ("ras",),
    "XBM": ("xbm",),
    "XPM": ("xpm",),
    "TGA": ("tga", "icb", "vda", "vst"),
}
FIRST = ("jpg", "jpeg", "png", "webp", "ppm", "pgm")
IMAGE_SUFFIXES = (*FIRST, *(suffix for known in FORMATS.values() for suffix in known if suffix not in FIRST))
"""Of several images in one sample of a tar, the one whose suffix comes first here is used."""
JPEG_SUFFIXES = frozenset(FORMATS["JPEG"])
EXTENSIONS = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)


def kept_suffix(file_format: str | None, data: bytes) -> str:
    """The suffix for a file that was opened, by Pillow's name of its format."""
    if file_format == "PPM":
        return "pgm" if data[:2] == b"P5" else "ppm"
    return FORMATS["JPEG" if file_format in ("MPO", None) else file_format][0]


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its ending."""
    return name.lower().endswith(EXTENSIONS)


def ending_of(name: str) -> str:
    """What a file that is not used is counted as: '.txt', 'hidden' or 'without ending'."""
    last = name.rpartition("/")[2]
    _, dot, ending = last.rpartition(".")
    return "hidden" if last.startswith(".") else f".{ending.lower()}" if dot else "without ending"
