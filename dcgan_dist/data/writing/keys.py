"""The keys of samples: the names of their files, made distinct without keeping them all."""

import os
import re

import numpy as np
import xxhash

from dcgan_dist.data.sources import Images

KEY_LENGTH = 80  # characters; with number and suffix it fits into the name field of a tar header


def plain_key(name: str) -> str:
    """The last 80 characters of a name before its extension, with _ for all but letters, digits and -."""
    return re.sub(r"[^\w-]", "_", os.path.splitext(name)[0][-KEY_LENGTH:])  # noqa: PTH122, a Path takes four times as long


def key_digits(images: Images) -> int:
    """Digits of the number that every key ends with; 0 when the plain keys of all images are distinct.

    Distinct within a shard is not enough: where one shard ends and another begins with the same key, older versions of
    webdataset take the two samples for one. Needs 8 bytes for each image.
    """
    hashes = np.fromiter(
        (xxhash.xxh3_64_intdigest(plain_key(name).encode()) for name in images.names()), np.uint64, len(images)
    )
    hashes.sort()
    return len(str(len(images) - 1)) if (hashes[1:] == hashes[:-1]).any() else 0


def sample_key(name: str, number: int, digits: int) -> str:
    """The key of an image by its name and its number in the source."""
    return f"{plain_key(name)}-{number:0{digits}}" if digits else plain_key(name)
