import os

import numpy as np
import pytest
from PIL import Image

from dcgan_dist.run.grid import grid, save_png


def tiles(count, channels=3, height=4, width=6):
    return np.random.default_rng(0).integers(0, 255, (count, channels, height, width), dtype=np.uint8)


@pytest.mark.parametrize(("count", "columns", "shape"), [(1, 1, 1), (5, 3, 2), (9, 3, 3), (10, 4, 3), (64, 8, 8)])
def test_near_square_with_white_between(count, columns, shape):
    images = tiles(count)
    picture = grid(images)
    assert picture.shape == (shape * (4 + 2) + 2, columns * (6 + 2) + 2, 3)
    left = picture.copy()
    for number, tile in enumerate(images):
        row, column = number // columns, number % columns
        place = np.s_[2 + 6 * row : 6 + 6 * row, 2 + 8 * column : 8 + 8 * column]
        np.testing.assert_array_equal(picture[place], np.moveaxis(tile, 0, -1))
        left[place] = 255
    assert (left == 255).all()


def test_without_padding_pictures_touch():
    images = tiles(2)
    np.testing.assert_array_equal(grid(images, pad=0), np.concatenate(np.moveaxis(images, 1, -1), axis=1))


def test_grey_pictures_become_grey_colours():
    picture = grid(tiles(3, channels=1))
    assert (picture == picture[..., :1]).all()
    np.testing.assert_array_equal(picture[2:6, 2:8, 0], tiles(3, channels=1)[0, 0])


@pytest.mark.parametrize("images", [np.zeros((2, 3, 4, 4)), tiles(0), tiles(2, channels=4), tiles(2)[0]])
def test_other_arrays_are_refused(images):
    with pytest.raises(ValueError, match=r"uint8 images of shape \(n, 1 or 3, h, w\), not "):
        grid(images)


def test_a_png_is_the_same_each_time_and_complete(tmp_path, monkeypatch):
    picture = grid(tiles(7))
    save_png(picture, tmp_path / "a.png")
    save_png(picture, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)

    def full(_):
        raise OSError(28, "No space left on device")

    before = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Exception, match="No space left on device"):
        save_png(grid(tiles(1)), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
