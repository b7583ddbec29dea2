"""Draws faces.toml: looks up its numbers, colours and outlines, and paints its layers in their order.

A picture is a pure function of factors (its content) and jitter (its position and proportions), so two pictures can
differ in one factor only. Coordinates are in head units: the origin is the middle of the face, x to the right, y down,
and the distance to the chin is 1.07. The canvas is larger than the picture and reduced to it for smooth edges.
"""

import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

Factors = dict[str, str]  # the value of each factor
Jitter = dict[str, float]  # continuous variation: every number in [-1, 1], 0 is the middle of its range
Colour = tuple[int, ...]  # red, green, blue
Box = tuple[int, int, int, int]  # left, top, right, bottom, pixels
Points = NDArray[np.float64]  # (n, 2), columns x and y

DRAWING: dict[str, Any] = tomllib.loads(Path(__file__).with_name("faces.toml").read_text(encoding="utf-8"))
STILL: Jitter = dict.fromkeys(DRAWING["jitter"], 0.0)


def paint(factors: Factors, jitter: Jitter, size: int) -> Image.Image:
    """The picture of a face, RGB, size x size pixels (32 to 256)."""
    scale = max(3, round(256 / size))
    face = _Face(factors, jitter)
    canvas = _Canvas(size * scale, face.colour("background"))
    face.paint("picture", canvas)
    return canvas.image.reduce(scale)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour `share` of the way from `a` to `b`."""
    return tuple(round(p + (q - p) * share) for p, q in zip(a, b, strict=True))


def tone(colour: Colour, amount: float) -> Colour:
    """Lighter for a positive amount; darker and warmer for a negative one, because adding black makes colours muddy."""
    if amount > 0:
        return mix(colour, (255, 255, 255), amount)
    return tuple(round(part * (1 + share * amount)) for part, share in zip(colour, (0.7, 1, 0.8), strict=True))


def corners(*xy: Sequence[float]) -> Points:
    """Points, to be joined by straight lines."""
    return np.array(xy, dtype=np.float64)


def smooth(*xy: Sequence[float]) -> Points:
    """The closed Catmull-Rom curve through the points."""
    t = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (np.roll(corners(*xy), shift, axis=0)[:, None] for shift in (1, 0, -1, -2))
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    return (curve / 2).reshape(-1, 2)


def symmetric(*right: Sequence[float]) -> Points:
    """The smooth closed curve whose right half passes through these points, from top to bottom or back."""
    half = corners(*right)
    return smooth(*half, *half[::-1] * (-1, 1))


_ANGLES = np.linspace(0, 2 * np.pi, 40, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


def ellipse(x: float, y: float, rx: float, ry: float) -> Points:
    """The ellipse around (x, y) with these half axes."""
    return _CIRCLE * (rx, ry) + (x, y)


def arc(x: float, y: float, half_width: float, sag: float, slant: float = 0.0) -> Points:
    """A curve, rounder than a parabola: its middle lies `sag` below its ends, the right end `slant` below y."""
    t = np.linspace(-1, 1, 13)
    return np.stack([x + half_width * t, y + sag * (1 - np.abs(t) ** 2.5) + slant * t], axis=1)


def arc_ends(x: float, y: float, half_width: float, sag: float) -> Points:
    """The ends of an arc and the points next to them: teeth in an open mouth."""
    return arc(x, y, half_width, sag)[[0, 1, 11, 12]]


CURVES: dict[str, Any] = {kind.__name__: kind for kind in (corners, smooth, symmetric, ellipse, arc, arc_ends)}
# the named shapes, as outlines if nothing in them varies
SHAPES: dict[str, Any] = {
    name: CURVES[shape[0]](*shape[1:]) if isinstance(shape, list) else shape
    for name, shape in DRAWING["shapes"].items()
}


class _Face:
    """The numbers, colours and outlines of one face."""

    def __init__(self, factors: Factors, jitter: Jitter) -> None:
        self._factors, self._values, self._colours = factors, jitter, dict[str, Colour]()
        self._values = jitter | {"darkness": (255 - self.colour("skin")[0]) / 120}

    def paint(self, name: str, canvas: "_Canvas") -> None:
        """Paints a list of layers."""
        for layer in DRAWING["layers"][name.format(**self._factors)]:
            match layer:
                case {"layers": others}:
                    self.paint(others, canvas)
                case {"place": numbers}:
                    canvas.place(*map(self.number, numbers))
                case {"fill": colour}:
                    within = self.outlines(layer["within"]) if "within" in layer else []
                    canvas.fill(self.outlines(layer), self.colour(colour), within)
                case {"light": light, "dark": dark}:
                    canvas.shade(self.outlines(layer), self.colour(light), self.colour(dark))
                case {"stroke": colour, "width": width}:
                    canvas.stroke(self.outlines(layer), width, self.colour(colour))

    def number(self, text: Any) -> Any:
        """From a name, or from "0.42 ± 0.025 eye_gap"; returns anything but text unchanged."""
        if not isinstance(text, str):
            return text
        middle, _, reach, name = DRAWING["numbers"].get(text, text).split()
        return float(middle) + float(reach) * self._values[name]

    def colour(self, spec: Any) -> Colour:
        """From a name, from red, green and blue, or from a mixture."""
        if isinstance(spec, str):
            if spec not in self._colours:
                self._colours[spec] = self.colour(DRAWING["colours"][spec.format(**self._factors)])
            return self._colours[spec]
        match spec:
            case [int(), *_]:
                return tuple(spec)
            case [colour, amount]:
                return tone(self.colour(colour), self.number(amount))
        return mix(self.colour(spec[0]), self.colour(spec[1]), self.number(spec[2]))

    def outlines(self, shape: Any) -> list[Points]:
        """From a name, from a kind with its numbers, or from a table of shapes."""
        if isinstance(shape, str):
            shape = SHAPES[shape.format(**self._factors)]
        if isinstance(shape, np.ndarray):
            return [shape]
        if isinstance(shape, list):
            return [CURVES[shape[0]](*map(self.number, shape[1:]))]
        found = [outline for each in shape.get("shapes", ()) for outline in self.outlines(each)]
        if "scale" in shape or "at" in shape:
            scale, at = self.number(shape.get("scale", 1)), [*map(self.number, shape.get("at", (0, 0)))]
            found = [outline * scale + at for outline in found]
        if "both" in shape:
            found += [outline * (-1, 1) for outline in found]
        if "offset" in shape:
            offset = [*map(self.number, shape["offset"])]
            found = [outline + offset for outline in found]
        return [np.concatenate([outline, outline[:2]]) for outline in found] if "closed" in shape else found


@cache
def _masks(pixels: int) -> tuple[Image.Image, Image.Image]:
    """A glow in the middle of the picture; and a ramp that grows from the upper left to the lower right."""
    glow = ImageChops.invert(Image.radial_gradient("L")).resize((pixels, pixels))
    lower = Image.linear_gradient("L").resize((pixels, pixels))
    return glow, ImageChops.add(lower, lower.transpose(Image.Transpose.TRANSPOSE), scale=2)


class _Canvas:
    """A square picture, painted in head units."""

    def __init__(self, pixels: int, colour: Colour) -> None:
        self.pixels = pixels
        self.image = Image.new("RGB", (pixels, pixels), colour)
        glow, self._ramp = _masks(pixels)
        self.image.paste(tone(colour, 0.55), mask=glow)
        self.pen = ImageDraw.Draw(self.image)

    def place(self, x: float, y: float, tilt: float, width: float, height: float) -> None:
        """Moves the head by (x, y) picture widths, turns it by `tilt` radians, and stretches it."""
        unit = 0.285 * self.pixels
        cos, sin = np.cos(tilt), np.sin(tilt)
        self.matrix = unit * np.array([[cos * width, sin * width], [-sin * height, cos * height]])
        # the head turns about the neck, at (0, 1), so its middle swings sideways
        self.origin = self.pixels * np.array([0.5 + x, 0.5 + y]) + (0, unit) - self.matrix[1]

    def _mask(self, outlines: Sequence[Points], box: Box | None = None) -> tuple[Image.Image, Box]:
        """The area inside the outlines within a box; None: within their bounding box, because a small mask is fast."""
        turned = [outline @ self.matrix for outline in outlines]
        if box is None:
            xy = np.concatenate(turned) + self.origin
            left, top = np.clip(np.floor(xy.min(axis=0)), 0, self.pixels - 1).astype(int).tolist()
            right, bottom = np.clip(np.ceil(xy.max(axis=0)) + 1, 1, self.pixels).astype(int).tolist()
            box = left, top, right, bottom
        mask = Image.new("L", (box[2] - box[0], box[3] - box[1]))
        pen = ImageDraw.Draw(mask)
        for outline in turned:
            pen.polygon((outline + (self.origin - box[:2])).ravel().tolist(), fill=255)
        return mask, box

    def fill(self, outlines: Sequence[Points], colour: Colour, within: Sequence[Points] = ()) -> None:
        """Shapes of one colour; with `within`, only their parts in that shape."""
        if within:
            border, box = self._mask(within)
            self.image.paste(colour, box, ImageChops.multiply(border, self._mask(outlines, box)[0]))
        else:
            for outline in outlines:
                self.pen.polygon((outline @ self.matrix + self.origin).ravel().tolist(), fill=colour)

    def shade(self, outlines: Sequence[Points], light: Colour, dark: Colour) -> None:
        """Shapes, as one, that darken softly towards the lower right."""
        if outlines:
            self.fill(outlines, light)
            mask, box = self._mask(outlines)
            self.image.paste(dark, box, ImageChops.multiply(mask, self._ramp.crop(box)))

    def stroke(self, lines: Sequence[Points], width: float, colour: Colour) -> None:
        """Lines with round ends."""
        for line in lines:
            along = np.gradient(line, axis=0)
            across = along[:, ::-1] * (-1, 1) * (width / 2 / np.hypot(along[:, :1], along[:, 1:]))
            ends = [ellipse(x, y, width / 2, width / 2) for x, y in (line[0], line[-1])]
            self.fill([np.concatenate([line + across, (line - across)[::-1]]), *ends], colour)
