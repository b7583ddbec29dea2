"""One update of D and one of G: state x batch x noise -> scalars. As in Goodfellow et al. 2014, with less work.

    fake = G(z)                                             one forward of G, its graph kept for G's own update
    D: minimise  d_real(D(x)) + d_fake(D(fake.detach()))    one pass over both halves, each with its own statistics
    G: minimise  g(D(fake))                                 through D as it now is, frozen

`training_step` is the iteration of the train loop, of the doctor's proof and of the benchmarks: these two updates when
they are due, then the average of G.

Under gradient accumulation D takes its K micro-batches and steps, then G takes its K and steps; G's images are then
made twice instead of keeping K graphs. Each micro-batch counts 1/K.

Spectral normalisation advances its power iteration once for each forward pass of D in training mode: once for real and
fake together, once for each penalty, once in G's update. Two separate passes of D would advance it once more, so with
--model.spectral_norm the two forms agree only up to how far the power iteration has converged.

How a network is run on several processes, in which precision, and how a loss is differentiated, comes from outside
(Engine).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from dcgan_dist.config import Config
from dcgan_dist.config.groups import LossConfig
from dcgan_dist.gan.augment import augment
from dcgan_dist.gan.ema import ema_beta, update_ema
from dcgan_dist.gan.images import to_range
from dcgan_dist.gan.layers import frozen_statistics
from dcgan_dist.gan.losses import LOSSES
from dcgan_dist.gan.nonfinite import NonFiniteDetector
from dcgan_dist.gan.regularizers import gradient_penalty, r1_penalty
from dcgan_dist.gan.schedule import set_learning_rates
from dcgan_dist.gan.state import TrainState

Scalars = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How the networks are run here."""

    g: nn.Module  # as its update goes through it: gradients are averaged over the ranks
    d: nn.Module
    autocast: Callable[[], AbstractContextManager]
    backward: Callable[[Tensor], None]
    no_sync: Callable[[nn.Module], AbstractContextManager]  # within it, gradients are added up on this rank alone
    section: Callable[[str], AbstractContextManager] = nullcontext  # measures the part of an iteration: "g" or "d"

    def forward(self, network: nn.Module, *inputs: Tensor | int) -> Tensor:
        """The network in the run's precision; the result in float32, or float64 if the network is."""
        with self.autocast():
            result = network(*inputs)
        return result if result.dtype == torch.float64 else result.float()


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The random numbers of one micro-batch of n images."""

    z: Tensor  # (n, nz, 1, 1)
    mix: Tensor | None = None  # (n,) uniform: the gradient penalty's points between real and fake
    augment_real: Tensor | None = None  # (n, UNIFORMS) uniform, for D's update; None: no augmentation
    augment_fake: Tensor | None = None
    augment_g: Tensor | None = None  # the same for G's update


def micro_batches(config: Config, pixels: Tensor, flips: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """This rank's part of a batch, uint8 (n, C, H, W), as the networks see it; `flips`, bool (n,): which to mirror."""
    real = to_range(pixels, flips if config.data.hflip else None, config.model.output, dtype)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return list(real.contiguous(memory_format=layout).chunk(config.accumulate))


def training_step(
    config: Config, state: TrainState, engine: Engine, real: Sequence[Tensor], noise: Sequence[Noise]
) -> Scalars:
    """One iteration: updates D and G where they are due, and the average of G. Returns unreduced device tensors.

    `real` and `noise`: the micro-batches of this rank's part of the global batch.
    """
    set_learning_rates(state, config)
    scalars: Scalars = {}
    d_due, g_due = state.iteration % config.optimizer.d_every == 0, state.iteration % config.optimizer.g_every == 0
    with engine.section("g"):
        fake = generate(engine, noise, g_due) if d_due or g_due else []
    if d_due:
        with engine.section("d"):
            scalars |= discriminator_step(config, state, engine, real, fake, noise)
    if g_due:
        with engine.section("g"):
            scalars |= generator_step(config, state, engine, fake, noise)
    state.images += config.batch_size
    state.iteration += 1
    if g_due:
        images_since = config.batch_size * config.optimizer.g_every
        update_ema(state.ema, state.netg, ema_beta(config.ema, state.images, images_since))
    return scalars


def generate(engine: Engine, noise: Sequence[Noise], g_due: bool) -> list[Tensor]:
    """G's images of every micro-batch. The graph is kept only where G's update follows and needs just one."""
    with torch.set_grad_enabled(g_due and len(noise) == 1):
        return [engine.forward(engine.g, n.z) for n in noise]


