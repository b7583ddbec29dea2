"""`dcgan-dist COMMAND ...`: runs a command."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib import import_module

from dcgan_dist import __version__
from dcgan_dist.errors import UsageError, debug_last, run_and_report
from dcgan_dist.parallel.variables import rank
from dcgan_dist.run import signals

# name -> module with main(argv) -> exit code, and its summary; imported only if needed, because importing torch is slow
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("dcgan_dist.train", "train in one process"),
    "launch": ("dcgan_dist.commands.launch", "train with several processes, on one machine or more"),
    "shard": ("dcgan_dist.commands.shard", "write shards from folders, zips, tars, Parquet, lists, torchvision sets"),
    "verify": ("dcgan_dist.commands.verify", "check shards, local or remote; --repair saves their intact images"),
    "inspect": ("dcgan_dist.commands.inspect", "count what shards hold, and draw a contact sheet of it"),
    "doctor": ("dcgan_dist.commands.doctor", "check this machine before a long run, with advice for each problem"),
    "watch": ("dcgan_dist.commands.watch", "follow a run from its folder: progress, curves, pictures"),
    "wandb": ("dcgan_dist.commands.wandb", "send to W&B what its server lacks of a run: dcgan-dist wandb sync RUN"),
    "sample": ("dcgan_dist.commands.sample", "draw pictures from a checkpoint"),
    "dashboard": ("dcgan_dist.commands.dashboard", "create or update a W&B workspace, or write a W&B report of runs"),
    "report": ("dcgan_dist.commands.report", "write the page of a run, or of several side by side"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names; returns its exit code."""
    arguments = debug_last(sys.argv[1:] if argv is None else argv)

    def act() -> int:
        if not arguments or arguments[0] in ("-h", "--help"):
            lines = [f"  {name:<10} {about}" for name, (_, about) in COMMANDS.items()]
            tail = ["", "dcgan-dist COMMAND --help lists its options; dcgan-dist --version", ""]
            sys.stdout.write("\n".join(["usage: dcgan-dist COMMAND [OPTIONS]", "", *lines, *tail]))
            return 0 if arguments else 2
        if arguments[0] == "--version":
            sys.stdout.write(f"dcgan_dist {__version__}\n")
            return 0
        if arguments[0] not in COMMANDS:
            raise UsageError(f"dcgan-dist has no command '{arguments[0]}'; there are {', '.join(COMMANDS)}")
        with signals.preparing(arguments[0] == "train") if argv is None else nullcontext():
            if arguments[0] == "train":
                import_module("dcgan_dist.cli").check(arguments[1:], rank=rank())
            command: Callable[[list[str]], int] = import_module(COMMANDS[arguments[0]][0]).main
        return command(arguments[1:])

    several = arguments[:1] in (["train"], ["doctor"])  # other commands run in one process
    return run_and_report(act, rank=rank() if several else 0, given=arguments)


if __name__ == "__main__":
    sys.exit(main())
