"""The run that a machine is examined for, and what several checks want to know of it."""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import torch

from dcgan_dist.commands.doctor.spawn import RanksError, local_world, run_locally
from dcgan_dist.commands.doctor.talk import Talk, talk
from dcgan_dist.config import Config
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.loading import open_data
from dcgan_dist.errors import UserError
from dcgan_dist.gan.networks import NetD, NetG, layer_table
from dcgan_dist.parallel.precision import Arithmetic, arithmetic
from dcgan_dist.parallel.world import World
from dcgan_dist.run.checkpoint import TENSOR_FILES

FILES = len(TENSOR_FILES) + 3  # of one checkpoint, with its state, its manifest and its folder
ADAM = 2  # numbers that Adam keeps for each parameter


@dataclass
class Case:
    """A configuration on this machine."""

    config: Config
    deep: bool = False
    """Read and decode all shards."""
    world: World | None = None
    """The ranks that were launched; None: this process is alone."""

    @cached_property
    def device(self) -> torch.device:
        """Where a rank of this machine will compute."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def local_ranks(self) -> int:
        """Ranks that will share this machine, as far as that is known: those launched, or asked for, or one a GPU."""
        if self.world is not None:
            return self.world.local_size
        gpus = torch.cuda.device_count()
        return min(self.config.world_size or gpus, gpus) if gpus else self.config.world_size or 1

    @cached_property
    def arithmetic(self) -> Arithmetic:
        """What `--precision` stands for here."""
        return arithmetic(self.config.precision, self.device)

    @cached_property
    def networks(self) -> "Networks":
        """How large they are."""
        return measure_networks(self.config, self.arithmetic.weights)

    @property
    def data(self) -> Corpus | list[str] | None:
        """The shards, all opened, once; None: the embedded set. Raises UserError for any bad one."""
        data, error = self._opened
        if error is not None:
            raise error
        return data

    @cached_property
    def _opened(self) -> tuple[Corpus | list[str] | None, UserError | None]:
        if not self.config.data.shards:
            return None, None
        try:
            return open_data(self.config, lambda _: None), None
        except UserError as error:
            return None, error

    @property
    def shards(self) -> int:
        """How many there are; 0: not known."""
        data, _ = self._opened
        return len(data.shards) if isinstance(data, Corpus) else len(data or ())

    @property
    def talk(self) -> Talk:
        """What several ranks did together: those that were launched, else some that are started here, once.

        Raises RanksError.
        """
        talk, error = self._talked
        if error is not None or talk is None:
            raise error or RanksError("no answer")
        return talk

    @cached_property
    def _talked(self) -> tuple[Talk | None, RanksError | None]:
        try:
            if self.world is None:
                return Talk(**run_locally(self.config, *local_world(self.config))), None
            return talk(self.config, self.world), None
        except RanksError as error:
            return None, error
        except RuntimeError as error:  # of torch: another rank is gone, or does not answer
            return None, RanksError(" ".join(str(error).split())[:300])


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Bytes of the networks of a run, without making them."""

    gradients: int
    """Of both networks."""
    checkpoint: int
    """The tensors of one: three networks, and Adam's state of two."""
    largest_file: int
    """Of a checkpoint."""
    outputs: int
    """Of all layers for one image: G's once and D's twice, for a real and a made one."""


def measure_networks(config: Config, weights: torch.dtype) -> Networks:
    """Counts on torch's meta device, which holds no numbers. `weights`: dtype of the parameters."""
    model = config.model
    with torch.device("meta"):
        netg, netd = NetG(model).to(weights), NetD(model).to(weights)
        z = torch.zeros(1, model.nz, 1, 1, dtype=weights)
        x = torch.zeros(1, model.channels, model.image_size, model.image_size, dtype=weights)
        outputs = _outputs(netg, z) + 2 * _outputs(netd, x)
    files: list[int] = []
    for network in (netg, netd):
        tensors = sum(tensor.nbytes for tensor in network.state_dict().values())
        files += [tensors, sum(ADAM * p.nbytes + 4 for p in network.parameters())]  # and its count of steps
    return Networks(
        gradients=sum(p.nbytes for network in (netg, netd) for p in network.parameters()),
        checkpoint=sum(files) + files[0],  # the average of G
        largest_file=max(files),
        outputs=outputs * weights.itemsize,
    )


def _outputs(network: NetG | NetD, example: torch.Tensor) -> int:
    return sum(prod(map(int, shape.split(" x "))) for _, shape, _ in layer_table(network, example))


def nearest(path: Path) -> Path:
    """The path itself if it is a folder, else the nearest one above it."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
