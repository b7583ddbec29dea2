"""`dcgan-dist doctor`: checks whether this machine is ready for a run, with advice for each problem."""

import os
from dataclasses import dataclass
from pathlib import Path

from dcgan_dist import cli
from dcgan_dist.config import OptionGroup
from dcgan_dist.parallel.variables import problem


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


def main(argv: list[str]) -> int:
    """Runs the command; 1 if anything fails. Raises UsageError and UserError."""
    # the check `launcher` reports variables that are wrong
    several = problem(os.environ, on_cpu=True) is None and int(os.environ.get("WORLD_SIZE", "1")) > 1
    quiet = several and os.environ["RANK"] != "0"
    own, config = cli.load_with(DoctorOptions, argv, "dcgan-dist doctor", quiet=quiet)
    from dcgan_dist.commands.doctor.command import run  # only now: importing torch takes seconds

    return run(own, config, several)
