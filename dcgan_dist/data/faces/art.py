"""How a cartoon face is painted, at any size: palettes and everything but the hair, which is in `face_hair`.

A picture is a pure function of `Factors` (what is on it) and `Jitter` (how exactly it sits), so that two pictures can
differ in one thing only. Coordinates are head units, see `face_canvas`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image

from dcgan_dist.data.faces.canvas import INK, WHITE, Canvas, Colour, Points, arc, ellipse, mix, points, symmetric, tone
from dcgan_dist.data.faces.hair import HAIR, HairShape, both

Skin = Literal["fair", "light", "tan", "brown", "dark"]
HairColour = Literal["black", "brown", "blond", "ginger", "silver", "pink"]
Eyes = Literal["brown", "blue", "green", "sleepy", "happy"]
Mouth = Literal["smile", "laugh", "neutral", "sad", "surprised"]
Glasses = Literal["none", "round", "square"]
Background = Literal["sky", "mint", "lilac", "lemon", "rose", "teal", "blue", "coral"]
Shirt = Literal["navy", "red", "mustard", "green", "white", "plum"]

SHADOW_OFFSET = np.array([0.02, 0.07])
SHADOW: Colour = (140, 44, 50)
LID: Colour = (150, 96, 168)
TONGUE: Colour = (242, 112, 122)
SKIN: dict[Skin, Colour] = {
    "fair": (255, 222, 200),
    "light": (247, 200, 162),
    "tan": (226, 168, 120),
    "brown": (184, 122, 80),
    "dark": (138, 88, 62),
}
HAIR_COLOUR: dict[HairColour, Colour] = {
    "black": (48, 44, 58),
    "brown": (98, 56, 38),
    "blond": (244, 192, 72),
    "ginger": (222, 98, 40),
    "silver": (206, 210, 220),
    "pink": (240, 108, 164),
}
BACKGROUND: dict[Background, Colour] = {
    "sky": (138, 206, 244),
    "mint": (150, 224, 188),
    "lilac": (200, 178, 242),
    "lemon": (253, 232, 150),
    "rose": (250, 170, 196),
    "teal": (84, 182, 184),
    "blue": (104, 140, 226),
    "coral": (250, 128, 112),
}
SHIRT: dict[Shirt, Colour] = {
    "navy": (48, 66, 112),
    "red": (226, 74, 76),
    "mustard": (242, 176, 56),
    "green": (38, 146, 112),
    "white": (246, 242, 236),
    "plum": (128, 72, 150),
}
FRAME: dict[Glasses, Colour] = {"round": (44, 46, 66), "square": (214, 44, 60)}


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What a face shows: the discrete factors, each a name."""

    skin: Skin
    hair_colour: HairColour
    hair_shape: HairShape
    eyes: Eyes
    mouth: Mouth
    glasses: Glasses
    background: Background
    shirt: Shirt


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """How a face sits: continuous variation, every number in [-1, 1], 0 the middle of its range."""

    x: float = 0.0
    y: float = 0.0
    tilt: float = 0.0
    width: float = 0.0
    height: float = 0.0
    hair: float = 0.0
    eye_gap: float = 0.0
    eye_size: float = 0.0
    gaze_x: float = 0.0
    gaze_y: float = 0.0
    brow: float = 0.0
    mouth_width: float = 0.0
    mouth_curve: float = 0.0
    skin_tone: float = 0.0
    hair_tone: float = 0.0
    background_tone: float = 0.0
    shoulders: float = 0.0


FACE = symmetric((0.3, -1.06), (0.72, -0.82), (0.94, -0.3), (0.95, 0.2), (0.8, 0.66), (0.5, 0.97), (0.18, 1.08))
SHOULDERS = symmetric((0.3, 1.27), (0.75, 1.34), (1.3, 1.55), (1.5, 2.1), (0.6, 2.2))
NECK = symmetric((0.36, 0.6), (0.34, 1.1), (0.4, 1.32), (0.2, 1.46))
LENS: dict[Glasses, Points] = {
    "round": ellipse(0, 0, 0.36, 0.37),
    "square": symmetric((0.12, -0.33), (0.3, -0.31), (0.36, -0.16), (0.36, 0.14), (0.29, 0.29), (0.12, 0.32)),
}


