"""Signs of mode collapse, at every report: is D too sure, do G's images differ, do both networks learn?"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dcgan_dist.config import Config
from dcgan_dist.config.run_groups import CollapseConfig
from dcgan_dist.gan.images import to_pixels
from dcgan_dist.gan.ms_ssim import ms_ssim
from dcgan_dist.gan.state import TrainState
from dcgan_dist.gan.step import Engine
from dcgan_dist.parallel.noise import sample_latents
from dcgan_dist.parallel.world import World
from dcgan_dist.run.trackers import Trackers
from dcgan_dist.text import Say

PICTURES = 32  # of the sample grid's latents
FOR_VARIETY = "lower --optimizer.g_lr, or try another --seed or --augment color translation"


@dataclass(frozen=True, kw_only=True)
class Sign:
    """One sign of collapse."""

    value: str  # name of the scalar
    shows: Callable[[float, CollapseConfig], bool]
    meaning: str
    remedy: str


SIGNS = (
    Sign(
        value="health/saturation",
        shows=lambda value, config: value > config.saturation,
        meaning="D(x) - D(G(z)) is {:.3f}: D is sure of nearly every image, which leaves G little to learn from",
        remedy="lower --optimizer.d_lr, or try --loss.label_smoothing 0.1 or --model.spectral_norm",
    ),
    Sign(
        value="health/pixel_std",
        shows=lambda value, config: value < config.pixel_std,
        meaning="pixels differ by only {:.4f} of their range between G's pictures: G makes one picture of every latent",
        remedy=FOR_VARIETY,
    ),
    Sign(
        value="health/ms_ssim",
        shows=lambda value, config: value > config.ms_ssim,
        meaning="the MS-SSIM of G's pictures is {:.3f}: they are nearly alike (mode collapse)",
        remedy=FOR_VARIETY,
    ),
    Sign(
        value="health/gradient_ratio",
        shows=lambda value, config: value > config.gradient_ratio or value * config.gradient_ratio < 1,
        meaning="D's gradient is {:.3g} times G's: one of them learns nothing, or is about to diverge",
        remedy="bring --optimizer.d_lr and --optimizer.g_lr nearer to each other, or use --optimizer.d_clip and g_clip",
    ),
)


class CollapseWatch:
    """Measures, counts the consecutive reports that show a sign, and warns once per episode."""

    def __init__(self, config: Config, world: World, state: TrainState, engine: Engine, say: Say) -> None:
        self._config, self._world, self._state, self._engine, self._say = config, world, state, engine, say

    def look(self, values: dict[str, float], trackers: Trackers) -> dict[str, float]:
        """The values health/.. to a report's `values`; all ranks call it together. Counts signs in the state."""
        measured = self._world.from_main(self._diversity)
        if {"d/real", "d/fake"} <= values.keys() and self._config.loss.name != "wasserstein":
            measured["health/saturation"] = values["d/real"] - values["d/fake"]
        if values.get("grad_norm/g"):
            measured["health/gradient_ratio"] = values.get("grad_norm/d", 0.0) / values["grad_norm/g"]
        for sign in SIGNS:
            if sign.value in measured and self._state.images > self._config.collapse.after:
                self._count(sign, measured[sign.value], trackers)
        return measured

    def counted(self) -> dict[str, int]:
        """The scalars whose signs count now, and the images seen when each began to show."""
        least = self._config.collapse.reports
        return {value: since for value, (reports, since) in self._state.signs.items() if reports >= least}

    def _count(self, sign: Sign, value: float, trackers: Trackers) -> None:
        config, signs = self._config.collapse, self._state.signs
        if not sign.shows(value, config):
            signs.pop(sign.value, None)
            return
        reports, since = signs.get(sign.value, [0, max(self._state.images - self._config.log.every, 0)])
        signs[sign.value] = [reports + 1, since]
        if reports + 1 == config.reports:
            text = f"{sign.meaning.format(value)}, since {since:,} images; {sign.remedy}"
            self._say(f"WARNING: {text}")
            trackers.alert("The training may have collapsed", text)

    def _diversity(self) -> dict[str, float]:
        """How much G's images of fixed latents differ. In evaluation mode, which changes nothing in G."""
        config, netg = self._config, self._state.netg
        z = sample_latents(config.model, config.seed, 0, PICTURES, next(netg.parameters()))
        netg.eval()
        with torch.no_grad():
            pixels = to_pixels(self._engine.forward(netg, z), config.model.output)
        netg.train()
        pictures = pixels.to(torch.float32) / 255
        return {
            "health/pixel_std": pictures.std(dim=0, unbiased=False).mean().item(),
            "health/ms_ssim": ms_ssim(pictures, pictures.roll(1, 0)).mean().item(),
        }
