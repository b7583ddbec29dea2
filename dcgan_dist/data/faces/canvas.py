"""A square canvas that is painted in head units: smooth shapes, round strokes, soft shading.

The origin is the middle of the face, x to the right, y down, and the chin is 1.07 away. A canvas has no smooth edges:
paint larger than wanted and reduce.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]
Points = NDArray[np.float64]  # (n, 2), columns x and y

INK: Colour = (52, 38, 48)
WHITE: Colour = (255, 255, 255)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour `share` of the way from `a` to `b`."""
    red, green, blue = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return red, green, blue


def tone(colour: Colour, amount: float) -> Colour:
    """Lighter for a positive amount; darker for a negative one, and warmer, because mere black makes colours muddy."""
    if amount > 0:
        return mix(colour, WHITE, amount)
    red, green, blue = colour
    return round(red * (1 + 0.7 * amount)), round(green * (1 + amount)), round(blue * (1 + 0.8 * amount))


def points(*xy: tuple[float, float]) -> Points:
    """The corners of an outline."""
    return np.array(xy, dtype=np.float64)


def smooth(corners: Points, steps: int = 8) -> Points:
    """The closed Catmull-Rom curve through the corners."""
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (np.roll(corners, shift, axis=0)[:, None] for shift in (1, 0, -1, -2))
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    return (curve / 2).reshape(-1, 2)


def symmetric(*right: tuple[float, float]) -> Points:
    """The smooth closed curve whose right half passes through these points, from the top to the bottom or back."""
    half = points(*right)
    return smooth(np.concatenate([half, half[::-1] * (-1, 1)]))


_ANGLES = np.linspace(0, 2 * np.pi, 40, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


def ellipse(x: float, y: float, rx: float, ry: float) -> Points:
    """The ellipse around (x, y) with these half axes."""
    return _CIRCLE * (rx, ry) + (x, y)


def arc(x: float, y: float, half_width: float, sag: float) -> Points:
    """A curve, rounder than a parabola, with its ends at height y; its middle lies `sag` below them."""
    t = np.linspace(-1, 1, 13)
    return np.stack([x + half_width * t, y + sag * (1 - np.abs(t) ** 2.5)], axis=1)


@cache
def _ramp(pixels: int) -> Image.Image:
    """Light from the upper left: a mask that grows towards the lower right."""
    lower = Image.linear_gradient("L").resize((pixels, pixels))
    return ImageChops.add(lower, lower.transpose(Image.Transpose.TRANSPOSE), scale=2)


@cache
def _glow(pixels: int) -> Image.Image:
    """A mask that is strongest in the middle of the picture."""
    return ImageChops.invert(Image.radial_gradient("L")).resize((pixels, pixels))


class Canvas:
    """A square picture that is painted in head units."""

    def __init__(self, pixels: int, colour: Colour) -> None:
        self.pixels = pixels
        self.image = Image.new("RGB", (pixels, pixels), colour)
        self.image.paste(tone(colour, 0.55), mask=_glow(pixels))
        self.pen = ImageDraw.Draw(self.image)
        self.place(0.0, 0.0, 0.0, 1.0, 1.0)

    def place(self, x: float, y: float, tilt: float, width: float, height: float) -> None:
        """From now on paint with the head moved by (x, y) picture widths, turned by `tilt` radians, stretched."""
        unit = 0.285 * self.pixels
        cos, sin = np.cos(tilt), np.sin(tilt)
        self.matrix = unit * np.array([[cos * width, sin * width], [-sin * height, cos * height]])
        # the head turns about the neck, so its middle swings sideways
        neck = np.array([0.0, 1.0])
        self.origin = self.pixels * np.array([0.5 + x, 0.5 + y]) + unit * neck - neck @ self.matrix

    def _mask(self, outlines: Sequence[Points], box: Box) -> Image.Image:
        """What of the box (left, top, right, bottom; pixels) lies inside the outlines."""
        mask = Image.new("L", (box[2] - box[0], box[3] - box[1]))
        pen = ImageDraw.Draw(mask)
        for outline in outlines:
            pen.polygon((outline @ self.matrix + (self.origin - box[:2])).ravel().tolist(), fill=255)
        return mask

    def _box(self, outlines: Sequence[Points]) -> Box:
        """The part of the picture that the outlines can touch; masks of that size are quicker than whole ones."""
        corners = np.concatenate(outlines) @ self.matrix + self.origin
        left, top = np.clip(np.floor(corners.min(axis=0)), 0, self.pixels - 1)
        right, bottom = np.clip(np.ceil(corners.max(axis=0)) + 1, 1, self.pixels)
        return int(left), int(top), int(right), int(bottom)

    def fill(self, outline: Points, colour: Colour) -> None:
        """A shape of one colour."""
        self.pen.polygon((outline @ self.matrix + self.origin).ravel().tolist(), fill=colour)

    def fill_within(self, border: Points, outlines: Sequence[Points], colour: Colour) -> None:
        """Shapes of which only the part inside `border` shows."""
        box = self._box([border])
        self.image.paste(colour, box, ImageChops.multiply(self._mask([border], box), self._mask(outlines, box)))

    def shaded(self, outlines: Sequence[Points], light: Colour, dark: Colour) -> None:
        """Shapes, as one, that darken softly towards the lower right."""
        box = self._box(outlines)
        for outline in outlines:
            self.fill(outline, light)
        self.image.paste(dark, box, ImageChops.multiply(self._mask(outlines, box), _ramp(self.pixels).crop(box)))

    def stroke(self, line: Points, width: float, colour: Colour) -> None:
        """A line with round ends."""
        along = np.gradient(line, axis=0)
        across = along[:, ::-1] * (-1, 1) * (width / 2 / np.hypot(along[:, :1], along[:, 1:]))
        self.fill(np.concatenate([line + across, (line - across)[::-1]]), colour)
        for x, y in (line[0], line[-1]):
            self.fill(ellipse(x, y, width / 2, width / 2), colour)

    def ring(self, outline: Points, width: float, colour: Colour) -> None:
        """A closed line."""
        self.stroke(np.concatenate([outline, outline[:2]]), width, colour)
