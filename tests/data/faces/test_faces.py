import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dcgan_dist.data.faces import art as face_art
from dcgan_dist.data.faces import dataset as faces
from dcgan_dist.data.faces.art import STILL, paint

PLAIN = {
    "skin": "light",
    "hair_colour": "brown",
    "hair_shape": "short",
    "eyes": "brown",
    "mouth": "smile",
    "glasses": "none",
    "background": "sky",
    "shirt": "red",
}
GOLDEN = (
    1,
    "892d4fe12c0eb9e83a0070c9c4784b2f227fcec6c9e7f3ad2ff90c6f51ba78ae",
    "6d6fd0516a2f8618b704befc83235796e160193bfd83f1998d5c37e87e5a2de3",
)


def pixels(image):
    return np.asarray(image).astype(int)


# what a face shows


def test_every_value_has_a_probability_and_every_name_a_meaning():
    for table in faces.DISTRIBUTION.values():
        assert sum(table.values()) == pytest.approx(1)
        assert min(table.values()) > 0
    drawing = face_art.DRAWING
    known = {*drawing["layers"], *drawing["shapes"], *drawing["colours"]}
    templates = re.findall(r'"(\{(\w+)\} [\w ]+)"', (Path(face_art.__file__).parent / "faces.toml").read_text())
    assert {factor for _, factor in templates} == faces.DISTRIBUTION.keys()
    names = {
        template.format(**{factor: value}) for template, factor in templates for value in faces.DISTRIBUTION[factor]
    }
    assert names - known == {"happy iris", "none frame"}  # closed eyes show no iris


def test_the_pictures_and_the_shards_are_those_of_their_version(tmp_path):
    """Where they change on purpose, VERSION goes up with these digests."""
    painted = hashlib.sha256()
    for number in range(100):
        painted.update(faces.draw_face(number % 3, 1_000 * number, (32, 48, 64, 96, 256)[number % 5]).tobytes())
    (shard,) = faces.ensure(tmp_path, size=32, channels=1, count=64, seed=5)
    assert (faces.FACES_VERSION, painted.hexdigest(), hashlib.sha256(shard.read_bytes()).hexdigest()) == GOLDEN


def test_the_factors_follow_their_distribution_and_are_independent():
    count = 20_000
    drawn = [faces.factors(5, index) for index in range(count)]

    def distance(observed, expected):
        """Pearson's chi-square in standard deviations above its mean (degrees of freedom k - 1)."""
        observed, expected = np.array(observed), count * np.array(expected)
        freedom = len(expected) - 1
        return (((observed - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)

    tables = list(faces.DISTRIBUTION.items())
    for name, table in tables:
        values = [row[name] for row in drawn]
        assert distance([values.count(value) for value in table], list(table.values())) < 4, name
    for (one, first), (two, second) in zip(tables, tables[1:] + tables[:1], strict=True):
        pairs = [(row[one], row[two]) for row in drawn]
        joint = {(a, b): p * q for a, p in first.items() for b, q in second.items()}
        assert distance([pairs.count(pair) for pair in joint], list(joint.values())) < 4, (one, two)


def test_the_jitter_fills_its_range_evenly():
    rows = np.array([list(faces.jitter(1, index).values()) for index in range(2_000)])
    assert rows.shape[1] == len(STILL)
    assert np.abs(rows).max() < 1
    assert np.abs(rows.mean(axis=0)).max() < 0.07
    assert np.abs(rows.var(axis=0) - 1 / 3).max() < 0.04
    assert np.abs(np.corrcoef(rows.T) - np.eye(rows.shape[1])).max() < 0.11


def test_any_index_is_reached_at_once():
    assert faces.factors(0, 10**15) == faces.factors(0, 10**15)
    assert faces.jitter(0, 10**15) != faces.jitter(0, 10**15 + 1)


# the picture


@pytest.mark.parametrize("size", [32, 48, 64, 96, 128, 192, 256])
def test_a_picture_is_a_function_of_seed_and_index(size):
    image = faces.draw_face(0, 3, size)
    assert (image.mode, image.size) == ("RGB", (size, size))
    assert image.tobytes() == faces.draw_face(0, 3, size).tobytes()
    assert image.tobytes() != faces.draw_face(0, 4, size).tobytes()
    assert image.tobytes() != faces.draw_face(1, 3, size).tobytes()


def test_another_process_paints_the_same_picture():
    code = (
        "import sys; from dcgan_dist.data.faces.dataset import draw_face; "
        "sys.stdout.buffer.write(draw_face(7, 11, 64).tobytes())"
    )
    painted = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert painted == faces.draw_face(7, 11, 64).tobytes()


def test_a_face_looks_the_same_at_every_size():
    large = faces.draw_face(0, 8, 256)
    for size in (32, 64, 128):
        difference = np.abs(pixels(large.reduce(256 // size)) - pixels(faces.draw_face(0, 8, size)))
        assert difference.mean() < 4


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("name", list(faces.DISTRIBUTION))
def test_every_value_of_a_factor_is_plainly_visible(name, size):
    """At least 1 % of the pixels differ by more than a tenth of the range between any two values."""
    for glasses in ("none", "round"):
        face = PLAIN | {"glasses": glasses}
        images = {value: pixels(paint(face | {name: value}, STILL, size)) for value in faces.DISTRIBUTION[name]}
        values = list(images)
        for position, one in enumerate(values):
            for two in values[:position]:
                changed = (np.abs(images[one] - images[two]).max(axis=-1) > 25).mean()
                assert changed > 0.01, (one, two, changed)


@pytest.mark.parametrize("hair", list(faces.DISTRIBUTION["hair_shape"]))
def test_the_hair_colour_is_visible_with_every_shape_of_hair(hair):
    dark, red = (pixels(paint(PLAIN | {"hair_shape": hair, "hair_colour": c}, STILL, 32)) for c in ("black", "pink"))
    assert (np.abs(dark - red).max(axis=-1) > 25).mean() > 0.02


@pytest.mark.parametrize("name", list(STILL))
def test_every_jitter_moves_the_picture_a_little(name):
    low, middle, high = (pixels(paint(PLAIN, STILL | {name: value}, 128)) for value in (-1.0, 0.0, 1.0))
    assert 0 < np.abs(low - middle).mean() < 20
    assert 0 < np.abs(high - middle).mean() < 20


def test_edges_are_smooth():
    """The black glasses on a pale face: between the two colours lie pixels of many values."""
    image = paint(PLAIN | {"glasses": "round", "skin": "fair"}, STILL, 64)
    assert len(np.unique(pixels(image)[24:40, :, 0])) > 60
