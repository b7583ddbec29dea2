"""The arithmetic of the networks on this device."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from dcgan_dist.config.groups import Precision


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """A precision: dtype of weights and optimiser, dtype of the forward pass, loss scaling."""

    name: Precision
    reason: str = "as asked"
    weights: torch.dtype = torch.float32
    forward: torch.dtype | None = None
    scaled: bool = False

    def autocast(self, device: torch.device) -> Callable[[], AbstractContextManager]:
        """A context for each forward pass, without a cache, because the networks change in between."""
        enabled = self.forward is not None
        return lambda: torch.autocast(device.type, dtype=self.forward, enabled=enabled, cache_enabled=False)


def arithmetic(precision: Precision, device: torch.device) -> Arithmetic:
    """Resolves `auto` for the device."""
    if precision == "auto":
        if device.type != "cuda":
            return Arithmetic(name="fp32", reason="the reference on CPUs, where bf16 is not always faster")
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return replace(PRECISIONS["bf16"], reason="the GPU supports it (--precision fp32 turns it off)")
        return Arithmetic(name="fp32", reason="the GPU has no bf16; it has --precision fp16")
    return PRECISIONS[precision]


PRECISIONS: dict[Precision, Arithmetic] = {
    "fp32": Arithmetic(name="fp32"),
    "bf16": Arithmetic(name="bf16", forward=torch.bfloat16),
    "fp16": Arithmetic(
        name="fp16", reason="as asked, with a loss scale for each network", forward=torch.float16, scaled=True
    ),
    "fp64": Arithmetic(name="fp64", reason="as asked, for proofs", weights=torch.float64),
}
