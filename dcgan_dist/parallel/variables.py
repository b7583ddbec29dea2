"""The environment variables of a launcher, checked before torch and Accelerate read them. Standard library only."""

import os
from collections.abc import Mapping

from dcgan_dist.errors import UserError

SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # of MPI; Accelerate obeys them, on CPUs alone
NUMBERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", *SIZES)
LARGEST_PORT = 65_535
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of torch
MARK = "DCGAN_DIST_LAUNCHER"  # set in ranks of our own launcher, which returns their exit codes
ADVICE = "start the ranks with dcgan-dist launch, torchrun or accelerate launch; for one process unset it"


class _VariableError(UserError):
    exit_code = 2  # not a UsageError, which one rank per node prints: the local rank is unknown here


def rank() -> int:
    """Number of this process in the job; 0 without a launcher."""
    return _number(os.environ, "RANK", 0)


def check_variables(*, on_cpu: bool) -> None:
    """Raises UserError, with exit code 2, when the variables of a launcher are not those of a rank."""
    found = problem(os.environ, on_cpu=on_cpu)
    if found:
        raise _VariableError(f"{found} (environment); {ADVICE}")


def check_gpus(gpus: int) -> None:
    """Raises UserError, with exit code 2, when there are fewer GPUs than ranks on this machine.

    `gpus`: that torch finds here; 0: the ranks are on CPUs. Accelerate gives each rank the GPU with its local number.
    """
    if "LOCAL_RANK" not in os.environ and os.environ.get("WORLD_SIZE", "1") == "1":
        return  # a single process; LOCAL_WORLD_SIZE may be left in a shell
    here = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0")) + 1)
    if gpus and "LOCAL_RANK" not in os.environ:
        raise _VariableError("WORLD_SIZE is set, but LOCAL_RANK is not: on GPUs it chooses the one of this rank")
    if 0 < gpus < here:
        raise _VariableError(
            f"{here} ranks were launched on this machine, but torch finds {gpus} GPU{'s' * (gpus > 1)} here, one for "
            "each; launch fewer, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on the CPU"
        )


def problem(env: Mapping[str, str], *, on_cpu: bool) -> str | None:
    """What is wrong with the variables of a launcher, if anything. Those of MPI count only on CPUs."""
    env = {name: value for name, value in env.items() if on_cpu or name not in SIZES}
    several = env.get("WORLD_SIZE", "1") != "1" or "LOCAL_RANK" in env  # else the address is not read
    read = [name for name in NUMBERS if name in env and (several or name != "MASTER_PORT")]
    lines = [f"{name}={env[name]}: must be an integer" for name in read if _number(env, name, -1) < 0]
    return next(iter(lines or (_of_several(env) if several else _of_one(env))), None)


def _of_one(env: Mapping[str, str]) -> list[str]:
    named = [name for name in SIZES if _number(env, name, 1) > 1] + ["RANK"] * bool(_number(env, "RANK", 0))
    return [f"{name}={env[name]}, but WORLD_SIZE is not set, or 1" for name in named]


def _of_several(env: Mapping[str, str]) -> list[str]:
    size = _number(env, "WORLD_SIZE", 1)
    here = min(_number(env, "LOCAL_WORLD_SIZE", size), size)
    given = next(f"{name}={env[name]}" for name in ("WORLD_SIZE", "LOCAL_RANK") if name in env)
    needed = [name for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    limits = {
        "WORLD_SIZE": (1, size, "must be at least 1"),
        "RANK": (0, size - 1, f"must be less than WORLD_SIZE={size}"),
        "LOCAL_WORLD_SIZE": (1, size, f"must be from 1 to WORLD_SIZE={size}"),
        "LOCAL_RANK": (0, here - 1, f"must be less than the {here} ranks of this machine"),
        "MASTER_PORT": (1, LARGEST_PORT, f"must be from 1 to {LARGEST_PORT}"),
    }
    wrong = [
        f"{name}={env[name]}: {text}"
        for name, (least, most, text) in limits.items()
        if name in env and not least <= _number(env, name, -1) <= most
    ]
    return wrong + [f"{given}, but {name} is not set" for name in needed]


def _number(env: Mapping[str, str], name: str, otherwise: int) -> int:
    text = env.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else otherwise
