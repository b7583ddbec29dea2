"""Settings of launchers and libraries, which arrive as environment variables, and what each of them does here.

SETTINGS is the complete table; docs/settings.md explains it to people. A setting that has an option of ours takes
effect unless the option is given; else the option wins and a line says so. A setting that cannot be met is refused by
name. W&B's own settings are in run/wandb_settings.py. Standard library only.
"""

import logging
import os
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from dcgan_dist.config import Config
from dcgan_dist.config.checks import ConfigError

MOST_THREADS = 4_096  # of a rank
ON, OFF = ("1", "true", "t", "yes", "y", "on"), ("0", "false", "f", "no", "n", "off")


def _flag(value: str) -> bool:
    """As Accelerate reads it."""
    if value.lower() not in ON + OFF:
        raise ValueError("must be true or false")
    return value.lower() in ON


def _count(value: str) -> int:
    if not value.strip().isdecimal() or int(value) < 1:
        raise ValueError("must be an integer, at least 1")
    return int(value)


def _threads(value: str) -> int | None:
    """Of OpenMP's list, which has a number for each level, the first; 0 and nothing stand for the library's choice."""
    first = value.split(",")[0].strip()
    if value.strip() and not (first.isdecimal() and int(first) <= MOST_THREADS):
        raise ValueError(f"must be an integer, at most {MOST_THREADS:,}, or a list of them of which the first counts")
    return int(first or 0) or None


def _precision(value: str) -> str | None:
    if value.lower() not in ("no", "bf16", "fp16"):
        raise ValueError("must be no, bf16 or fp16; there is no fp8 here")
    return None if value.lower() == "no" else value.lower()  # which a launcher also sets where nobody asked


def _level(value: str) -> str:
    if value.upper() not in logging.getLevelNamesMapping():
        raise ValueError(f"must be one of {', '.join(logging.getLevelNamesMapping())}")
    return value.upper()


def _unless_no(value: str) -> bool:
    return value.lower() != "no"


def _unless_zero(value: str) -> bool:
    return value.lower() not in ("0", "strict")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A row of the table."""

    variable: str
    does: Literal["option", "obeyed", "refused", "unused"]
    """option: stands for an option of ours. obeyed: as it is, by Accelerate, torch or us. unused: with a line."""
    launcher: str = ""
    """The option of accelerate launch that sets it; empty: none does."""
    read: Callable[[str], Any] = _flag
    """What is asked for; None or False: nothing. Raises ValueError, which says what the value must be."""
    option: str = ""
    """Field of Config that the setting stands for."""
    text: str = ""
    """Why it is refused or not used, or what comes of it, and what to do."""

    @property
    def flag(self) -> bool:
        """Whether it is true or false, so that the launcher's option takes no value."""
        return self.read is _flag


NO_SHARDING = "not supported, every rank holds complete networks and DDP averages the gradients; launch without it"
OTHER_NUMBERS = "other numbers than those of the precision that is asked for; unset it"
NO_TPU = "TPUs are not supported; run on GPUs or CPUs"
SETTINGS = (
    Setting(
        variable="ACCELERATE_MIXED_PRECISION", launcher="--mixed_precision", does="option", option="precision",
        read=_precision,
    ),
    Setting(
        variable="ACCELERATE_GRADIENT_ACCUMULATION_STEPS", launcher="--gradient_accumulation_steps", does="option",
        option="accumulate", read=_count,
    ),
    Setting(variable="ACCELERATE_DEBUG_MODE", launcher="--debug", does="option", option="debug"),
    Setting(variable="ACCELERATE_USE_CPU", launcher="--cpu", does="obeyed"),
    Setting(variable="ACCELERATE_CPU_AFFINITY", launcher="--enable_cpu_affinity", does="obeyed"),
    Setting(variable="ACCELERATE_LOG_LEVEL", does="obeyed", read=_level),
    Setting(variable="OMP_NUM_THREADS", launcher="--num_cpu_threads_per_process", does="obeyed", read=_threads),
    Setting(variable="MKL_NUM_THREADS", does="obeyed", read=_threads),
    Setting(variable="ACCELERATE_USE_FSDP", launcher="--use_fsdp", does="refused", text=NO_SHARDING),
    Setting(variable="ACCELERATE_USE_DEEPSPEED", launcher="--use_deepspeed", does="refused", text=NO_SHARDING),
    Setting(variable="ACCELERATE_USE_MEGATRON_LM", launcher="--use_megatron_lm", does="refused", text=NO_SHARDING),
    Setting(
        variable="ACCELERATE_USE_PARALLELISM_CONFIG", launcher="--use_parallelism_config", does="refused",
        text=NO_SHARDING,
    ),
    Setting(
        variable="ACCELERATE_DYNAMO_BACKEND", launcher="--dynamo_backend", does="refused", read=_unless_no,
        text="the networks are not compiled; launch with --dynamo_backend no",
    ),
    Setting(
        variable="ACCELERATE_TORCH_DEVICE", does="refused", read=bool,
        text="choose GPUs by CUDA_VISIBLE_DEVICES, or the CPU by ACCELERATE_USE_CPU=true",
    ),
    Setting(
        variable="ACCELERATE_USE_SAGEMAKER", does="refused", text="start the trainer by torchrun or accelerate launch"
    ),
    Setting(variable="ACCELERATE_IN_TPU_POD", launcher="--tpu", does="refused", text=NO_TPU),
    Setting(variable="ACCELERATE_DOWNCAST_BF16", launcher="--downcast_bf16", does="refused", text=NO_TPU),
    Setting(variable="XLA_USE_BF16", launcher="--tpu", does="refused", text=NO_TPU),
    Setting(variable="XLA_DOWNCAST_BF16", launcher="--downcast_bf16", does="refused", text=NO_TPU),
    Setting(
        variable="ACCELERATE_GRADIENT_CLIPPING", launcher="--gradient_clipping", does="unused", read=_unless_no,
        text="--optimizer.g_clip and --optimizer.d_clip clip gradients",
    ),
    *(
        Setting(variable=variable, does="obeyed", read=_unless_zero, text=OTHER_NUMBERS)
        for variable in (
            "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE",
            "DNNL_DEFAULT_FPMATH_MODE",
        )
    ),
)  # fmt: skip
PREFIXES = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")
"""Beginnings of Accelerate's variables. What is not in the table belongs to something in it, or is not used."""
PARTS = ("ACCELERATE_DYNAMO_", "ACCELERATE_FP8_")
"""Of these nothing is said: accelerate launch sets the first unasked, and the others beside a row that is refused."""


