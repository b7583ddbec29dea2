"""`dcgan-dist launch`: the ranks of a training on this machine, started and ended together."""

import argparse
import os
import signal
import sys
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcgan_dist import cli
from dcgan_dist.config import values
from dcgan_dist.config.settings import SETTINGS
from dcgan_dist.errors import UsageError
from dcgan_dist.parallel.launcher import KEPT_FROM_RANKS, Job, free_port, run
from dcgan_dist.parallel.variables import LARGEST_PORT
from dcgan_dist.text import counted

PROGRAM = "dcgan-dist launch"
TRAINER = "dcgan_dist.train"
PORT = 29500
GPU_FILES = ("nvidia", "nvhost", "nvgpu", "nvmap", "kfd", "dxg")  # in /dev, of the drivers that torch can use
MOST = 1_024  # machines, and ranks of each
WITHOUT_EFFECT = {  # values that a configuration file of Accelerate may have
    "compute_environment": ("LOCAL_MACHINE",),
    "distributed_type": ("NO", "MULTI_GPU", "MULTI_CPU"),
    "gpu_ids": ("all",),
    "main_training_function": ("main",),
    "rdzv_backend": ("static",),
    "same_network": ("true", "True"),
    "mixed_precision": ("no",),
    "downcast_bf16": ("no",),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of this command."""

    num_processes: int | None = None
    num_machines: int = 1
    machine_rank: int = 0
    main_process_ip: str | None = None
    main_process_port: int = 0
    cpu: bool = False
    multi_gpu: bool = False
    gpu_ids: str | None = None
    config_file: Path | None = None

    def __post_init__(self) -> None:
        machines, ranks = self.num_machines, self.num_processes
        limits = (("num_machines", 1, MOST), ("num_processes", 1, MOST * min(max(machines, 1), MOST)))
        for name, least, most in (*limits, ("machine_rank", 0, machines - 1), ("main_process_port", 0, LARGEST_PORT)):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UsageError(f"--{name} {value}: must be from {least} to {most}")
        if ranks is not None and ranks % machines:
            raise UsageError(f"--num_processes {ranks}: must be a multiple of --num_machines {machines}")
        if machines > 1 and not self.main_process_ip:
            raise UsageError(f"--num_machines {machines} needs --main_process_ip, the address of machine 0")
        if self.cpu and self.multi_gpu:
            raise UsageError("--cpu and --multi_gpu: give one of them")

    def job(self) -> Job:
        """The requested ranks."""
        here = self.num_processes // self.num_machines if self.num_processes else max(1, 0 if self.cpu else gpus_here())
        return Job(
            machines=self.num_machines,
            machine=self.machine_rank,
            here=here,
            address=self.main_process_ip or "127.0.0.1",
            port=self.main_process_port or (free_port() if self.num_machines == 1 else PORT),
        )


def gpus_here() -> int:
    """GPUs that torch finds on this machine."""
    if sys.platform == "linux" and not any(path.name.startswith(GPU_FILES) for path in Path("/dev").iterdir()):
        return 0
    import torch  # only if needed: it takes seconds

    return torch.cuda.device_count()


def main(argv: list[str]) -> int:
    """Runs the command; the exit code is that of the ranks. Raises UsageError."""
    own, module, options = _options(argv)
    if own.cpu or own.gpu_ids is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = "" if own.cpu else str(own.gpu_ids)
    job = own.job()
    alone = job.size == 1 or "--help" in options
    if module == TRAINER and not alone:
        # errors are printed here, once, before any rank starts; a dry run needs one rank
        alone = _check(options, job.size)
        options = [*options, f"--world_size={job.size}"]
    if own.multi_gpu and (gpus := gpus_here()) < job.here:
        found = counted(gpus, "GPU") if gpus else "no GPU"
        raise UsageError(f"torch finds {found} here, for {job.here} to be launched; --cpu --num_processes N needs none")
    command = [sys.executable, "-m", module, *options]
    if alone:  # this process becomes the trainer, which unblocks the signals that it handles
        signal.pthread_sigmask(signal.SIG_BLOCK, KEPT_FROM_RANKS)
        os.execve(command[0], command, Job().environments(os.environ)[0])
    if job.machines > 1:
        print(f"waiting for the ranks of all {job.machines} machines", flush=True)
    return run(command, job, os.environ)


def _check(options: Sequence[str], ranks: int) -> bool:
    """Raises UsageError as the ranks would; returns whether it is a dry run."""
    config = cli.load(options, quiet=True)  # the first rank prints the lines
    if config.world_size not in (None, ranks):
        problem = f"but {ranks} ranks are to be launched; change one of them, or leave --world_size out"
        raise UsageError(f"--world_size {config.world_size}, {problem}")
    config.per_rank(ranks)
    return config.dry_run


def _options(argv: Sequence[str]) -> tuple[Options, str, list[str]]:
    """This command's options; the module that the ranks run; its options."""
    at = argv.index("-m") if "-m" in argv else len(argv)
    mine, module, after = argv[:at], [*argv[at + 1 : at + 2], TRAINER][0], list(argv[at + 2 :])
    if module not in (TRAINER, "dcgan_dist"):
        raise UsageError(f"-m {module}: {PROGRAM} starts the ranks of {TRAINER}, or of a command of dcgan_dist")
    if "--help" in mine or "-h" in mine:
        print(_parser().format_help() + "\ntraining options:\n")
        cli.load(["--help"])
    given, options = _given(mine)
    if options and at < len(argv):
        raise UsageError(f"{options[0]}: is before -m, but is no option of {PROGRAM}; --help lists them")
    file = given.get("config_file")
    below = {} if file is None else _given(list(_words(file)), f"{file}: ")[0]
    merged = below | given
    # the trainer reads Accelerate's other options from the environment
    os.environ.update({name: merged.pop(name) for name in list(merged) if name.isupper()})
    return Options(**merged), module, options + after


def _given(words: Sequence[str], where: str = "") -> tuple[dict[str, Any], list[str]]:
    """This command's options, and the other words."""
    parser = _parser()
    try:
        own, others = parser.parse_known_args([_underscored(word, parser._option_string_actions) for word in words])
    except argparse.ArgumentError as error:
        raise UsageError(where + str(error).removeprefix("argument ")) from error
    return vars(own), others


def _underscored(word: str, known: Container[str]) -> str:
    """An option that was typed with hyphens, which accelerate launch accepts, with underscores."""
    name, equals, value = word.partition("=")
    option = "--" + name.removeprefix("--").replace("-", "_")
    return option + equals + value if name.startswith("--") and option in known else word


def _words(file: Path) -> Iterator[str]:
    """The options in a configuration file of Accelerate. Raises UsageError for one that has no effect here."""
    known = {option for action in _parser()._actions for option in action.option_strings if option != "--config_file"}
    for name, value in cli.read_yaml(file, "--config_file").items():
        option = "--cpu" if name == "use_cpu" else f"--{name}"
        if value in (None, {}, []) or str(value).lower() == "false" or value in WITHOUT_EFFECT.get(name, ()):
            continue
        if option not in known or not isinstance(value, str):
            raise UsageError(f"--config_file {file}: {name}: {value} is not for {PROGRAM}; leave it out")
        yield option if value.lower() == "true" else f"{option}={value}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [OPTIONS] [TRAINING OPTIONS]",
        description="Train with several processes (ranks), or one. At Ctrl-C or SIGTERM they stop together, with a "
        "checkpoint. Exit code, when the last has ended: 0 done, 1 failed, 2 wrong usage, 75 stopped on request. The "
        "options are those of accelerate launch, whose default config file is not read; `-m dcgan_dist doctor ..` "
        "after them checks the machines instead.",
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
        argument_default=argparse.SUPPRESS,
    )
    whole, name, path = map(_typed(), (values.whole_number, values.name, values.path))
    for option, kind, metavar, text in (
        ("--num_processes", whole, "N", "ranks on all machines (default: one for each GPU, or 1)"),
        ("--num_machines", whole, "N", "machines, each with the same number of ranks (default: 1)"),
        ("--machine_rank", whole, "N", "number of this machine, from 0 (default: 0)"),
        ("--main_process_ip", name, "HOST", "address of machine 0, which the others reach"),
        ("--main_process_port", whole, "N", f"a free port there (default: {PORT}; of one machine: any)"),
        ("--gpu_ids", name, "N,..", "GPUs of this machine to use (default: all)"),
        ("--config_file", path, "FILE", "these options in YAML, as accelerate config writes them"),
    ):
        parser.add_argument(option, type=kind, metavar=metavar, help=text)
    parser.add_argument("--cpu", action="store_true", help="do not use GPUs")
    parser.add_argument("--multi_gpu", action="store_true", help="do not train without a GPU")
    for option, setting in {setting.launcher: setting for setting in SETTINGS}.items():
        if option not in ("", "--cpu", "--debug"):  # the trainer has the last, too
            value: dict[str, Any] = {"action": "store_const", "const": "true"} if setting.flag else {}
            parser.add_argument(option, dest=setting.variable, help=argparse.SUPPRESS, **value)
    return parser


@contextmanager
def _typed() -> Iterator[None]:
    """Decorates a function that parses values: argparse prints its error as all options do."""
    try:
        yield
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
