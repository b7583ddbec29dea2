"""Everything that training changes: the networks, their optimisers and scalers, the average of G, and the progress."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Adam

from dcgan_dist.config import Config
from dcgan_dist.gan.networks import NetD, NetG
from dcgan_dist.gan.nonfinite import NonFiniteDetector


@dataclass(kw_only=True)
class TrainState:
    """What a checkpoint holds and a step changes."""

    netg: NetG
    netd: NetD
    ema: NetG
    opt_g: Adam
    opt_d: Adam
    scaler_g: GradScaler  # loss scale of G's gradients, in fp16; does nothing in other precisions; each network has one
    scaler_d: GradScaler
    detector_g: NonFiniteDetector
    detector_d: NonFiniteDetector
    images: int = 0  # real images seen by all ranks: the position in the data, the noise and every schedule
    iteration: int = 0
    rollbacks: int = 0  # part of the key of the noise
    # signs of collapse: consecutive reports that showed one, and the images seen before the first of them
    signs: dict[str, list[int]] = field(default_factory=dict)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All tensors of the state: file name -> tensor name -> tensor."""
        return {
            "netg": self.netg.state_dict(),
            "netd": self.netd.state_dict(),
            "netg_ema": self.ema.state_dict(),
            "optimizer_g": optimizer_tensors(self.opt_g, self.netg),
            "optimizer_d": optimizer_tensors(self.opt_d, self.netd),
        }

    def numbers(self) -> dict[str, Any]:
        """The rest, as JSON."""
        return {
            "images": self.images,
            "iteration": self.iteration,
            "rollbacks": self.rollbacks,
            "signs": dict(self.signs),
            "scaler_g": self.scaler_g.state_dict(),
            "scaler_d": self.scaler_d.state_dict(),
        }

    def load(self, tensors: dict[str, dict[str, Tensor]], numbers: dict[str, Any]) -> None:
        """Restores what `tensors` and `numbers` gave. Raises RuntimeError or KeyError when names or shapes differ."""
        self.netg.load_state_dict(tensors["netg"])
        self.netd.load_state_dict(tensors["netd"])
        self.ema.load_state_dict(tensors["netg_ema"])
        load_optimizer(self.opt_g, self.netg, tensors["optimizer_g"])
        load_optimizer(self.opt_d, self.netd, tensors["optimizer_d"])
        for name in ("scaler_g", "scaler_d"):
            if numbers[name]:
                getattr(self, name).load_state_dict(numbers[name])
        self.images, self.iteration = numbers["images"], numbers["iteration"]
        self.rollbacks, self.signs = numbers.get("rollbacks", 0), dict(numbers.get("signs", {}))
        for detector in (self.detector_g, self.detector_d):
            detector.reset()


def create_state(config: Config, device: torch.device, dtype: torch.dtype, scaled: bool) -> TrainState:
    """Fresh networks from the seed, the same on every rank and device. `scaled`: fp16's loss scaling."""
    torch.manual_seed(config.seed)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format

    def place(network: NetG | NetD) -> Any:
        return network.to(device, dtype).to(memory_format=layout)

    netg, netd = place(NetG(config.model)), place(NetD(config.model))
    ema = place(NetG(config.model)).eval().requires_grad_(False)
    ema.load_state_dict(netg.state_dict())
    options = config.optimizer

    def adam(network: nn.Module, lr: float) -> Adam:
        return Adam(network.parameters(), lr=lr, betas=(options.beta1, options.beta2), fused=True)

    opt_g, opt_d = adam(netg, options.g_lr), adam(netd, options.d_lr)
    return TrainState(
        netg=netg,
        netd=netd,
        ema=ema,
        opt_g=opt_g,
        opt_d=opt_d,
        scaler_g=GradScaler(device.type, enabled=scaled),
        scaler_d=GradScaler(device.type, enabled=scaled),
        detector_g=NonFiniteDetector(netg, opt_g, scaled),
        detector_d=NonFiniteDetector(netd, opt_d, scaled),
    )


def optimizer_tensors(optimizer: Adam, network: nn.Module) -> dict[str, Tensor]:
    """Adam's state under the names of the parameters: 'layers.0.weight/exp_avg'."""
    return {
        f"{name}/{slot}": value
        for name, parameter in network.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: Adam, network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of optimizer_tensors. Raises KeyError for a name that is no parameter's."""
    parameters = dict(network.named_parameters())
    for parameter in parameters.values():
        optimizer.state[parameter].clear()
    for full_name, value in tensors.items():
        name, slot = full_name.split("/")
        parameter = parameters[name]
        # moments take the parameter's memory order; Adam's step counter is a float32 scalar of its own
        optimizer.state[parameter][slot] = _like(value, parameter) if value.dim() else value.to(parameter.device)


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy of `value` with the device, dtype and memory order of the parameter. RuntimeError if its shape differs."""
    if value.shape != parameter.shape:
        raise RuntimeError(f"shape {tuple(value.shape)} instead of {tuple(parameter.shape)}")
    return torch.empty_like(parameter, requires_grad=False).copy_(value)
