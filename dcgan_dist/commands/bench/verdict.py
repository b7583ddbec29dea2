"""What the measurements mean, in words."""

from dataclasses import dataclass
from typing import Literal

EVEN = 1.15  # factors below it are no difference
SLOW_START = 2.0  # the first epoch is that many times slower than later ones: the files come slowly
WORTH = 1.25  # a change that brings less is not advised
ENCODED = 0.05  # part of the images
LARGE_SHARE = 0.05  # of the CPU time of training


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Images per second of one rank, and what else the verdict depends on."""

    device: str
    """cpu, cuda .."""
    precision: str
    loader: float
    """With the options as they are, after the first epoch."""
    first_epoch: float
    """The same in the first one, from disk, with all checks."""
    workers: dict[str, float]
    """The loader with other options, after the first epoch."""
    step: float
    loader_cpu: float
    """Microseconds of CPU time an image."""
    step_cpu: float
    pixels_cpu: float | None
    """The same for a copy of pixels from a memory map."""
    encoded: float
    """Part of the images, 0 to 1, that are to be decoded."""
    ranks: int
    """On this machine."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Which of the two limits the machine."""

    limit: Literal["loader", "step", "even"]
    factor: float
    """How many times faster the other one is; at least 1."""
    text: str
    advice: tuple[str, ...]


def judge(measured: Measured) -> Verdict:
    """The verdict and what to change, the most useful first."""
    loader, step = measured.loader, measured.step
    factor = max(loader, step) / min(loader, step)
    limit = "even" if factor < EVEN else "loader" if loader < step else "step"
    each = f" (each of {measured.ranks} ranks)" if measured.ranks > 1 else ""
    rates = f"the loader gives {loader:,.0f} images/s, the training step takes {step:,.0f}{each}"
    texts = {
        "even": f"Neither limits this machine: {rates}.",
        "loader": f"The loader is the limit of this machine, by a factor of {factor:,.1f}: {rates}.",
        "step": f"The training step is the limit of this machine, by a factor of {factor:,.1f}: {rates}.",
    }
    advice = _faster_step(measured) if limit == "step" else _faster_loader(measured)
    if limit != "loader" and measured.first_epoch * EVEN < step:
        advice = [*_faster_files(measured), *advice]
    return Verdict(limit=limit, factor=factor, text=texts[limit], advice=tuple(advice))


def _faster_loader(measured: Measured) -> list[str]:
    advice = []
    best = max(measured.workers, key=measured.workers.__getitem__, default="")
    if best and measured.workers[best] > WORTH * measured.loader:
        gain = measured.workers[best] / measured.loader
        advice.append(f"{best}: measured {gain:.1f} times the images per second")
    advice += _pixels(measured)
    if measured.loader > SLOW_START * measured.first_epoch:
        advice += _faster_files(measured)
    advice.append("more CPU cores for each rank: loading goes with their number")
    return advice


def _pixels(measured: Measured) -> list[str]:
    if measured.encoded <= ENCODED:
        return []
    costs = ""
    if measured.pixels_cpu is not None:
        costs = f": a copy of pixels costs {measured.pixels_cpu:,.1f} us of CPU an image, loading now costs "
        costs += f"{measured.loader_cpu:,.1f}"
    return [f"write the shards anew with dcgan-dist shard .. --store ppm{costs}"]


def _faster_files(measured: Measured) -> list[str]:
    return [
        f"keep the shards on a fast local disk: the first epoch, read from there and checked, gives "
        f"{measured.first_epoch:,.0f} images/s, later ones give {measured.loader:,.0f} while the shards fit into memory"
    ]


def _faster_step(measured: Measured) -> list[str]:
    if measured.device == "cpu":  # both take their time from the same cores
        share = measured.loader_cpu / (measured.loader_cpu + measured.step_cpu)
        advice = [f"a GPU, or more CPU cores; of the CPU time of training, loading takes {share:.1%}"]
        return [*advice, *(_pixels(measured) if share > LARGE_SHARE else [])]
    return [
        *(["--precision bf16, if the GPU has it"] if measured.precision == "fp32" else []),
        "a larger --batch_size, if the GPU is not full",
        "more or faster GPUs",
    ]
