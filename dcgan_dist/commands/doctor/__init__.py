"""`dcgan-dist doctor`: checks whether this machine is ready for a run, with advice for each problem."""

import os

from dcgan_dist import cli
from dcgan_dist.commands.doctor.options import DoctorOptions
from dcgan_dist.parallel.variables import problem


def main(argv: list[str]) -> int:
    """Runs the command; 1 if anything fails. Raises UsageError and UserError."""
    # the check `launcher` reports variables that are wrong
    several = problem(os.environ, on_cpu=True) is None and int(os.environ.get("WORLD_SIZE", "1")) > 1
    quiet = several and os.environ["RANK"] != "0"
    own, config = cli.load_with(DoctorOptions, argv, "dcgan-dist doctor", quiet=quiet)
    from dcgan_dist.commands.doctor.command import run  # only now: importing torch takes seconds

    return run(own, config, several)
