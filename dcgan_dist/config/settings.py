"""Settings of launchers and libraries, which arrive as environment variables, and the effect of each.

SETTINGS is the complete table, which docs/settings.md explains. If the matching option is given, it wins, with a line.
A setting that cannot be followed is refused. W&B's own settings are in run/wandb_settings.py. Standard library only.
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
    """Parsed as Accelerate does."""
    if value.lower() not in ON + OFF:
        raise ValueError("must be true or false")
    return value.lower() in ON


def _count(value: str) -> int:
    if not value.strip().isdecimal() or int(value) < 1:
        raise ValueError("must be an integer, at least 1")
    return int(value)


def _threads(value: str) -> int | None:
    """The first number of OpenMP's list, which has one per level; None for 0 or nothing: the library chooses."""
    first = value.split(",")[0].strip()
    if value.strip() and not (first.isdecimal() and int(first) <= MOST_THREADS):
        raise ValueError(f"must be an integer, at most {MOST_THREADS:,}, or a list of which the first counts")
    return int(first or 0) or None


def _precision(value: str) -> str | None:
    if value.lower() not in ("no", "bf16", "fp16"):
        raise ValueError("must be no, bf16 or fp16; there is no fp8 here")
    return None if value.lower() == "no" else value.lower()  # which launchers set by default


def _level(value: str) -> str:
    if value.upper() not in logging.getLevelNamesMapping():
        raise ValueError(f"must be one of {', '.join(logging.getLevelNamesMapping())}")
    return value.upper()


def _unless(*values: str) -> Callable[[str], bool]:
    return lambda value: value.lower() not in values


@dataclass(frozen=True)
class Setting:
    """A row of the table."""

    variable: str
    # option: sets an option of ours. obeyed: by Accelerate, torch or us. unused: with a line
    does: Literal["option", "obeyed", "refused", "unused"]
    launcher: str = ""  # the option of accelerate launch that sets it, if any
    read: Callable[[str], Any] = _flag  # parses the value; None or False: not set. Raises ValueError
    option: str = ""  # the field of Config that it sets
    text: str = ""  # why it is refused or not used, or its effect, and what to do

    @property
    def flag(self) -> bool:
        """Whether the launcher's option takes no value."""
        return self.read is _flag


