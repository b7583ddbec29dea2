"""What the checks share."""

from dataclasses import dataclass
from functools import cached_property

import torch

from dcgan_dist.config import Config
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.loading import open_data
from dcgan_dist.data.reading.stream import StreamUrls
from dcgan_dist.errors import UserError
from dcgan_dist.gan.network_sizes import NetworkSizes, measure_networks
from dcgan_dist.parallel.precision import Arithmetic, arithmetic
from dcgan_dist.parallel.world import World


@dataclass
class Context:
    """A configuration on this machine."""

    config: Config
    world: World | None = None  # the launched ranks; None: this process is alone

    @cached_property
    def device(self) -> torch.device:
        """The device of a rank on this machine."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def local_ranks(self) -> int:
        """Ranks on this machine: those launched, or requested, or one for each GPU."""
        if self.world is not None:
            return self.world.local_size
        gpus = torch.cuda.device_count()
        return min(self.config.world_size or gpus, gpus) if gpus else self.config.world_size or 1

    @cached_property
    def arithmetic(self) -> Arithmetic:
        """The meaning of `--precision` on this device."""
        return arithmetic(self.config.precision, self.device)

    @cached_property
    def networks(self) -> NetworkSizes:
        """The sizes of the networks."""
        return measure_networks(self.config, self.arithmetic.weights)

    @property
    def data(self) -> Corpus | StreamUrls | None:
        """The shards, all opened, once; None: the embedded set. Raises UserError if one cannot be opened."""
        if isinstance(self._opened, UserError):
            raise self._opened
        return self._opened

    @cached_property
    def _opened(self) -> Corpus | StreamUrls | UserError | None:
        try:
            given = self.config.data.shards or self.config.data.pipeline
            return open_data(self.config, lambda _: None) if given else None
        except UserError as error:
            return error
