import json

import pytest
import torch
from torch import nn
from torch.optim import Adam

from dcgan_dist.config import Config
from dcgan_dist.config.groups import ModelConfig, OptimizerConfig
from dcgan_dist.gan.state import TrainState, create_state

CPU = torch.device("cpu")
CONFIG = Config(
    model=ModelConfig(image_size=32, nz=4, ngf=2, ndf=2), optimizer=OptimizerConfig(g_lr=0.01, d_lr=0.02, beta1=0.4)
)
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def _step(network: nn.Module, optimizer: Adam, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    assert all(p.grad is not None for p in network.parameters())


def learn(state: TrainState, steps: int, seed: int = 0) -> None:
    """A few updates of both networks by any gradients."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(state.netg.parameters()).dtype
    for _ in range(steps):
        z = torch.randn(4, 4, 1, 1, generator=generator).to(dtype)
        fake = state.netg(z)
        _step(state.netd, state.opt_d, state.netd(fake.detach()).square().mean())
        _step(state.netg, state.opt_g, -state.netd(fake).mean())
        state.images += 4
        state.iteration += 1


def everything(state: TrainState) -> dict[str, torch.Tensor]:
    return {f"{file}/{name}": value for file, part in state.tensors().items() for name, value in part.items()}


def copied(state: TrainState):
    """As a file would hold it."""
    tensors = {file: {n: v.clone().contiguous() for n, v in part.items()} for file, part in state.tensors().items()}
    return tensors, json.loads(json.dumps(state.numbers()))


@FLOATS
def test_what_is_saved_and_loaded_goes_on_to_the_same_bits(dtype):
    state, other = (create_state(CONFIG, CPU, dtype, scaled=False) for _ in range(2))
    learn(state, 3)
    learn(other, 1, seed=9)  # must all be overwritten
    other.load(*copied(state))
    assert (other.images, other.iteration) == (12, 3)
    for _ in range(2):
        ours, theirs = everything(state), everything(other)
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]), name
            assert (value.dtype, value.stride()) == (theirs[name].dtype, theirs[name].stride()), name
        learn(state, 2, seed=1)
        learn(other, 2, seed=1)


def test_a_state_from_before_the_first_step_leaves_nothing_of_another():
    fresh, other = (create_state(CONFIG, CPU, torch.float32, scaled=False) for _ in range(2))
    learn(other, 2, seed=9)
    other.load(*copied(fresh))
    learn(fresh, 1)
    learn(other, 1)
    assert all(torch.equal(value, everything(other)[name]) for name, value in everything(fresh).items())


@FLOATS
def test_adams_state_has_the_names_of_the_parameters(dtype):
    state = create_state(CONFIG, CPU, dtype, scaled=False)
    assert state.tensors()["optimizer_g"] == {}
    learn(state, 2)
    for file, network in (("optimizer_g", state.netg), ("optimizer_d", state.netd)):
        saved, parameters = state.tensors()[file], dict(network.named_parameters())
        slots = ("step", "exp_avg", "exp_avg_sq")
        assert set(saved) == {f"{name}/{slot}" for name in parameters for slot in slots}
        for name, parameter in parameters.items():
            assert saved[f"{name}/step"] == 2
            assert saved[f"{name}/exp_avg"].shape == parameter.shape
            assert saved[f"{name}/exp_avg"].dtype == dtype
    assert "layers.0.weight/exp_avg" in state.tensors()["optimizer_g"]


def test_the_optimisers_are_those_of_the_options():
    state = create_state(CONFIG, CPU, torch.float32, scaled=False)
    for optimizer, network, lr in ((state.opt_g, state.netg, 0.01), (state.opt_d, state.netd, 0.02)):
        (group,) = optimizer.param_groups
        assert isinstance(optimizer, Adam)
        assert (group["lr"], group["betas"], group["weight_decay"]) == (lr, (0.4, 0.999), 0)
        assert [id(p) for p in group["params"]] == [id(p) for p in network.parameters()]


def test_the_seed_makes_the_weights_and_the_average_begins_at_g():
    state, same = (create_state(CONFIG, CPU, torch.float32, scaled=False) for _ in range(2))
    other = create_state(Config(seed=1, model=CONFIG.model), CPU, torch.float32, scaled=False)
    for name, value in everything(state).items():
        assert torch.equal(value, everything(same)[name])
    for file in ("netg", "netd"):
        assert not torch.equal(*(one.tensors()[file]["layers.0.weight"] for one in (state, other)))
    assert all(torch.equal(v, state.netg.state_dict()[n]) for n, v in state.ema.state_dict().items())
    assert not state.ema.training
    assert not any(p.requires_grad for p in state.ema.parameters())


def rename(part):
    part["nobody/exp_avg"] = part.pop("layers.0.weight/exp_avg")


def broadcastable(part):
    part["layers.0.weight/exp_avg"] = part["layers.0.weight/exp_avg"][:1]


def wider(part):
    part["layers.0.weight"] = torch.cat([part["layers.0.weight"]] * 2)


def incomplete(part):
    del part["layers.0.weight"]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("optimizer_g", rename),
        ("optimizer_d", rename),
        ("optimizer_g", broadcastable),
        ("optimizer_d", broadcastable),
        ("netg", wider),
        ("netd", wider),
        ("netg_ema", wider),
        ("netg", incomplete),
        ("netd", incomplete),
        ("netg_ema", incomplete),
    ],
)
def test_another_networks_state_is_refused(file, damage):
    state = create_state(CONFIG, CPU, torch.float32, scaled=False)
    learn(state, 1)
    tensors, numbers = copied(state)
    damage(tensors[file])
    with pytest.raises((KeyError, RuntimeError)):
        state.load(tensors, numbers)


def test_loss_scales_are_kept():
    state, other = (create_state(CONFIG, CPU, torch.float32, scaled=True) for _ in range(2))
    state.scaler_g.scale(torch.ones(()))
    state.scaler_g.update(new_scale=128.0)
    tensors, numbers = copied(state)
    other.load(tensors, numbers)
    assert (other.scaler_g.get_scale(), other.scaler_d.get_scale()) == (128.0, state.scaler_d.get_scale())
    assert create_state(CONFIG, CPU, torch.float32, scaled=False).numbers()["scaler_g"] == {}
