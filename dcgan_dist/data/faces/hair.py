"""The hair of the cartoon faces: outlines in head units, behind and in front of the head."""

from dataclasses import dataclass
from typing import Literal

from dcgan_dist.data.faces.canvas import Points, ellipse, points, smooth, symmetric

HairShape = Literal["bald", "short", "spiky", "curly", "long", "bob", "bun", "pigtails"]


@dataclass(frozen=True)
class Hair:
    """One head of hair: what lies behind the head, what in front of it."""

    behind: tuple[Points, ...] = ()
    front: tuple[Points, ...] = ()


def both(outline: Points) -> tuple[Points, Points]:
    """The outline and its mirror image."""
    return outline, outline * (-1, 1)


CAP = symmetric((0.4, -1.32), (0.86, -0.98), (1.06, -0.4), (1.02, 0.05), (0.9, -0.1), (0.84, -0.4), (0.45, -0.7))
SWEPT = smooth(
    points(
        (1.0, 0.1), (1.06, -0.5), (0.8, -1.05), (0.2, -1.34), (-0.5, -1.3), (-0.98, -0.9), (-1.06, -0.4), (-1.0, 0.1),
        (-0.9, -0.1), (-0.8, -0.5), (-0.3, -0.52), (0.2, -0.66), (0.62, -0.86), (0.82, -0.45), (0.9, -0.1),
    )
)  # fmt: skip
SPIKES = points(
    (1.0, 0.1), (1.12, -0.3), (1.02, -0.44), (1.3, -0.8), (0.95, -0.84), (0.95, -1.32), (0.56, -1.14), (0.3, -1.6),
    (0.02, -1.24), (-0.36, -1.56), (-0.54, -1.14), (-0.95, -1.32), (-0.95, -0.84), (-1.3, -0.8), (-1.02, -0.44),
    (-1.12, -0.3), (-1.0, 0.1), (-0.86, -0.3), (-0.72, -0.52), (-0.5, -0.42), (-0.3, -0.6), (-0.05, -0.42),
    (0.2, -0.6), (0.45, -0.42), (0.68, -0.56), (0.86, -0.3),
)  # fmt: skip
PARTED = symmetric(
    (0.3, -1.34), (0.82, -1.08), (1.12, -0.5), (1.22, 0.2), (1.22, 1.1), (0.98, 0.7), (0.9, 0.1), (0.66, -0.48),
    (0.1, -0.96),
)  # fmt: skip
FRINGE = symmetric((0.4, -1.34), (0.88, -1.04), (1.08, -0.4), (1.08, 0.2), (0.94, 0.2), (0.84, -0.3), (0.42, -0.36))
LONG_BACK = symmetric((0.4, -1.3), (1.0, -0.9), (1.24, 0.0), (1.28, 0.9), (1.36, 1.6), (0.8, 1.75))
BOB_BACK = symmetric((0.4, -1.3), (0.96, -0.95), (1.2, -0.2), (1.32, 0.6), (1.1, 0.98), (0.5, 0.9))
BANGS = symmetric(
    (0.3, -1.32), (0.84, -1.02), (1.06, -0.4), (1.02, 0.05), (0.9, -0.06), (0.74, -0.34), (0.36, -0.56), (0.04, -0.86)
)
PIGTAIL = smooth(points((0.9, -0.1), (1.18, -0.22), (1.5, 0.08), (1.52, 0.6), (1.3, 1.06), (1.2, 0.7), (1.0, 0.4)))
CURLS = ((0.0, -1.16), (0.46, -1.1), (0.85, -0.82), (1.08, -0.4), (1.14, 0.06))
FLUFF = ((0.92, -0.34, 0.2), (1.04, -0.12, 0.2), (1.06, 0.14, 0.22), (0.98, 0.38, 0.18))

HAIR: dict[HairShape, Hair] = {
    "bald": Hair(behind=tuple(ellipse(x * s, y, r, r) for x, y, r in FLUFF for s in (-1, 1))),
    "short": Hair(front=(SWEPT,)),
    "spiky": Hair(front=(SPIKES,)),
    "curly": Hair(front=tuple(ellipse(x * s, y, 0.36, 0.36) for x, y in CURLS for s in (-1, 1))),
    "long": Hair(behind=(LONG_BACK,), front=(PARTED,)),
    "bob": Hair(behind=(BOB_BACK,), front=(FRINGE,)),
    "bun": Hair(behind=(ellipse(0, -1.36, 0.38, 0.37),), front=(CAP,)),
    "pigtails": Hair(behind=both(PIGTAIL), front=(BANGS,)),
}
