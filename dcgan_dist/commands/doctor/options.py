"""The options of `dcgan-dist doctor`."""

from dataclasses import dataclass
from pathlib import Path

from dcgan_dist.config import OptionGroup


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(OptionGroup):
    """Examine this machine for a training with these options: what is fine, what is not, and what to do about it.

    Exit code 0: nothing fails; 1: something does; 2: wrong usage. Under a launcher (dcgan-dist launch -m dcgan_dist
    doctor) its ranks and all their nodes are examined.
    """

    only: tuple[str, ...] = ()
    """Names of checks, as in --only disk,ranks; absent: all."""
    skip: tuple[str, ...] = ()
    """Checks to leave out."""
    json: Path | None = None
    """File for all that was found."""
    overwrite: bool = False
    """Let --json replace a file."""
