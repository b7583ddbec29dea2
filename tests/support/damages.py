"""Everything that happens to shards, done to the bytes of an intact one of IMAGES labelled images."""

import io
import tarfile

import numpy as np
from support.shards import encoded, write_ours, write_tar

IMAGES = 12
HTML = b"<!DOCTYPE html><html><head><title>403 Forbidden</title></head></html>\n"


def ours_jpg(path):
    return write_ours(path, IMAGES, "jpg", label=lambda number: number % 5)


def ours_ppm(path):
    return write_ours(path, IMAGES, "ppm", label=lambda number: number % 5)


def foreign(path):
    rows = [(f"train/{number:05}", number) for number in range(IMAGES)]
    pairs = [[(f"{key}.jpg", encoded(n, "jpg")), (f"{key}.cls", b"%d" % (n % 5))] for key, n in rows]
    return write_tar(path, [member for pair in pairs for member in pair])


MAKERS = [ours_jpg, ours_ppm, foreign]


def members(content):
    """Where the header and the data of each member begin, and where its blocks end; two for each image."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [(info.offset, info.offset_data, info.offset_data + -(-info.size // 512) * 512) for info in tar]


def images(content):
    """The bytes of each sample, with its headers and its label."""
    places = members(content)
    return [content[places[2 * n][0] : places[2 * n + 1][2]] for n in range(IMAGES)]


def replaced(content, start, new):
    return content[:start] + new + content[start + len(new) :]


def flipped(content, place):
    return replaced(content, place, bytes([content[place] ^ 2]))


# the bytes of an intact shard -> of the damaged one; members 10 and 11 are the image and the label of sample 5
DAMAGES = {
    "cut in the first image": lambda c: c[: members(c)[0][1] + 100],
    "cut in an image": lambda c: c[: members(c)[10][1] + 100],
    "cut in the padding of an image": lambda c: c[: members(c)[10][2] - 1],
    "cut in a header": lambda c: c[: members(c)[10][0] + 300],
    "cut in the first header": lambda c: c[:40],
    "cut after an image": lambda c: c[: members(c)[11][0]],
    "cut in a label": lambda c: c[: members(c)[11][1]],
    "cut after a sample": lambda c: c[: members(c)[10][0]],
    "cut after the last sample": lambda c: c[: members(c)[23][2]],
    "flipped header of an image": lambda c: flipped(c, members(c)[10][0] + 4),
    "flipped header of a label": lambda c: flipped(c, members(c)[11][0] + 4),
    "flipped first header": lambda c: flipped(c, 4),
    "zeroed header": lambda c: replaced(c, members(c)[10][0], bytes(512)),
    "zeroed stretch": lambda c: replaced(c, members(c)[10][0] - 512, bytes(2048)),
    "lost block": lambda c: c[: members(c)[10][1]] + c[members(c)[10][1] + 512 :],
    "lost bytes": lambda c: c[: members(c)[10][1] + 30] + c[members(c)[10][1] + 130 :],
    "lost beginning": lambda c: c[members(c)[10][0] + 100 :],
    "flipped start of an image": lambda c: flipped(c, members(c)[10][1]),
}
NOTHING_LEFT = {
    "empty": lambda c: b"",
    "web page": lambda c: HTML,
    "long web page": lambda c: HTML * 500,
    "zeros": lambda c: bytes(len(c)),
    "noise": lambda c: np.random.default_rng(0).bytes(len(c)),
    "gzip": lambda c: b"\x1f\x8b\x08\x00" + c,
}


def index_at(content):
    """First byte of the index's tar header in a shard of ours."""
    return members(content)[24][0]


OF_THE_INDEX = {
    "flipped in its header": lambda c: flipped(c, index_at(c) + 4),
    "zeroed header": lambda c: replaced(c, index_at(c), bytes(512)),
    "flipped in the arrays": lambda c: flipped(c, index_at(c) + 512 + 300),
    "flipped in the footer": lambda c: flipped(c, len(c) - 1024 - 20),
    "flipped in the magic": lambda c: flipped(c, len(c) - 1024 - 56),
    "flipped in the end mark": lambda c: flipped(c, len(c) - 3),
    "cut in the end mark": lambda c: c[:-1000],
    "half an end mark": lambda c: c[:-512],
    "cut in the arrays": lambda c: c[: index_at(c) + 700],
    "something behind it": lambda c: c + b"x" * 700,
}