def started_by_launcher(env: Mapping[str, str]) -> bool:
    """Whether torchrun or accelerate launch started this process."""
    return bool(env.keys() & {"LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"})


def launch_environment() -> dict[str, str]:
    """This process's environment, with what accelerate launch was asked for and did not pass on.

    It drops --gradient_accumulation_steps without DeepSpeed, and --use_megatron_lm with --cpu, for instance.
    """
    kept: dict[str, str] = {}
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        variables = {setting.launcher: setting for setting in SETTINGS if setting.launcher}
        with suppress(OSError):
            words = Path(f"/proc/{os.getppid()}/cmdline").read_text(errors="replace").split("\0")
            for word, following in pairwise(words[: len(words) - len(sys.argv)]):  # without the trainer's options
                name, equals, value = word.partition("=")
                if setting := variables.get("--" + name.removeprefix("--").replace("-", "_")):
                    kept[setting.variable] = value if equals else "true" if setting.flag else following
    return kept | dict(os.environ)


def apply_settings(config: Config, env: Mapping[str, str], given: Collection[str]) -> tuple[Config, list[str]]:
    """The configuration with what `env` asks for, and lines that say what was taken or is not used.

    `given`: names of the options that were typed or stand in a file; they win, also with their default values.

    Raises ConfigError for what cannot be met.
    """
    lines: list[str] = []
    for setting in SETTINGS:
        if env.get(setting.variable) or (setting.flag and setting.variable in env):
            config = _apply(setting, env[setting.variable], config, given, lines)
    known = {setting.variable for setting in SETTINGS}
    others = [name for name in env if name.startswith(PREFIXES) and not name.startswith(PARTS) and name not in known]
    if others:
        lines.append(f"{', '.join(sorted(others))}: not used; the trainer has nothing that would be set by it")
    several = "MASTER_PORT" in env and not env.keys() & {"RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"}
    if several and "ACCELERATE_MIXED_PRECISION" in env:
        lines.append("accelerate launch started one process; for several on CPUs it needs --multi_gpu (launch/cpu.sh)")
    return config, lines


def _apply(setting: Setting, value: str, config: Config, given: Collection[str], lines: list[str]) -> Config:
    """One setting that is there."""
    there, option, problem = f"{setting.variable}={value}", setting.option, ""
    try:
        asked = setting.read(value)
    except ValueError as error:
        asked, problem = value, str(error)
    ours = getattr(config, option) if option else None
    if option in given:
        if asked not in (None, False, ours):
            lines.append(f"{there}: not used, for --{option} {ours} is given")
    elif problem or (asked and setting.does == "refused"):
        by = f" (accelerate launch {setting.launcher}, or its config file)" if setting.launcher else ""
        raise ConfigError(f"{there}{by}: {problem or setting.text}")
    elif asked and setting.does != "option" and setting.text:
        lines.append(f"{there}: {'not used' if setting.does == 'unused' else 'obeyed'}; {setting.text}")
    elif asked and option and asked != ours:
        lines.append(f"{there}: taken as --{option}" + ("" if asked is True else f" {asked}"))
        config = replace(config, **{option: asked})
    return config


def cpu_requested(env: Mapping[str, str]) -> bool:
    """Whether GPUs are to be left alone."""
    return _flag(env.get("ACCELERATE_USE_CPU", "false"))


def requested_threads(env: Mapping[str, str], *, ours: bool) -> tuple[int, str] | None:
    """How many threads a rank is to compute with on a CPU, and the setting that says so; None: nobody asked.

    `ours`: our own launcher started the rank, which unlike the others sets nothing unasked.
    """
    for name in ("MKL_NUM_THREADS", "OMP_NUM_THREADS"):  # in this order, as in torch
        value = env.get(name, "")
        unasked = name == "OMP_NUM_THREADS" and value == "1" and started_by_launcher(env) and not ours
        if not unasked and (count := _threads(value)):
            return count, f"{name}={value}"
    return None