def paint(factors: Factors, jitter: Jitter, size: int) -> Image.Image:
    """The picture of a face, RGB, size x size pixels (32 to 256)."""
    scale = max(3, round(256 / size))
    skin = tone(SKIN[factors.skin], 0.07 * jitter.skin_tone)
    hair = tone(HAIR_COLOUR[factors.hair_colour], 0.1 * jitter.hair_tone)
    canvas = Canvas(size * scale, tone(BACKGROUND[factors.background], 0.1 * jitter.background_tone))
    look = HAIR[factors.hair_shape]
    volume = 1 + 0.04 * jitter.hair
    head = (
        0.025 * jitter.x,
        0.015 + 0.015 * jitter.y,
        0.1 * jitter.tilt,
        1 + 0.06 * jitter.width,
        1 + 0.04 * jitter.height,
    )
    canvas.place(*head)
    if look.behind:
        canvas.shaded([outline * volume for outline in look.behind], tone(hair, -0.16), tone(hair, -0.36))
    canvas.place(0.02 * jitter.x, 0.02 + 0.005 * jitter.y, 0.0, 1 + 0.08 * jitter.shoulders, 1.0)
    shirt = SHIRT[factors.shirt]
    canvas.shaded([SHOULDERS], shirt, tone(shirt, -0.26))
    canvas.fill(ellipse(0, 1.28, 0.5, 0.24), tone(shirt, -0.2))
    canvas.fill(NECK, mix(skin, SHADOW, 0.34))
    canvas.place(*head)
    _face(canvas, factors, jitter, skin)
    if look.front:
        front = [outline * volume for outline in look.front]
        canvas.fill_within(FACE, [outline + SHADOW_OFFSET for outline in front], mix(skin, SHADOW, 0.3))
        canvas.shaded(front, tone(hair, 0.1), tone(hair, -0.24))
    _brows(canvas, factors, jitter, hair)
    _glasses(canvas, factors, jitter)
    return canvas.image.reduce(scale)


def _face(canvas: Canvas, factors: Factors, jitter: Jitter, skin: Colour) -> None:
    shade = mix(skin, SHADOW, 0.24)
    for side in (-1, 1):
        canvas.fill(ellipse(0.97 * side, 0.12, 0.19, 0.25), skin)
        canvas.fill(ellipse(0.98 * side, 0.13, 0.1, 0.15), shade)
    canvas.shaded([FACE], tone(skin, 0.06), mix(skin, shade, 0.7))
    for side in (-1, 1):
        canvas.fill(ellipse(0.6 * side, 0.5, 0.2, 0.14), mix(skin, (244, 84, 100), 0.34))
    if factors.glasses != "none":
        for lens in _lenses(factors.glasses, jitter):
            canvas.fill(lens, mix(skin, WHITE, 0.4))
    EYES[factors.eyes](canvas, jitter)
    canvas.stroke(arc(0, 0.3, 0.11, 0.08), 0.09, shade)
    # a red line would drown in a dark skin
    lips = mix((190, 44, 64), (66, 10, 26), (255 - skin[0]) / 120)
    MOUTH[factors.mouth](canvas, jitter, lips)


def _eye_x(jitter: Jitter) -> float:
    return 0.42 + 0.025 * jitter.eye_gap


def _open_eyes(canvas: Canvas, jitter: Jitter, *, iris: Colour) -> None:
    size = 1 + 0.09 * jitter.eye_size
    for side in (-1, 1):
        x = side * _eye_x(jitter)
        centre = x + 0.045 * jitter.gaze_x, 0.03 * jitter.gaze_y
        canvas.fill(ellipse(x, 0, 0.235 * size, 0.27 * size), WHITE)
        canvas.fill(ellipse(*centre, 0.17 * size, 0.19 * size), iris)
        canvas.fill(ellipse(*centre, 0.09 * size, 0.1 * size), INK)
        canvas.fill(ellipse(centre[0] - 0.06, centre[1] - 0.07, 0.055, 0.055), WHITE)
        canvas.stroke(arc(x, -0.14, 0.23 * size, -0.17 * size), 0.075, INK)


def _sleepy_eyes(canvas: Canvas, jitter: Jitter, *, iris: Colour) -> None:
    size = 1 + 0.09 * jitter.eye_size
    for side in (-1, 1):
        x = side * _eye_x(jitter)
        canvas.fill(ellipse(x, 0.04, 0.235 * size, 0.22 * size), WHITE)
        canvas.fill(ellipse(x + 0.045 * jitter.gaze_x, 0.09, 0.16 * size, 0.16 * size), iris)
        canvas.fill(ellipse(x, -0.11, 0.26 * size, 0.17), LID)
        canvas.stroke(arc(x, 0.0, 0.26 * size, 0.02), 0.09, INK)


