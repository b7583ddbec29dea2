"""The options of `dcgan-dist doctor`."""

from dataclasses import dataclass
from pathlib import Path

from dcgan_dist.config import OptionGroup


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(OptionGroup):
    """Check this machine for a run with these options, with advice for each problem.

    Exit code 0: nothing fails; 1: something does; 2: wrong usage. Under a launcher (dcgan-dist launch -m dcgan_dist
    doctor) all its ranks and nodes are checked.
    """

    only: tuple[str, ...] = ()
    """Names of checks, as in --only disk,ranks. Default: all."""
    skip: tuple[str, ...] = ()
    """Checks to leave out."""
    json: Path | None = None
    """JSON file for all results."""
    overwrite: bool = False
    """Let --json replace a file."""
