"""The run that a machine is examined for, and what several checks want to know of it."""

from dataclasses import dataclass
from functools import cached_property

import torch

from dcgan_dist.commands.doctor.spawn import RanksError, local_world, run_locally
from dcgan_dist.commands.doctor.talk import Talk, talk
from dcgan_dist.config import Config
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.loading import open_data
from dcgan_dist.data.reading.stream import Sources
from dcgan_dist.errors import UserError
from dcgan_dist.gan.measure import Networks, measure_networks
from dcgan_dist.parallel.precision import Arithmetic, arithmetic
from dcgan_dist.parallel.world import World


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
    def networks(self) -> Networks:
        """How large they are."""
        return measure_networks(self.config, self.arithmetic.weights)

    @property
    def data(self) -> Corpus | Sources | None:
        """The shards, all opened, once; None: the embedded set. Raises UserError for any bad one."""
        data, error = self._opened
        if error is not None:
            raise error
        return data

    @cached_property
    def _opened(self) -> tuple[Corpus | Sources | None, UserError | None]:
        if not self.config.data.shards:
            return None, None
        try:
            return open_data(self.config, lambda _: None), None
        except UserError as error:
            return None, error

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
