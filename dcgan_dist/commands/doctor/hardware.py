"""The processors, and the precision that they compute in."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dcgan_dist.commands.doctor.case import Case
from dcgan_dist.commands.doctor.finding import Finding, conclude, fail, warn
from dcgan_dist.commands.words import counted
from dcgan_dist.data.workers import available_cores
from dcgan_dist.parallel.precision import Arithmetic
from dcgan_dist.run.console import human_bytes as size

FULL = 0.5  # part of a GPU's memory that others may hold


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU that torch sees."""

    name: str
    memory: int = 0
    """Bytes."""
    free: int = 0
    """Bytes."""
    error: str = ""
    """Why it cannot compute; "": it can."""


def check_devices(case: Case) -> Finding:
    """GPUs and CPU cores."""
    gpus = [_gpu(number) for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return judge_devices(gpus, why_no_gpu(), case.local_ranks, available_cores(), torch.get_num_threads())


def _gpu(number: int) -> Gpu:
    """Computes something on it, so that torch itself says what an old driver or a missing kernel would stop."""
    name = torch.cuda.get_device_name(number)
    try:
        free, memory = torch.cuda.mem_get_info(number)
        torch.ones(1, device=f"cuda:{number}").add(1).item()
    except RuntimeError as error:
        return Gpu(name=name, error=str(error).splitlines()[0])
    return Gpu(name=name, memory=memory, free=free)


def why_no_gpu() -> str:
    """Why torch uses no GPU although the driver has some; "": it uses them, or there are none, or they are hidden."""
    there = any(path.name.removeprefix("nvidia").isdecimal() for path in Path("/dev").glob("nvidia*"))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1", "NoDevFiles")  # the last is SLURM's
    if torch.cuda.is_available() or hidden or not there:
        return ""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # the latter: a build of torch without CUDA
        return " ".join(str(error).split())
    return "no reason given"


def judge_devices(gpus: Sequence[Gpu], why_none: str, ranks: int, cores: int, threads: int) -> Finding:
    """`why_none`: what `why_no_gpu` returns; `ranks`: the number of ranks on this machine; `threads`: torch's."""
    cpu = f"{counted(cores, 'CPU core')}, {counted(threads, 'thread')}"
    few = warn(f"{ranks} ranks share {counted(cores, 'CPU core')}", "give the job at least one core for each rank")
    crowded = few if ranks > cores else None
    if not gpus:
        advice = (
            "install the driver, or the build of torch, that this needs; to train on the CPU, set CUDA_VISIBLE_DEVICES="
        )
        unused = fail(f"torch cannot use the NVIDIA GPUs of this machine: {why_none}", advice)
        return conclude(f"no GPU, so the run uses the CPU: {cpu}", unused if why_none else None, crowded)
    names = [gpu.name for gpu in gpus]
    shown = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    least = min([gpu for gpu in gpus if not gpu.error] or gpus, key=lambda gpu: gpu.free)
    held = warn(
        f"other processes use {size(least.memory - least.free)} of the memory of a {least.name}",
        "stop them (nvidia-smi lists them), or choose other GPUs with CUDA_VISIBLE_DEVICES",
    )
    mixed = warn("the GPUs differ", "the slowest sets the pace; choose equal ones with CUDA_VISIBLE_DEVICES")
    return conclude(
        f"{shown} with {size(least.memory)}, {size(least.free)} free; {cpu}",
        *(_broken(number, gpu) for number, gpu in enumerate(gpus)),
        held if least.free < FULL * least.memory else None,
        mixed if len(set(names)) > 1 else None,
        crowded,
    )


def _broken(number: int, gpu: Gpu) -> Finding | None:
    advice = "install a build of torch and a driver that support this GPU, or leave it out with CUDA_VISIBLE_DEVICES"
    return fail(f"GPU {number} ({gpu.name}) cannot compute: {gpu.error}", advice) if gpu.error else None


def check_precision(case: Case) -> Finding:
    """What the networks compute in."""
    gpu = case.device.type == "cuda"
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else None
    return judge_precision(case.arithmetic, has_bf16)


def judge_precision(chosen: Arithmetic, has_bf16: bool | None) -> Finding:
    """`has_bf16`: whether the GPU supports it; None: there is no GPU."""
    emulated = warn("bf16 is emulated on this GPU, which is slow", "use --precision fp16 or fp32")
    slow = warn("on a CPU 16 bits are often slower than 32", "use --precision auto, or measure both")
    return conclude(
        f"{chosen.name}: {chosen.reason}",
        emulated if chosen.name == "bf16" and has_bf16 is False else None,
        slow if chosen.name in ("bf16", "fp16") and has_bf16 is None else None,
        warn("fp64 is for proofs", "use --precision auto") if chosen.name == "fp64" else None,
    )
