"""Processors, and the programs that drive them."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dcgan_dist.commands.doctor.case import Case
from dcgan_dist.commands.doctor.finding import Finding, conclude, fail, ok, warn
from dcgan_dist.data.workers import available_cores
from dcgan_dist.parallel.precision import Arithmetic
from dcgan_dist.parallel.world import nccl_version
from dcgan_dist.run.console import human_bytes as size

FULL = 0.5  # part of a GPU's memory that others may hold


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One that torch can use."""

    name: str
    memory: int
    """Bytes."""
    free: int
    """Bytes."""
    capability: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Devices:
    """What computes here."""

    gpus: tuple[Gpu, ...]
    nvidia: int
    """GPUs that the driver has, whether torch can use them or not."""
    hidden: bool
    """CUDA_VISIBLE_DEVICES names none."""
    cores: int
    """CPU cores that this process may use."""
    all_cores: int
    """Of the machine."""
    threads: int
    """Of torch in this process."""


def check_devices(case: Case) -> Finding:
    """GPUs and CPU cores."""
    return judge_devices(devices(), case.local_ranks)


def devices() -> Devices:
    """Of this machine."""
    return Devices(
        gpus=tuple(map(_gpu, range(torch.cuda.device_count()))) if torch.cuda.is_available() else (),
        nvidia=len([path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdecimal()]),
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1", "NoDevFiles"),
        cores=available_cores(),
        all_cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
    )


def _gpu(number: int) -> Gpu:
    free, memory = torch.cuda.mem_get_info(number)
    capability = torch.cuda.get_device_capability(number)
    return Gpu(name=torch.cuda.get_device_name(number), memory=memory, free=free, capability=capability)


def judge_devices(facts: Devices, ranks: int) -> Finding:
    """`ranks`: that will share this machine."""
    cores = f"{facts.cores} of {facts.all_cores} CPU cores, {facts.threads} computing threads"
    few = (
        warn(f"{ranks} ranks share {facts.cores} CPU cores", "give the job at least one core for each rank")
        if ranks > facts.cores
        else None
    )
    if not facts.gpus:
        unused = facts.nvidia > 0 and not facts.hidden
        blind = fail(
            f"torch sees none of the {facts.nvidia} NVIDIA GPUs",
            "see the line cuda; to train on the CPU, set CUDA_VISIBLE_DEVICES= (to nothing)",
        )
        return conclude(f"no GPU, so the run is on the CPU: {cores}", blind if unused else None, few)
    names = [gpu.name for gpu in facts.gpus]
    shown = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    least = min(facts.gpus, key=lambda gpu: gpu.free)
    held = warn(
        f"others hold {size(least.memory - least.free)} of the memory of a {least.name}",
        "end what uses it (nvidia-smi lists it), or choose GPUs by CUDA_VISIBLE_DEVICES",
    )
    mixed = warn("the GPUs are not alike", "the slowest sets the pace; choose equal ones by CUDA_VISIBLE_DEVICES")
    return conclude(
        f"{shown} with {size(least.memory)}, {size(least.free)} free; {cores}",
        held if least.free < FULL * least.memory else None,
        mixed if len(set(names)) > 1 else None,
        few,
    )


@dataclass(frozen=True, kw_only=True)
class Cuda:
    """The programs between torch and the GPUs."""

    usable: bool
    """torch finds a GPU that it can use."""
    nvidia: int
    """GPUs that the driver has."""
    built: str | None
    """CUDA version that torch is built for."""
    driver: str | None
    nccl: str | None
    kinds: tuple[str, ...]
    """Kinds of GPU that torch has programs for: sm_90 .."""
    gpus: tuple[Gpu, ...]


def check_cuda(case: Case) -> Finding:
    """Driver, CUDA and NCCL."""
    del case
    found = devices()
    usable = bool(found.gpus)
    nccl = nccl_version() if usable else None
    kinds = tuple(torch.cuda.get_arch_list()) if usable else ()
    facts = Cuda(
        usable=usable,
        nvidia=0 if found.hidden else found.nvidia,
        built=torch.version.cuda,
        driver=_driver(),
        nccl=nccl,
        kinds=kinds,
        gpus=found.gpus,
    )
    return judge_cuda(facts)


def _driver() -> str | None:
    """Version of NVIDIA's driver in the kernel."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    found = re.search(r"\b(\d{3}\.[\d.]+)\b", text)
    return found[1] if found else None


def judge_cuda(facts: Cuda) -> Finding:
    """Whether torch can run on what is there, alone and on several GPUs."""
    if not facts.usable:
        if not facts.nvidia:
            return ok("not needed: there is no GPU to use")
        if facts.built is None:
            return fail("this torch is built without CUDA", "install the build of torch for CUDA")
        return fail(
            f"torch for CUDA {facts.built} cannot use the driver {facts.driver or 'that is here (version unknown)'}",
            f"update NVIDIA's driver to one that knows CUDA {facts.built}, or install torch for an older CUDA",
        )
    return conclude(
        f"driver {facts.driver or 'of unknown version'}, CUDA {facts.built}, NCCL {facts.nccl or 'none'}",
        *(_unknown(gpu, facts.kinds) for gpu in facts.gpus[:1]),
        fail("torch has no NCCL, by which GPUs talk", "install a build of torch with NCCL")
        if len(facts.gpus) > 1 and facts.nccl is None
        else None,
    )


def _unknown(gpu: Gpu, kinds: Sequence[str]) -> Finding | None:
    """A GPU that torch has no programs for; those of the same generation and older serve newer ones."""
    major, minor = gpu.capability
    parts = [re.fullmatch(r"(?:sm|compute)_(\d+)(\d)[af]?", kind) for kind in kinds]
    served = [(int(part[1]), int(part[2])) for part in parts if part]
    jit = any(kind.startswith("compute_") for kind in kinds)
    if any((a == major and b <= minor) or (jit and (a, b) <= (major, minor)) for a, b in served):
        return None
    has = f"this torch has no programs for a {gpu.name} (sm_{major}{minor})"
    return fail(has, f"install a build of torch for it; this one serves {', '.join(kinds)}")


def check_precision(case: Case) -> Finding:
    """What the networks compute in."""
    gpu = case.device.type == "cuda"
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else None
    return judge_precision(case.arithmetic, has_bf16)


def judge_precision(chosen: Arithmetic, has_bf16: bool | None) -> Finding:
    """`has_bf16`: whether the GPU has it; None: there is no GPU."""
    bf16 = {None: "no GPU", True: "the GPU has bf16", False: "the GPU has no bf16"}[has_bf16]
    emulated = warn("bf16 would be emulated, which is slow", "--precision fp16 or fp32")
    slow = warn("on a CPU 16 bits are often slower than 32", "--precision auto, or measure both")
    return conclude(
        f"{chosen.name}: {chosen.reason}; {bf16}",
        emulated if chosen.name == "bf16" and has_bf16 is False else None,
        slow if chosen.name in ("bf16", "fp16") and has_bf16 is None else None,
        warn("fp64 is for proofs", "--precision auto") if chosen.name == "fp64" else None,
    )
