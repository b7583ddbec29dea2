"""The W&B workspace and reports as data: SECTIONS, of which `wandb_views.py` makes them.

Curves are over the images seen. Only what W&B measures itself, in the section System, is over the time.
"""

from dataclasses import dataclass
from typing import Literal

NAMED = 16  # ranks with curves of their own
TIME = "RelativeTime(Process)"  # W&B's name of the time since the start


@dataclass(frozen=True)
class Lines:
    """Curves of scalars in one plot."""

    title: str
    scalars: tuple[str, ...]
    log: bool = False  # the y axis is logarithmic
    stacked: bool = False  # as areas, one upon the other
    level: float | None = None  # a horizontal line at this height
    limits: tuple[float | None, float | None] = (None, None)  # of the y axis
    x: str = "images"


@dataclass(frozen=True)
class Media:
    """Pictures, with a slider over the reports."""

    title: str
    scalars: tuple[str, ...]  # names of pictures


@dataclass(frozen=True)
class Bars:
    """The last value of a scalar in each run."""

    title: str
    scalars: tuple[str]


@dataclass(frozen=True)
class Importance:
    """How much each option explains the last value of a scalar, over many runs."""

    scalars: tuple[str]


@dataclass(frozen=True)
class Coordinates:
    """A line for each run, through its options and the last values of scalars."""

    title: str
    options: tuple[str, ...]
    scalars: tuple[str, ...]


@dataclass(frozen=True)
class Differences:
    """A table of the options and last values in which runs differ."""

    scalars: tuple[str, ...] = ()


Panel = Lines | Media | Bars | Importance | Coordinates | Differences


@dataclass(frozen=True, kw_only=True)
class Section:
    """Panels under one heading."""

    name: str
    text: str  # how to read them
    panels: tuple[Panel, ...]
    is_open: bool = True
    compares: bool = False  # needs several runs


SECTIONS = (
    Section(
        name="Overview",
        text="The samples are of the same latents each time. D(x) should stay above 0.5 and D(G(z)) below, both near "
        "it: at 1 and 0, G has little to learn from. The losses of a GAN are no measure of its quality.",
        panels=(
            Media("Samples", ("samples",)),
            Media("Real images", ("real",)),
            Lines("Losses", ("loss/d", "loss/g")),
            Lines("D(x) and D(G(z))", ("d/real", "d/fake"), level=0.5, limits=(0, 1)),
            Lines("D(x) and D(G(z)) after the update", ("d/real_after", "d/fake_after"), level=0.5, limits=(0, 1)),
            Lines("Quality: likeness of the samples (MS-SSIM)", ("health/ms_ssim",), limits=(0, 1)),
            Lines("Quality: variety of the samples (pixel deviation)", ("health/pixel_std",), limits=(0, None)),
        ),
    ),
    Section(
        name="Speed",
        text="Where an iteration spends its time. A wait for data of more than a few percent, or a rank that is slower "
        "than the median, costs that much of every rank's time.",
        panels=(
            Lines("Images per second", ("speed/images_per_second",), limits=(0, None)),
            Lines("Seconds per iteration", ("time/d", "time/g", "time/data", "time/other"), stacked=True),
            Lines("Wait for data, % of the time", ("time/data_percent",), limits=(0, None)),
            Lines("Time of the slowest rank / median", ("rank/slowest_factor",), level=1),
            Lines("Slowest rank", ("rank/slowest",)),
            Lines("Seconds of a checkpoint: of the loop, of the writing", ("time/save_seconds", "save/write_seconds")),
            Lines("GPU load, least of the ranks, %", ("gpu/utilization_percent",), limits=(0, 100)),
            Lines("GPU load of each rank, %", tuple(f"gpu/utilization_percent/rank_{n}" for n in range(NAMED))),
            Lines("GPU memory, most of the ranks, %", ("gpu/memory_percent",), limits=(0, 100)),
            Lines("GPU memory of each rank, %", tuple(f"gpu/memory_percent/rank_{n}" for n in range(NAMED))),
            Lines("Bytes read per image", ("data/bytes_per_image",)),
            Lines("Images from the cache, % of remote ones", ("data/cache_percent",), limits=(0, 100)),
            Lines("Hours of the run", ("time/run_hours",)),
        ),
    ),
    Section(
        name="Health",
        text="Signs of trouble, before the samples show it. Gradient norms that grow or vanish, a ratio far from its "
        "usual value, a loss scale that falls, or samples that become alike (MS-SSIM near 1) come first.",
        panels=(
            Lines("Gradient norms", ("grad_norm/d", "grad_norm/g"), log=True),
            Lines("Gradient norm of D / G", ("health/gradient_ratio",), log=True),
            Lines("Collapse watch: D(x) - D(G(z))", ("health/saturation",), limits=(None, 1)),
            Lines("Collapse watch: likeness and variety", ("health/ms_ssim", "health/pixel_std"), limits=(0, 1)),
            Lines("Logits of D", ("logit/real", "logit/fake"), level=0),
            Lines("Penalties on D's gradient", ("loss/r1", "loss/gp")),
            Lines("Loss scale (fp16)", ("scale/d", "scale/g"), log=True),
            Lines("Learning rates", ("lr/d", "lr/g")),
            Lines("Pixels of the samples (histogram)", ("samples/pixels",)),
            Lines("Logits of D for real images (histogram)", ("logit/real_histogram",)),
            Lines("Logits of D for G's images (histogram)", ("logit/fake_histogram",)),
            Lines("Rollbacks", ("health/rollbacks",)),
            Lines("Substituted images", ("data/substituted",)),
        ),
    ),
    Section(
        name="Compare",
        text="The runs side by side: the options in which they differ, and what came of it.",
        panels=(
            Differences(),
            Importance(("health/saturation",)),
            Importance(("health/ms_ssim",)),
            Coordinates(
                "Options and outcome",
                ("optimizer.d_lr", "optimizer.g_lr", "optimizer.d_every", "loss.r1_gamma", "batch_size"),
                ("health/saturation", "health/ms_ssim"),
            ),
            Bars("Images per second", ("speed/images_per_second",)),
            Bars("Likeness of the samples (MS-SSIM)", ("health/ms_ssim",)),
        ),
        is_open=False,
        compares=True,
    ),
    Section(
        name="System",
        text="What W&B measures on the machine of the first rank, over the time.",
        panels=(
            Lines("GPU utilisation, %", tuple(f"system/gpu.{n}.gpu" for n in range(8)), x=TIME),
            Lines("GPU memory, %", tuple(f"system/gpu.{n}.memoryAllocated" for n in range(8)), x=TIME),
            Lines("GPU power, W", tuple(f"system/gpu.{n}.powerWatts" for n in range(8)), x=TIME),
            Lines("CPU, % of a core", ("system/cpu",), x=TIME),
            Lines("Memory of the process, MB", ("system/proc.memory.rssMB",), x=TIME),
            Lines("Memory of the machine, %", ("system/memory_percent",), x=TIME),
        ),
        is_open=False,
    ),
)
"""In the order of the workspace, and of a report."""
BEST: dict[str, Literal["min", "max"]] = {"health/ms_ssim": "min", "speed/images_per_second": "max"}
"""Scalars whose best value is in the summary of a run, and which is best."""
LEFT_OUT = {"epoch": "it is the number of images in another unit"}
"""Scalars that are on no panel, and why."""