NO_SHARDING = "not supported, every rank holds complete networks, and DDP averages the gradients; launch without it"
OTHER_NUMBERS = "it changes the numbers of the chosen precision; unset it"
NO_TPU = "TPUs are not supported; run on GPUs or CPUs"
NOT_COMPILED = "the networks are not compiled; launch with --dynamo_backend no"
OTHER_DEVICE = "choose GPUs by CUDA_VISIBLE_DEVICES, or the CPU by ACCELERATE_USE_CPU=true"
OTHER_CLIPPING = "--optimizer.g_clip and --optimizer.d_clip clip gradients"
SETTINGS = (
    Setting("ACCELERATE_MIXED_PRECISION", "option", "--mixed_precision", _precision, "precision"),
    Setting("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "option", "--gradient_accumulation_steps", _count, "accumulate"),
    Setting("ACCELERATE_DEBUG_MODE", "option", "--debug", option="debug"),
    Setting("ACCELERATE_USE_CPU", "obeyed", "--cpu"),
    Setting("ACCELERATE_CPU_AFFINITY", "obeyed", "--enable_cpu_affinity"),
    Setting("ACCELERATE_LOG_LEVEL", "obeyed", read=_level),
    Setting("OMP_NUM_THREADS", "obeyed", "--num_cpu_threads_per_process", _threads),
    Setting("MKL_NUM_THREADS", "obeyed", read=_threads),
    Setting("ACCELERATE_USE_FSDP", "refused", "--use_fsdp", text=NO_SHARDING),
    Setting("ACCELERATE_USE_DEEPSPEED", "refused", "--use_deepspeed", text=NO_SHARDING),
    Setting("ACCELERATE_USE_MEGATRON_LM", "refused", "--use_megatron_lm", text=NO_SHARDING),
    Setting("ACCELERATE_USE_PARALLELISM_CONFIG", "refused", "--use_parallelism_config", text=NO_SHARDING),
    Setting("ACCELERATE_DYNAMO_BACKEND", "refused", "--dynamo_backend", _unless("no"), text=NOT_COMPILED),
    Setting("ACCELERATE_TORCH_DEVICE", "refused", read=bool, text=OTHER_DEVICE),
    Setting("ACCELERATE_USE_SAGEMAKER", "refused", text="start the trainer with torchrun or accelerate launch"),
    Setting("ACCELERATE_IN_TPU_POD", "refused", "--tpu", text=NO_TPU),
    Setting("ACCELERATE_DOWNCAST_BF16", "refused", "--downcast_bf16", text=NO_TPU),
    Setting("XLA_USE_BF16", "refused", "--tpu", text=NO_TPU),
    Setting("XLA_DOWNCAST_BF16", "refused", "--downcast_bf16", text=NO_TPU),
    Setting("ACCELERATE_GRADIENT_CLIPPING", "unused", "--gradient_clipping", _unless("no"), text=OTHER_CLIPPING),
    Setting("NVIDIA_TF32_OVERRIDE", "obeyed", read=_unless("0", "strict"), text=OTHER_NUMBERS),
    Setting("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "obeyed", read=_unless("0", "strict"), text=OTHER_NUMBERS),
    Setting("ONEDNN_DEFAULT_FPMATH_MODE", "obeyed", read=_unless("0", "strict"), text=OTHER_NUMBERS),
    Setting("DNNL_DEFAULT_FPMATH_MODE", "obeyed", read=_unless("0", "strict"), text=OTHER_NUMBERS),
)
PREFIXES = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")  # of Accelerate's variables
# prefixes of variables without a line: accelerate launch sets them by default, or with one that is refused
PARTS = ("ACCELERATE_DYNAMO_", "ACCELERATE_FP8_")


def started_by_launcher(env: Mapping[str, str]) -> bool:
    """Whether torchrun or accelerate launch started this process."""
    return bool(env.keys() & {"LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"})


def launch_environment() -> dict[str, str]:
    """The environment, with options of accelerate launch that it does not pass on.

    For example --gradient_accumulation_steps without DeepSpeed, and --use_megatron_lm with --cpu.
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
    """The configuration with the settings in `env`, and lines that name what was taken or is not used.

    `given`: names of the options on the command line or in a file, which win, also with their default values. Raises
    ConfigError for a setting that cannot be followed.
    """
    lines: list[str] = []
    for setting in SETTINGS:
        if env.get(setting.variable) or (setting.flag and setting.variable in env):
            config = _apply(setting, env[setting.variable], config, given, lines)
    known = {setting.variable for setting in SETTINGS}
    others = [name for name in env if name.startswith(PREFIXES) and not name.startswith(PARTS) and name not in known]
    if others:
        lines.append(f"{', '.join(sorted(others))}: not used; the trainer has no such setting")
    several = "MASTER_PORT" in env and not env.keys() & {"RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"}
    if several and "ACCELERATE_MIXED_PRECISION" in env:
        lines.append("accelerate launch started one process; for several on CPUs it needs --multi_gpu (launch/cpu.sh)")
    return config, lines


def _apply(setting: Setting, value: str, config: Config, given: Collection[str], lines: list[str]) -> Config:
    """One setting that is set."""
    there, option, problem = f"{setting.variable}={value}", setting.option, ""
    try:
        asked = setting.read(value)
    except ValueError as error:
        asked, problem = value, str(error)
    ours = getattr(config, option) if option else None
    if option in given:
        if asked not in (None, False, ours):
            lines.append(f"{there}: not used, because --{option} {ours} is given")
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
    """Whether the run must not use GPUs."""
    return _flag(env.get("ACCELERATE_USE_CPU", "false"))


def requested_threads(env: Mapping[str, str], *, ours: bool) -> tuple[int, str] | None:
    """Threads of a rank on a CPU, and the setting that requests them; None: no request.

    `ours`: our own launcher started the rank; unlike others, it sets no default.
    """
    for name in ("MKL_NUM_THREADS", "OMP_NUM_THREADS"):  # in this order, as in torch
        value = env.get(name, "")
        unasked = name == "OMP_NUM_THREADS" and value == "1" and started_by_launcher(env) and not ours
        if not unasked and (count := _threads(value)):
            return count, f"{name}={value}"
    return None
