"""The synchronised BatchNorm against nn.BatchNorm2d on the whole batch."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from support.waiting import LIMIT
from torch import Tensor, nn

from dcgan_dist.gan.layers import GroupedBatchNorm, SharedBatchNorm

WIDTH = 5
EPS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


def alone(tensor: Tensor) -> Tensor:
    """The sum over the only rank; in place and returned, as all_reduce does it."""
    return tensor


class Team:
    """Ranks that are threads here."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._barrier = Barrier(ranks)
        self._shown: dict[int, Tensor] = {}

    def sum_for(self, rank: int) -> Callable[[Tensor], Tensor]:
        def sum_over_ranks(tensor: Tensor) -> Tensor:
            self._shown[rank] = tensor.clone()
            self._barrier.wait(LIMIT)
            tensor.copy_(torch.stack([self._shown[other] for other in range(self.ranks)]).sum(0))
            self._barrier.wait(LIMIT)
            return tensor

        return sum_over_ranks

    def run(self, act: Callable[[int], tuple]) -> list[tuple]:
        with ThreadPoolExecutor(self.ranks) as pool:
            return list(pool.map(act, range(self.ranks)))


def some_layer() -> nn.BatchNorm2d:
    """A layer in the middle of training."""
    torch.manual_seed(1)
    layer = nn.BatchNorm2d(WIDTH)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 1.0, 0.5)
    layer.running_mean = torch.randn(WIDTH)
    layer.running_var = torch.rand(WIDTH) + 0.5
    return layer


def twin(layer: nn.BatchNorm2d, sum_over_ranks: Callable[[Tensor], Tensor] | None, ranks: int) -> GroupedBatchNorm:
    result = GroupedBatchNorm(WIDTH)
    result.load_state_dict(layer.state_dict())  # the same names
    result.sum_over_ranks, result.ranks = sum_over_ranks, ranks
    return result.to(layer.weight.dtype)


def some_input(count: int, layout: torch.memory_format = torch.contiguous_format) -> tuple[Tensor, Tensor]:
    """Far from mean 0 and variance 1; and a gradient for the output."""
    torch.manual_seed(2)
    scale, shift = torch.rand(WIDTH, 1, 1) * 3 + 0.2, torch.randn(WIDTH, 1, 1) * 4
    x = torch.randn(count, WIDTH, 3, 4) * scale + shift
    return x.contiguous(memory_format=layout), torch.randn_like(x)


def run_layer(layer: nn.Module, x: Tensor, dy: Tensor, *groups: int) -> dict[str, Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x, *groups)
    y.backward(dy)
    assert x.grad is not None
    assert y.dtype == x.grad.dtype == x.dtype
    gradients = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "dx": x.grad, **gradients, **dict(layer.named_buffers())}


def assert_close(ours: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        error = (ours[name].double() - value.double()).norm() / value.double().norm()
        assert error < tolerance, f"{name}: {error}"


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shared", [False, True], ids=["one process", "shared"])
def test_equals_batchnorm(dtype, layout, shared):
    """In every precision that a forward pass may have, with weights in float32 (or float64), against float64."""
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    layer = some_layer().to(weights)
    x, dy = (tensor.to(dtype) for tensor in some_input(6, layout))
    wanted = run_layer(copy.deepcopy(layer).double(), x.double(), dy.double())
    ours = run_layer(twin(layer, alone if shared else None, 1), x, dy)
    assert ours["y"].is_contiguous(memory_format=layout)
    assert ours["dx"].is_contiguous(memory_format=layout)
    assert_close(ours, wanted, EPS[dtype])


@pytest.mark.parametrize("shared", [False, True], ids=["one process", "shared"])
def test_groups_are_separate_calls(shared):
    """Output, gradients, running statistics and their counter, as of one call after the other."""
    layer = some_layer().double()
    x, dy = (tensor.double() for tensor in some_input(6))
    x[3:] += 2  # the second half is another distribution
    wanted_layer = copy.deepcopy(layer)
    parts = [run_layer(wanted_layer, x[part], dy[part]) for part in (slice(0, 3), slice(3, 6))]
    wanted = parts[1] | {name: torch.cat([part[name] for part in parts]) for name in ("y", "dx")}
    ours = run_layer(twin(layer, alone if shared else None, 1), x, dy, 2)
    assert_close(ours, wanted, 1e-12)
    assert int(ours["num_batches_tracked"]) == 2


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_equal_the_whole_batch(dtype, ranks):
    """Two groups over several ranks. Output and input gradient are slices of the whole batch's, parameter gradients add
    up to it, and the running statistics are everywhere the whole batch's.
    """
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    layer = some_layer().to(weights)
    per_rank = 2
    x, dy = (tensor.to(dtype) for tensor in some_input(2 * ranks * per_rank))
    wanted = run_layer(twin(copy.deepcopy(layer).double(), None, 1), x.double(), dy.double(), 2)
    team = Team(ranks)

    def slice_of(tensor: Tensor, rank: int) -> Tensor:
        return torch.cat([half[rank * per_rank : (rank + 1) * per_rank] for half in tensor.chunk(2)])

    def act(rank: int) -> tuple:
        return (run_layer(twin(layer, team.sum_for(rank), ranks), slice_of(x, rank), slice_of(dy, rank), 2),)

    results = [result for (result,) in team.run(act)]
    for rank, ours in enumerate(results):
        expected = {name: slice_of(value, rank) if name in ("y", "dx") else value for name, value in wanted.items()}
        for name in ("weight", "bias"):
            ours[name] = (
                torch.stack([result[name].clone() for result in results]).sum(0) if rank == 0 else expected[name]
            )
        assert_close(ours, expected, EPS[dtype])


def test_own_parameter_gradients_stay_own():
    """DDP averages them; were they already the sum over ranks, they would count twice."""
    layer = some_layer().double()
    x, dy = (tensor.double() for tensor in some_input(4))
    one = run_layer(twin(layer, lambda tensor: tensor.mul_(2), 2), x, dy)
    wanted = run_layer(copy.deepcopy(layer), x, dy)
    assert_close({name: one[name] for name in ("y", "dx", "weight", "bias")},
                 {name: wanted[name] for name in ("y", "dx", "weight", "bias")}, 1e-12)  # fmt: skip


def test_large_mean_loses_nothing():
    """The variance is not the small difference of two large numbers."""
    layer = some_layer()
    x, dy = some_input(6)
    x = x + 3000
    wanted = run_layer(copy.deepcopy(layer).double(), x.double(), dy.double())
    plain = run_layer(copy.deepcopy(layer), x, dy)
    ours = run_layer(twin(layer, alone, 1), x, dy)
    for name in ("y", "dx"):
        errors = [(result[name].double() - wanted[name]).norm() / wanted[name].norm() for result in (ours, plain)]
        assert errors[0] < 2 * errors[1] + 1e-6, name


def test_gradcheck():
    torch.manual_seed(3)
    x = torch.randn(4, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda *inputs: SharedBatchNorm.apply(*inputs, 2, 1e-5, alone, 1)[0], (x, weight, bias)
    )


def test_second_derivative_is_refused():
    """Gradient penalties are not defined through batch statistics; asking for one must not give a wrong number."""
    layer = twin(some_layer().double(), alone, 1)
    x = some_input(4)[0].double().requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_evaluation_uses_the_running_statistics():
    layer = some_layer()
    x, _ = some_input(6)
    asked: list[Tensor] = []
    ours = twin(layer, lambda tensor: asked.append(tensor) or tensor, 1).eval()
    assert torch.equal(ours(x, 2), layer.eval()(x))
    assert not asked
