"""The step against the algorithm of the notes and the DCGAN paper, in plain layers and two passes of D, in float64."""

import copy
from dataclasses import replace

import pytest
import torch
from support.engines import plain
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, relu

from dcgan_dist.config import Config
from dcgan_dist.config.groups import LossConfig, LossName, ModelConfig, OptimizerConfig
from dcgan_dist.gan.ema import update_ema
from dcgan_dist.gan.losses import LOSSES
from dcgan_dist.gan.networks import NetD
from dcgan_dist.gan.state import create_state
from dcgan_dist.gan.step import Noise, discriminator_step, generate, generator_step, probe

BATCH, NZ, ITERATIONS = 6, 8, 10
MODEL = ModelConfig(image_size=32, nz=NZ, ngf=4, ndf=4)


def config(loss: LossName = "non_saturating", d_norm="batch", **loss_options) -> Config:
    fast = OptimizerConfig(g_lr=2e-3, d_lr=2e-3)  # so that ten steps go somewhere
    return Config(model=replace(MODEL, d_norm=d_norm), loss=LossConfig(name=loss, **loss_options), optimizer=fast)


def ours(options: Config):
    state = create_state(options, torch.device("cpu"), torch.float64, scaled=False)
    return state, plain(state)


def plain_generator() -> nn.Sequential:
    """G for 32 pixels from the tables of the paper: 4 -> 8 -> 16 -> 32."""
    return nn.Sequential(
        nn.ConvTranspose2d(NZ, 16, 4, 1, 0, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.ConvTranspose2d(4, 3, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip


def plain_discriminator(d_norm: str) -> nn.Sequential:
    def norm(width: int) -> list[nn.Module]:
        return {"batch": [nn.BatchNorm2d(width)], "layer": [nn.GroupNorm(1, width)], "none": []}[d_norm]

    bias = d_norm == "none"
    return nn.Sequential(
        nn.Conv2d(3, 4, 4, 2, 1, bias=False), nn.LeakyReLU(0.2),
        nn.Conv2d(4, 8, 4, 2, 1, bias=bias), *norm(8), nn.LeakyReLU(0.2),
        nn.Conv2d(8, 16, 4, 2, 1, bias=bias), *norm(16), nn.LeakyReLU(0.2),
        nn.Conv2d(16, 1, 4, 1, 0, bias=False),
    )  # fmt: skip


def cross_entropy(logit: torch.Tensor, target: float) -> torch.Tensor:
    return binary_cross_entropy_with_logits(logit, torch.full_like(logit, target))


def d_real_loss(name: str, logit: torch.Tensor, smoothing: float) -> torch.Tensor:
    others = {"hinge": relu(1 - logit), "least_squares": (logit - 1) ** 2 / 2, "wasserstein": -logit}
    return others[name].mean() if name in others else cross_entropy(logit, 1 - smoothing)


def d_fake_loss(name: str, logit: torch.Tensor) -> torch.Tensor:
    others = {"hinge": relu(1 + logit), "least_squares": logit**2 / 2, "wasserstein": logit}
    return others[name].mean() if name in others else cross_entropy(logit, 0.0)


def g_loss(name: str, logit: torch.Tensor) -> torch.Tensor:
    return {
        "non_saturating": lambda: cross_entropy(logit, 1.0),
        "minimax": lambda: torch.log(1 - torch.sigmoid(logit)).mean(),
        "hinge": lambda: -logit.mean(),
        "least_squares": lambda: ((logit - 1) ** 2).mean() / 2,
        "wasserstein": lambda: -logit.mean(),
    }[name]()


class Oracle:
    """Two passes of D, each differentiated by itself, and a third for G, whose gradients for D are thrown away."""

    def __init__(self, options: Config, netg: nn.Module, netd: nn.Module) -> None:
        self.loss = options.loss
        self.netg, self.netd = plain_generator().double(), plain_discriminator(options.model.d_norm).double()
        # the same names of parameters and buffers: ours have them under "layers."
        nn.ModuleDict({"layers": self.netg}).load_state_dict(netg.state_dict())
        nn.ModuleDict({"layers": self.netd}).load_state_dict(netd.state_dict())
        optimizer = options.optimizer
        betas = (optimizer.beta1, optimizer.beta2)
        self.opt_g = torch.optim.Adam(self.netg.parameters(), lr=optimizer.g_lr, betas=betas, foreach=False)
        self.opt_d = torch.optim.Adam(self.netd.parameters(), lr=optimizer.d_lr, betas=betas, foreach=False)
        self.average = {name: value.clone() for name, value in self.netg.state_dict().items()}

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.netd(x).flatten()

    def slope(self, x: torch.Tensor) -> torch.Tensor:
        x = x.detach().clone().requires_grad_()
        slopes = [torch.autograd.grad(self.logits(one[None])[0], one, create_graph=True)[0] for one in x]
        return torch.stack(slopes).square().sum((1, 2, 3))

    def step(self, real: torch.Tensor, z: torch.Tensor, mix: torch.Tensor) -> tuple[float, float]:
        name = self.loss.name
        fake = self.netg(z)
        self.opt_d.zero_grad()
        loss_real = d_real_loss(name, self.logits(real), self.loss.label_smoothing)
        loss_real.backward()
        loss_fake = d_fake_loss(name, self.logits(fake.detach()))
        loss_fake.backward()
        if self.loss.r1_gamma:
            (self.loss.r1_gamma / 2 * self.slope(real).mean()).backward()
        if self.loss.gp_weight:
            mix = mix[:, None, None, None]
            norm = self.slope(mix * real + (1 - mix) * fake.detach()).sqrt()
            (self.loss.gp_weight * ((norm - 1) ** 2).mean()).backward()
        self.opt_d.step()
        self.opt_g.zero_grad()
        loss_g = g_loss(name, self.logits(fake))
        loss_g.backward()
        self.opt_g.step()
        for key, value in self.netg.state_dict().items():
            old = self.average[key]
            self.average[key] = 0.9 * old + 0.1 * value if value.is_floating_point() else value.clone()
        return float(loss_real.detach() + loss_fake.detach()), float(loss_g.detach())


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    return torch.rand(BATCH, 3, 32, 32, **draw) * 2 - 1, torch.randn(BATCH, NZ, 1, 1, **draw), torch.rand(BATCH, **draw)


def gradient(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name, value in theirs.items():
        mine = ours[f"layers.{name}"]
        if value.is_floating_point():
            assert (mine - value).norm() <= 1e-10 * value.norm(), name
        else:
            assert torch.equal(mine, value), name
    assert len(ours) == len(theirs)


CASES = {name: config(name) for name in LOSSES} | {
    "label smoothing": config("non_saturating", label_smoothing=0.1),
    "R1": config("non_saturating", d_norm="none", r1_gamma=10.0),
    "gradient penalty": config("wasserstein", d_norm="layer", gp_weight=10.0),
    "both penalties": config("hinge", d_norm="layer", r1_gamma=2.0, gp_weight=3.0),
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_step_is_the_algorithm_of_the_paper(options):
    state, engine = ours(options)
    oracle = Oracle(options, state.netg, state.netd)
    start = copy.deepcopy(state.netd.state_dict())
    for iteration in range(ITERATIONS):
        real, z, mix = batch(iteration)
        noise = [Noise(z=z, mix=mix)]
        fake = generate(engine, noise, g_due=True)
        seen = discriminator_step(options, state, engine, [real], fake, noise)
        seen |= generator_step(options, state, engine, fake, noise)
        update_ema(state.ema, state.netg, 0.9)
        loss_d, loss_g = oracle.step(real, z, mix)
        assert seen["loss/d"].mean().item() == pytest.approx(loss_d, rel=1e-10, abs=1e-12)
        assert seen["loss/g"].mean().item() == pytest.approx(loss_g, rel=1e-10, abs=1e-12)
    assert_same(state.netd.state_dict(), oracle.netd.state_dict())
    assert_same(state.netg.state_dict(), oracle.netg.state_dict())
    assert_same(state.ema.state_dict(), oracle.average)
    moved = [
        (value - start[name]).norm() / start[name].norm()
        for name, value in state.netd.state_dict().items()
        if value.dim() == 4
    ]
    assert min(moved) > 0.1


def test_d_judges_real_images_without_regard_to_the_fake_ones():
    """In one pass with common statistics D could tell the halves apart by them."""
    torch.manual_seed(0)
    netd = NetD(MODEL).double()
    real, _, _ = batch(0)
    fake, other, _ = (batch(seed)[0] for seed in (1, 2, 3))
    with torch.no_grad():
        one, two = netd(torch.cat([real, fake]), 2)[:BATCH], netd(torch.cat([real, other]), 2)[:BATCH]
        mixed = netd(torch.cat([real, fake]))[:BATCH]
    assert torch.equal(one, two)
    assert not torch.allclose(one, mixed, rtol=1e-2)


def test_probe_leaves_no_trace():
    options = replace(config(), model=replace(MODEL, spectral_norm=True))
    state, engine = ours(options)
    real, z, _ = batch(0)
    noise = [Noise(z=z)]
    before = copy.deepcopy(state.netd.state_dict())
    first = probe(options, state, engine, [real], noise)["d/real_after"]
    assert torch.equal(first, probe(options, state, engine, [real], noise)["d/real_after"])
    assert all(torch.equal(value, before[name]) for name, value in state.netd.state_dict().items())
    state.netd(real)
    assert not all(torch.equal(value, before[name]) for name, value in state.netd.state_dict().items())


@pytest.mark.parametrize(("penalties", "passes"), [({}, 2), ({"r1_gamma": 1.0}, 3)])
def test_the_power_iteration_advances_once_for_real_and_fake_together(penalties, passes):
    """And once for each penalty and in G's update, as gan/step.py says."""
    model = replace(MODEL, spectral_norm=True, d_norm="layer")
    options = replace(config(), model=model, loss=replace(config().loss, **penalties))
    state, engine = ours(options)
    real, z, _ = batch(0)
    advanced = copy.deepcopy(state.netd)
    for _ in range(passes):
        with torch.no_grad():
            advanced(real)  # the iteration depends on the weights alone, not on what passes through them
    state.opt_d.param_groups[0]["lr"] = state.opt_g.param_groups[0]["lr"] = 0.0
    noise = [Noise(z=z)]
    fake = generate(engine, noise, g_due=True)
    discriminator_step(options, state, engine, [real], fake, noise)
    generator_step(options, state, engine, fake, noise)
    vectors = {name: value for name, value in advanced.state_dict().items() if name.endswith(("._u", "._v"))}
    assert vectors
    assert all(torch.equal(state.netd.state_dict()[name], value) for name, value in vectors.items())


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_accumulated_step_counts_and_statistics(micro_batches):
    """One optimiser step for each network; G's running statistics see each micro-batch once, though made twice."""
    options = replace(config(), accumulate=micro_batches)
    state, engine = ours(options)
    real, z, _ = batch(0)
    noise = [Noise(z=part) for part in z.chunk(micro_batches)]
    fake = generate(engine, noise, g_due=True)
    discriminator_step(options, state, engine, list(real.chunk(micro_batches)), fake, noise)
    generator_step(options, state, engine, fake, noise)
    for optimizer in (state.opt_d, state.opt_g):
        assert {int(slots["step"]) for slots in optimizer.state.values()} == {1}
    counted = {
        name: int(value) for name, value in state.netg.state_dict().items() if name.endswith("num_batches_tracked")
    }
    assert set(counted.values()) == {micro_batches}
    counted = {
        name: int(value) for name, value in state.netd.state_dict().items() if name.endswith("num_batches_tracked")
    }
    assert set(counted.values()) == {3 * micro_batches}  # real, fake, and fake again for G


@pytest.mark.parametrize("micro_batches", [2, 3])
def test_accumulated_step_is_the_mean_over_micro_batches(micro_batches):
    """First for D, then, through the D that has learnt from all of them, for G; each part with its own statistics."""
    options = config()
    state, engine = ours(options)
    oracle = Oracle(options, state.netg, state.netd)
    real, z, _ = batch(0)
    parts = list(zip(real.chunk(micro_batches), z.chunk(micro_batches), strict=True))
    noise = [Noise(z=z_part) for _, z_part in parts]
    fake = generate(engine, noise, g_due=True)
    discriminator_step(options, state, engine, [x for x, _ in parts], fake, noise)
    generator_step(options, state, engine, fake, noise)

    fakes = [oracle.netg(z_part) for _, z_part in parts]
    for (x, _), x_fake in zip(parts, fakes, strict=True):
        loss = d_real_loss("non_saturating", oracle.logits(x), 0.0)
        loss = loss + d_fake_loss("non_saturating", oracle.logits(x_fake.detach()))
        (loss / micro_batches).backward()
    oracle.opt_d.step()
    for x_fake in fakes:
        (g_loss("non_saturating", oracle.logits(x_fake)) / micro_batches).backward()
    oracle.opt_g.step()
    assert_same(state.netd.state_dict(), oracle.netd.state_dict())
    assert_same(state.netg.state_dict(), oracle.netg.state_dict())
    wanted = gradient(oracle.netg)
    assert (gradient(state.netg) - wanted).norm() < 1e-10 * wanted.norm()


def test_accumulated_gradient_is_the_mean_over_micro_batches():
    """Without batch statistics in D micro-batches change nothing; with them each is normalised by itself."""
    for d_norm, same in (("none", True), ("layer", True), ("batch", False)):
        gradients = []
        for parts in (1, 3):
            options = config(d_norm=d_norm)
            state, engine = ours(options)
            real, _, _ = batch(0)
            fake, _, _ = batch(1)
            noise = [Noise(z=torch.zeros(0))] * parts
            discriminator_step(options, state, engine, list(real.chunk(parts)), list(fake.chunk(parts)), noise)
            gradients.append(gradient(state.netd))
        deviation = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
        assert deviation < 1e-12 if same else deviation > 1e-2


def test_gradients_of_d_are_not_touched_by_the_step_of_g():
    options = config()
    state, engine = ours(options)
    real, z, _ = batch(0)
    noise = [Noise(z=z)]
    fake = generate(engine, noise, g_due=True)
    discriminator_step(options, state, engine, [real], fake, noise)
    before = gradient(state.netd)
    generator_step(options, state, engine, fake, noise)
    assert before.norm() > 0
    assert torch.equal(gradient(state.netd), before)


def test_images_of_d_steps_alone_carry_no_graph():
    """Where G is not updated, nothing of its forward pass is kept."""
    _, engine = ours(config())
    _, z, _ = batch(0)
    assert not generate(engine, [Noise(z=z)], g_due=False)[0].requires_grad
    assert not generate(engine, [Noise(z=part) for part in z.chunk(2)], g_due=True)[0].requires_grad
