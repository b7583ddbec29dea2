"""Detection of inf and NaN in losses and gradients, without a host synchronisation in every iteration.

From the first update whose gradient is inf or NaN, the optimiser leaves its network and its moments unchanged; the
device decides this without the host. Gradients are averages over all ranks, so all ranks decide alike. In fp16 the loss
scaler skips such updates.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Adam


@dataclass(frozen=True, kw_only=True)
class NonFinite:
    """The first number of an update that was not finite."""

    images: int  # seen before the iteration
    in_gradient: bool  # found in a gradient, which is the same on all ranks; otherwise in this rank's loss
    text: str  # which tensor, how much of it is bad, and the range of the rest


class NonFiniteDetector:
    """Keeps a network's losses and gradient norms from one check to the next: some kB per update."""

    def __init__(self, network: nn.Module, optimizer: Adam, scaled: bool) -> None:
        """`scaled`: the optimiser is stepped by a loss scaler, which skips updates itself."""
        self._parameters = list(network.named_parameters())
        self._updates: list[tuple[int, dict[str, Tensor], Tensor]] = []
        self._broken = torch.zeros((), device=self._parameters[0][1].device)
        if not scaled:
            vars(optimizer)["found_inf"] = self._broken  # what a scaler sets: 1 makes the fused kernel do nothing

    def gradient(self, norm: Tensor) -> None:
        """Takes the norm of the complete gradient. Call it before the optimiser steps."""
        self._broken.logical_or_(norm * 0)  # 0, or NaN, which counts as true

    def update(self, images: int, scalars: Mapping[str, Tensor], norms: Tensor) -> None:
        """Takes the scalars of an update (losses are (n,)) and the norm of each parameter's gradient."""
        losses = {name: values for name, values in scalars.items() if name.startswith("loss/")}
        self._updates.append((images, losses, norms))

    def look(self) -> NonFinite | None:
        """The first fault since the last look; waits for the device."""
        updates, self._updates = self._updates, []
        if not updates:
            return None
        kept = [norms for _, _, norms in updates] + [torch.cat(list(losses.values())) for _, losses, _ in updates]
        if bool(torch.cat(kept).isfinite().all()):
            return None
        return next(fault for fault in (self._fault(*update) for update in updates) if fault is not None)

    def reset(self) -> None:
        """Forgets everything. Call it after the network was restored."""
        self._updates = []
        self._broken.zero_()

    def _fault(self, images: int, losses: dict[str, Tensor], norms: Tensor) -> NonFinite | None:
        for name, values in losses.items():
            if problem := not_finite(values):
                return NonFinite(images=images, in_gradient=False, text=f"{name}: {problem}")
        bad = [k for k, fine in enumerate(norms.isfinite().tolist()) if not fine]
        if not bad:
            return None
        first = bad[-1]  # the gradient comes from the end of the network
        name, parameter = self._parameters[first]
        details = f"{len(bad)} of {len(norms)} parameters are affected{_range(norms[norms.isfinite()], 'norms')}"
        # only the newest gradient exists; since the bad update the network is unchanged
        newest = not_finite(parameter.grad) if parameter.grad is not None else ""
        details += f"; as it is now, {newest}" if newest else ""
        text = f"the gradient of {name}: its norm is {float(norms[first])} ({details})"
        return NonFinite(images=images, in_gradient=True, text=text)


def first_not_finite(files: Mapping[str, Mapping[str, Tensor]]) -> tuple[str, Tensor] | None:
    """'FILE: NAME' of the first tensor that holds an inf or NaN, and the tensor; waits for the device once."""
    named = {
        f"{file}: {name}": tensor
        for file, tensors in files.items()
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }
    if not named:
        return None
    norms = torch._foreach_norm(list(named.values()), float("inf"))  # pyright: ignore[reportPrivateImportUsage]
    fine = torch.stack([norm.double() for norm in norms]).isfinite().tolist()
    return next((item for item, is_fine in zip(named.items(), fine, strict=True) if not is_fine), None)


def not_finite(values: Tensor) -> str:
    """The number of elements that are inf or NaN, and the range of the others, as text; empty if there are none."""
    fine = values.detach()[values.isfinite()]
    bad = values.numel() - fine.numel()
    return f"{bad} of {values.numel()} numbers are not finite{_range(fine)}" if bad else ""


def _range(values: Tensor, of: str = "") -> str:
    if not values.numel():
        return ""
    what = f"the {of} of the others" if of else "the others"
    return f", {what} lie in [{float(values.min()):.3g}, {float(values.max()):.3g}]"