def discriminator_step(
    config: Config,
    state: TrainState,
    engine: Engine,
    real: Sequence[Tensor],
    fake: Sequence[Tensor],
    noise: Sequence[Noise],
) -> Scalars:
    """Updates D. `real` and `fake`: the micro-batches, each (n, C, H, W). Returns unreduced tensors on the device."""
    state.netd.requires_grad_(True)
    state.opt_d.zero_grad(set_to_none=True)
    loss_of = LOSSES[config.loss.name]
    seen: list[Scalars] = []
    for k, (x, x_fake, n) in enumerate(zip(real, fake, noise, strict=True)):
        with _syncing(engine, engine.d, last=k == len(real) - 1):
            x = augment(x, config.augment, n.augment_real)
            x_fake = augment(x_fake.detach(), config.augment, n.augment_fake)
            logits, logits_fake = engine.forward(engine.d, torch.cat([x, x_fake]), 2).chunk(2)
            losses = loss_of.d_real(logits, config.loss.label_smoothing) + loss_of.d_fake(logits_fake)
            penalties = _penalties(config.loss, state.netd, x, x_fake, n)
            loss = losses.mean() + sum(penalty.mean() for penalty in penalties.values())
            engine.backward(state.scaler_d.scale(loss / len(real)))
        seen.append({"loss/d": losses, "d/real": logits.sigmoid(), "d/fake": logits_fake.sigmoid()} | penalties)
        seen[-1] |= {"logit/real": logits, "logit/fake": logits_fake}
    norm, norms = _update(state.opt_d, state.scaler_d, state.netd, state.detector_d, config.optimizer.d_clip)
    scalars = _join(seen, {"grad_norm/d": norm})
    state.detector_d.update(state.images, scalars, norms)
    return scalars


def generator_step(
    config: Config, state: TrainState, engine: Engine, fake: Sequence[Tensor], noise: Sequence[Noise]
) -> Scalars:
    """Updates G by what D, frozen, makes of its images. Returns unreduced tensors on the device."""
    state.netd.requires_grad_(False)
    state.opt_g.zero_grad(set_to_none=True)
    seen: list[Scalars] = []
    for k, (x, n) in enumerate(zip(fake, noise, strict=True)):
        with _syncing(engine, engine.g, last=k == len(noise) - 1):
            if not x.requires_grad:
                with frozen_statistics(state.netg):
                    x = engine.forward(engine.g, n.z)
            logits = engine.forward(state.netd, augment(x, config.augment, n.augment_g))
            losses = LOSSES[config.loss.name].g(logits)
            engine.backward(state.scaler_g.scale(losses.mean() / len(noise)))
        seen.append({"loss/g": losses, "d/fake_after": logits.sigmoid()})
    norm, norms = _update(state.opt_g, state.scaler_g, state.netg, state.detector_g, config.optimizer.g_clip)
    scalars = _join(seen, {"grad_norm/g": norm})
    state.detector_g.update(state.images, scalars, norms)
    return scalars


@torch.no_grad()
def probe(config: Config, state: TrainState, engine: Engine, real: Sequence[Tensor], noise: Sequence[Noise]) -> Scalars:
    """D(x) on the same images, augmented alike, after D's update; changes nothing."""
    with frozen_statistics(state.netd):
        seen = [augment(x, config.augment, n.augment_real) for x, n in zip(real, noise, strict=True)]
        return _join([{"d/real_after": engine.forward(state.netd, x).sigmoid()} for x in seen])


def _penalties(options: LossConfig, netd: nn.Module, real: Tensor, fake: Tensor, noise: Noise) -> Scalars:
    """Weighted penalties of every image. Outside autocast, for second derivatives need the range, and past DDP's own
    forward, whose hooks still average what reaches the parameters.
    """
    penalties: Scalars = {}
    if options.r1_gamma:
        penalties["loss/r1"] = options.r1_gamma * r1_penalty(netd, real)
    if options.gp_weight and noise.mix is not None:
        penalties["loss/gp"] = options.gp_weight * gradient_penalty(netd, real, fake, noise.mix)
    return penalties


def _syncing(engine: Engine, network: nn.Module, last: bool) -> AbstractContextManager:
    return torch.enable_grad() if last else engine.no_sync(network)


def _update(
    optimizer: Optimizer, scaler: GradScaler, network: nn.Module, detector: NonFiniteDetector, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Steps unless scaler or detector find inf or NaN; returns the gradient's unclipped norm, and each parameter's."""
    scaler.unscale_(optimizer)
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))  # pyright: ignore[reportPrivateImportUsage]
    norm = torch.linalg.vector_norm(norms)
    detector.gradient(norm)
    if clip is not None:
        # a norm that is not finite clips nothing: it would overwrite the gradient, which the detector reads later
        nn.utils.clip_grads_with_norm_(network.parameters(), clip, norm.nan_to_num(0.0, 0.0))
    scaler.step(optimizer)
    scaler.update()
    return norm, norms


def _join(seen: Sequence[Scalars], of_the_update: Scalars | None = None) -> Scalars:
    """Values of every image of all micro-batches, (n,). A value of the update is repeated for each image, so that
    means over several iterations weigh it by images, however many ranks there were in each.
    """
    joined = {name: torch.cat([scalars[name].detach() for scalars in seen]) for name in seen[0]}
    count = len(next(iter(joined.values())))
    return joined | {name: value.expand(count) for name, value in (of_the_update or {}).items()}
