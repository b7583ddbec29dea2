"""BatchNorm for several batches in one pass: D sees real and fake images together, each with its own statistics.

Normalising both halves by common statistics would be another algorithm, which shows D the half of an image.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import _SpectralNorm

SumOverRanks = Callable[[Tensor], Tensor]  # adds a small float64 tensor up over the ranks that share statistics


class GroupedBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d (same parameters, buffers and state_dict keys) with groups, and statistics that may span processes.

    Forward: x (groups * n, C, H, W), groups one after the other along the batch. Each group is normalised by its own
    mean and variance; the running statistics are updated group after group, as by separate calls.
    """

    sum_over_ranks: SumOverRanks | None = None  # None: the statistics are this process's alone
    ranks: int = 1  # that share statistics; all have the same batch

    def forward(self, x: Tensor, groups: int = 1) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """X (groups * n, C, H, W) -> the same shape."""
        if not self.training:
            return super().forward(x)
        if self.sum_over_ranks is None:
            parts = [super(GroupedBatchNorm, self).forward(part) for part in x.chunk(groups)]
            return parts[0] if groups == 1 else torch.cat(parts)
        y, mean, var = cast(
            tuple[Tensor, Tensor, Tensor],
            SharedBatchNorm.apply(x, self.weight, self.bias, groups, self.eps, self.sum_over_ranks, self.ranks),
        )
        if self.track_running_stats:
            self._update_running(mean, var, count=x.numel() // (x.shape[1] * groups) * self.ranks)
        return y

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Moves the running statistics towards each group's, (groups, C); variance unbiased, as PyTorch keeps it."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        for group_mean, group_var in zip(mean, var, strict=True):
            self.running_mean.lerp_(group_mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((group_var * (count / max(count - 1, 1))).to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked += len(mean)


class SharedBatchNorm(torch.autograd.Function):
    """The normalisation, with one sum over ranks forward and one backward (Ioffe & Szegedy 2015, equations 1-4)."""

    @staticmethod
    def forward(  # noqa: PLR0913 - autograd passes every argument by position
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        sum_over_ranks: SumOverRanks,
        ranks: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (groups * n, C, H, W) -> y like x; mean and biased variance (groups, C), float64."""
        parts = x.chunk(groups)
        local = torch.stack([_mean_and_var(part) for part in parts]).double()  # (groups, 2, C)
        # second moments are added up in float64, where the subtraction below loses nothing that float32 had
        moments = torch.stack([local[:, 0], local[:, 1] + local[:, 0].square()], dim=1)
        mean, square = (sum_over_ranks(moments) / ranks).unbind(1)
        var = (square - mean.square()).clamp_(min=0)
        kept = torch.float64 if x.dtype == torch.float64 else torch.float32
        m, v = mean.to(kept), var.to(kept)
        y = torch.cat([_affine(part, m[i], v[i], weight, bias, eps) for i, part in enumerate(parts)])
        ctx.save_for_backward(x, weight, m, v)
        ctx.groups, ctx.eps, ctx.sum_over_ranks, ctx.ranks = groups, eps, sum_over_ranks, ranks
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator hides the parameters' names
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        """dx = w / sigma * (dy - mean(dy) - xhat * mean(dy * xhat)), means over all ranks; dw and db of this rank."""
        x, weight, mean, var = ctx.saved_tensors
        parts = x.chunk(ctx.groups)
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        dys = grads[0].contiguous(memory_format=layout).chunk(ctx.groups)
        sums = torch.stack(
            [_sums(dy, part, mean[i], var[i], ctx.eps) for i, (dy, part) in enumerate(zip(dys, parts, strict=True))]
        )
        count = parts[0].numel() // x.shape[1] * ctx.ranks
        # a copy, for the sum is made in place and this rank's own sums are still wanted
        means = (ctx.sum_over_ranks(sums.to(torch.float64, copy=True)) / count).to(mean.dtype)
        scale = weight * (var + ctx.eps).rsqrt()  # (groups, C)
        dx = torch.cat(
            [
                # the part that depends on x is itself an affine map of xhat
                _affine(part, mean[i], var[i], -scale[i] * means[i, 1], -scale[i] * means[i, 0], ctx.eps).addcmul_(
                    dy, scale[i].to(dy.dtype).view(1, -1, 1, 1)
                )
                for i, (dy, part) in enumerate(zip(dys, parts, strict=True))
            ]
        )
        dbias, dweight = sums.sum(0).to(weight.dtype)
        return dx, dweight, dbias, None, None, None, None


def _mean_and_var(x: Tensor) -> Tensor:
    """(2, C): mean and biased variance over batch and space. Several times faster than torch.var_mean on CPU."""
    kept = torch.float64 if x.dtype == torch.float64 else torch.float32
    scratch = torch.zeros(2, x.shape[1], dtype=kept, device=x.device)
    mean, var = torch.ops.aten.batch_norm_update_stats(x, scratch[0], scratch[1], 1.0)
    return torch.stack([mean.to(kept), var.to(kept)])


def _affine(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """weight * (x - mean) / sqrt(var + eps) + bias in one pass, in the dtype of x."""
    return functional.batch_norm(x, mean, var, weight.to(mean.dtype), bias.to(mean.dtype), False, 0.0, eps)


def _sums(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """(2, C): sums of dy and of dy * xhat over batch and space."""
    ones, inv_std = torch.ones_like(mean), (var + eps).rsqrt()
    # as if these were the statistics of this batch, for CUDA's kernel takes no others; only its sums are asked for
    _, dy_xhat, dy_sum = torch.ops.aten.native_batch_norm_backward(
        dy, x, ones, None, None, mean, inv_std, True, eps, [False, True, True]
    )
    return torch.stack([dy_sum, dy_xhat])


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """A forward pass in here changes nothing but its result: BatchNorm still normalises by the batch, but neither its
    running statistics nor the singular vectors of spectral normalisation move on.
    """
    norms = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    spectral = [layer for layer in network.modules() if isinstance(layer, _SpectralNorm)]
    for layer in norms:
        layer.track_running_stats = False
    for layer in spectral:
        layer.eval()
    try:
        yield
    finally:
        for layer in norms:
            layer.track_running_stats = True
        for layer in spectral:
            layer.train(network.training)
