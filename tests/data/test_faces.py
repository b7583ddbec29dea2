import dataclasses
import subprocess
import sys
from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import pytest

from dcgan_dist.data.faces import art as face_art
from dcgan_dist.data.faces import dataset as faces
from dcgan_dist.data.faces import hair as face_hair
from dcgan_dist.data.faces.art import Factors, Jitter, paint

PLAIN = Factors(
    skin="light",
    hair_colour="brown",
    hair_shape="short",
    eyes="brown",
    mouth="smile",
    glasses="none",
    background="sky",
    shirt="red",
)


def pixels(image):
    return np.asarray(image).astype(int)


# what a face shows


def test_every_name_has_a_probability_and_a_picture():
    hints = get_type_hints(Factors)
    assert list(hints) == list(faces.DISTRIBUTION)
    for name, table in faces.DISTRIBUTION.items():
        assert list(table) == list(get_args(hints[name]))
        assert sum(table.values()) == pytest.approx(1)
        assert min(table.values()) > 0
    drawn = {
        face_art.Skin: face_art.SKIN,
        face_art.HairColour: face_art.HAIR_COLOUR,
        face_hair.HairShape: face_hair.HAIR,
        face_art.Eyes: face_art.EYES,
        face_art.Mouth: face_art.MOUTH,
        face_art.Background: face_art.BACKGROUND,
        face_art.Shirt: face_art.SHIRT,
    }
    for names, table in drawn.items():
        assert set(get_args(names)) == set(table)
    assert set(get_args(face_art.Glasses)) == {"none", *face_art.FRAME} == {"none", *face_art.LENS}


def test_the_factors_follow_their_distribution_and_are_independent():
    count = 20_000
    drawn = [dataclasses.asdict(faces.factors(5, index)) for index in range(count)]

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
    rows = np.array([dataclasses.astuple(faces.jitter(1, index)) for index in range(2_000)])
    assert rows.shape[1] == len(dataclasses.fields(Jitter))
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
    image = faces.draw(0, 3, size)
    assert (image.mode, image.size) == ("RGB", (size, size))
    assert image.tobytes() == faces.draw(0, 3, size).tobytes()
    assert image.tobytes() != faces.draw(0, 4, size).tobytes()
    assert image.tobytes() != faces.draw(1, 3, size).tobytes()


def test_another_process_paints_the_same_picture():
    code = (
        "from dcgan_dist.data.faces.dataset import draw; import sys; sys.stdout.buffer.write(draw(7, 11, 64).tobytes())"
    )
    painted = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert painted == faces.draw(7, 11, 64).tobytes()


def test_a_face_looks_the_same_at_every_size():
    large = faces.draw(0, 8, 256)
    for size in (32, 64, 128):
        difference = np.abs(pixels(large.reduce(256 // size)) - pixels(faces.draw(0, 8, size)))
        assert difference.mean() < 4


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("name", list(faces.DISTRIBUTION))
def test_every_value_of_a_factor_is_plainly_visible(name, size):
    """At least 1 % of the pixels differ by more than a tenth of the range between any two values."""
    for glasses in ("none", "round"):
        face = replace(PLAIN, glasses=glasses)
        images = {
            value: pixels(paint(replace(face, **{name: value}), Jitter(), size)) for value in faces.DISTRIBUTION[name]
        }
        values = list(images)
        for position, one in enumerate(values):
            for two in values[:position]:
                changed = (np.abs(images[one] - images[two]).max(axis=-1) > 25).mean()
                assert changed > 0.01, (one, two, changed)


@pytest.mark.parametrize("hair", list(face_hair.HAIR))
def test_the_hair_colour_is_visible_with_every_shape_of_hair(hair):
    dark, red = (pixels(paint(replace(PLAIN, hair_shape=hair, hair_colour=c), Jitter(), 32)) for c in ("black", "pink"))
    assert (np.abs(dark - red).max(axis=-1) > 25).mean() > 0.02


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(Jitter)])
def test_every_jitter_moves_the_picture_a_little(name):
    low, middle, high = (pixels(paint(PLAIN, Jitter(**{name: value}), 128)) for value in (-1.0, 0.0, 1.0))
    assert 0 < np.abs(low - middle).mean() < 20
    assert 0 < np.abs(high - middle).mean() < 20


def test_edges_are_smooth():
    """The black glasses on a pale face: between the two colours lie pixels of many values."""
    image = paint(replace(PLAIN, glasses="round", skin="fair"), Jitter(), 64)
    assert len(np.unique(pixels(image)[24:40, :, 0])) > 60