def _happy_eyes(canvas: Canvas, jitter: Jitter) -> None:
    size = 1 + 0.09 * jitter.eye_size
    for side in (-1, 1):
        canvas.stroke(arc(side * _eye_x(jitter), 0.1, 0.2 * size, -0.26 * size), 0.105, INK)


def _brows(canvas: Canvas, factors: Factors, jitter: Jitter, hair: Colour) -> None:
    inner_end_up, lift = {"sad": (0.09, 0.02), "surprised": (0.0, 0.1)}.get(factors.mouth, (0.015, 0.0))
    y = -0.44 - lift - 0.04 * jitter.brow
    for side in (-1, 1):
        line = arc(side * _eye_x(jitter), y, 0.2, -0.07)
        line[:, 1] += inner_end_up * side * (line[:, 0] - line[6, 0]) / 0.2
        canvas.stroke(line, 0.1, tone(hair, -0.35))


def _smile(canvas: Canvas, jitter: Jitter, lips: Colour) -> None:
    canvas.stroke(arc(0, 0.6, 0.32 + 0.05 * jitter.mouth_width, 0.24 + 0.05 * jitter.mouth_curve), 0.105, lips)


def _laugh(canvas: Canvas, jitter: Jitter, lips: Colour) -> None:
    width, depth = 0.38 + 0.05 * jitter.mouth_width, 0.42 + 0.05 * jitter.mouth_curve
    canvas.fill(arc(0, 0.54, width, depth), mix(lips, (80, 16, 44), 0.6))
    canvas.fill(ellipse(0, 0.54 + depth * 0.74, width * 0.45, depth * 0.22), TONGUE)
    canvas.fill(arc(0, 0.54, width, depth)[[0, 1, 11, 12]], WHITE)


def _neutral(canvas: Canvas, jitter: Jitter, lips: Colour) -> None:
    canvas.stroke(arc(0, 0.68, 0.24 + 0.06 * jitter.mouth_width, 0.02 * jitter.mouth_curve), 0.105, lips)


def _sad(canvas: Canvas, jitter: Jitter, lips: Colour) -> None:
    canvas.stroke(arc(0, 0.79, 0.28 + 0.05 * jitter.mouth_width, -0.2 - 0.04 * jitter.mouth_curve), 0.105, lips)


def _surprised(canvas: Canvas, jitter: Jitter, lips: Colour) -> None:
    rx, ry = 0.16 + 0.03 * jitter.mouth_width, 0.21 + 0.03 * jitter.mouth_curve
    canvas.fill(ellipse(0, 0.7, rx, ry), mix(lips, (80, 16, 44), 0.6))
    canvas.fill(ellipse(0, 0.7 + ry * 0.55, rx * 0.6, ry * 0.32), TONGUE)


def _lenses(glasses: Glasses, jitter: Jitter) -> tuple[Points, Points]:
    return both(LENS[glasses] + (_eye_x(jitter) + 0.02, 0.02))


def _glasses(canvas: Canvas, factors: Factors, jitter: Jitter) -> None:
    if factors.glasses == "none":
        return
    colour: Colour = FRAME[factors.glasses]
    canvas.stroke(arc(0, 0.0, 0.1, -0.06), 0.08, colour)
    for side in (-1, 1):
        canvas.stroke(points((0.8 * side, -0.04), (0.98 * side, -0.06)), 0.08, colour)
    for lens in _lenses(factors.glasses, jitter):
        canvas.ring(lens, 0.085, colour)


EYES: dict[Eyes, Callable[[Canvas, Jitter], None]] = {
    "brown": partial(_open_eyes, iris=(108, 62, 36)),
    "blue": partial(_open_eyes, iris=(44, 122, 214)),
    "green": partial(_open_eyes, iris=(52, 150, 84)),
    "sleepy": partial(_sleepy_eyes, iris=(96, 70, 120)),
    "happy": _happy_eyes,
}
MOUTH: dict[Mouth, Callable[[Canvas, Jitter, Colour], None]] = {
    "smile": _smile,
    "laugh": _laugh,
    "neutral": _neutral,
    "sad": _sad,
    "surprised": _surprised,
}
