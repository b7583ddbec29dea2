"""What a training did, iteration by iteration, as plain arrays."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from torch import nn
from torch.optim import Optimizer

from dcgan_dist import cli
from dcgan_dist.config import Config
from dcgan_dist.parallel.precision import arithmetic
from dcgan_dist.parallel.world import World, launch
from dcgan_dist.run.session import Session
from dcgan_dist.run.start import open_session
from dcgan_dist.train import train

Arrays = dict[str, np.ndarray]


def options(
    shards: str | Path, run_dir: Path, changes: str = "", *, batch: int = 12, iterations: int = 10
) -> list[str]:
    """A training of tiny networks in float64; later options win."""
    fixed = (
        f"--run_dir {run_dir} --data.shards {shards} --images {batch * iterations} --batch_size {batch} "
        "--precision fp64 --model.image_size 32 --model.nz 8 --model.ngf 4 --model.ndf 4 "
        f"--log.every {batch * 2} --log.samples 1 --trackers=wandb --log.no_page --wandb.mode disabled"
    )
    return [*fixed.split(), *changes.split()]


def join(options: list[str], world_size: int) -> tuple[Config, World]:
    """This rank's configuration and world, which must be of the size that the test meant."""
    config = cli.load(options)
    world = launch(config)
    assert world.size == world_size
    return config, world


def begin(options: list[str], world_size: int) -> Session:
    config, world = join(options, world_size)
    return open_session(config, cli.dump(config), world, arithmetic(config.precision, world.device))


def record_training(options: list[str], world_size: int) -> tuple[Arrays, str]:
    """Trains; returns what rank 0 recorded (nothing on other ranks), and a digest of all that this rank recorded.

    "3/grad_d/layers.0.weight" is a gradient as D's optimiser met it in the fourth iteration, "3/netd/.." the network
    after it; "netg/..", "netd/.." and "netg_ema/.." are parameters and buffers at the end.
    """
    session = begin(options, world_size)
    recorded: Arrays = {}
    for short, network, optimizer in (
        ("d", session.state.netd, session.state.opt_d),
        ("g", session.state.netg, session.state.opt_g),
    ):
        _record_steps(session, recorded, short, network, optimizer)
    assert train(session)
    for name in ("netg", "netd", "netg_ema"):
        recorded |= {f"{name}/{key}": value.numpy().copy() for key, value in session.state.tensors()[name].items()}
    digest = xxhash.xxh3_64()
    for key in sorted(recorded):
        digest.update(key.encode() + recorded[key].tobytes())
    return recorded if session.world.main else {}, digest.hexdigest()


def _record_steps(session: Session, recorded: Arrays, short: str, network: nn.Module, optimizer: Optimizer) -> None:
    def gradients(*_: Any) -> None:
        for key, value in network.named_parameters():
            assert value.grad is not None
            recorded[f"{session.state.iteration}/grad_{short}/{key}"] = value.grad.numpy().copy()

    def weights(*_: Any) -> None:
        for key, value in network.state_dict().items():
            recorded[f"{session.state.iteration}/net{short}/{key}"] = value.numpy().copy()

    optimizer.register_step_pre_hook(gradients)
    optimizer.register_step_post_hook(weights)


CLOCKED = ("time/", "speed/", "rank/", "save/", "rollback_time")


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """The records of metrics.jsonl, without what depends on the clock."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if not name.startswith(CLOCKED)} for record in records]


def deviations(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """Norm of the difference over the norm of `theirs`, tensor by tensor; names, shapes and types must be the same."""
    assert ours.keys() == theirs.keys()
    return {name: _deviation(value, theirs[name]) for name, value in ours.items()}


def _deviation(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    difference, norm = np.linalg.norm(ours.astype(np.float64) - theirs), np.linalg.norm(theirs.astype(np.float64))
    return float(difference / norm) if norm else float(difference)
