"""Processors, precision and memory; the launcher and the W&B server."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from dcgan_dist.commands.doctor.context import Context
from dcgan_dist.commands.doctor.finding import Finding, conclude, fail, ok, warn
from dcgan_dist.data.system.workers import available_cores
from dcgan_dist.parallel.variables import ADVICE, problem
from dcgan_dist.run.console import human_bytes as size
from dcgan_dist.run.memory import available_memory, estimate, process_available
from dcgan_dist.run.wandb_key import Answer, ask_server, resolve_mode
from dcgan_dist.text import counted

WANDB_TIMEOUT = 8.0  # seconds
TIGHT = 0.8  # part of the available memory


def check_devices(context: Context) -> Finding:
    """GPUs and CPU cores."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    names = [torch.cuda.get_device_name(gpu) for gpu in gpus]
    return judge_devices(names, list(map(gpu_error, gpus)), why_no_gpu(), context.local_ranks, available_cores())


def gpu_error(number: int) -> str:
    """Why a GPU cannot compute, in torch's words; "": it can."""
    try:
        torch.ones(1, device=f"cuda:{number}").add(1).item()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def why_no_gpu() -> str:
    """Why torch cannot use the GPUs of the driver; "": it can, or there are none, or they are hidden."""
    there = any(path.name.removeprefix("nvidia").isdecimal() for path in Path("/dev").glob("nvidia*"))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1", "NoDevFiles")  # the last is SLURM's
    if torch.cuda.is_available() or hidden or not there:
        return ""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # the latter: a build of torch without CUDA
        return " ".join(str(error).split())
    return "no reason given"


def judge_devices(names: Sequence[str], errors: Sequence[str], why_none: str, ranks: int, cores: int) -> Finding:
    """`names`, `errors`: of the GPUs; `why_none`: from `why_no_gpu`; `ranks`, `cores`: on this machine."""
    problems: list[Finding] = []
    for number, error in enumerate(errors):
        if error:
            advice = "install a torch and a driver that support this GPU, or leave it out with CUDA_VISIBLE_DEVICES"
            problems.append(fail(f"GPU {number} ({names[number]}) cannot compute: {error}", advice))
    if why_none:
        advice = "install the driver or the build of torch that it needs, or set CUDA_VISIBLE_DEVICES= to use the CPU"
        problems.append(fail(f"torch cannot use the NVIDIA GPUs of this machine: {why_none}", advice))
    if ranks > cores:
        advice = "give the job at least one core for each rank"
        problems.append(warn(f"{ranks} ranks share {counted(cores, 'CPU core')}", advice))
    gpus = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return conclude(f"{gpus or 'no GPU, so the run uses the CPU'}; {counted(cores, 'CPU core')}", *problems)


def check_precision(context: Context) -> Finding:
    """The precision of the networks."""
    chosen, gpu = context.arithmetic, context.device.type == "cuda"
    emulated = chosen.name == "bf16" and gpu and not torch.cuda.is_bf16_supported(including_emulation=False)
    slow = warn("bf16 is emulated on this GPU, which is slow", "use --precision fp16 or fp32")
    return conclude(f"{chosen.name}: {chosen.reason}", slow if emulated else None)


def check_memory(context: Context) -> Finding:
    """Memory of the machine and of its GPUs."""
    config, on_gpu, here = context.config, context.device.type == "cuda", context.local_ranks
    ranks = config.world_size or (context.world.size if context.world else here)
    need = estimate(config, context.arithmetic, ranks, on_gpu)
    free = [torch.cuda.mem_get_info(number)[0] for number in range(min(here, torch.cuda.device_count()))]
    return judge_memory(
        available=min(available_memory(), here * process_available()),
        each=need.host,
        once=need.host_once,
        ranks=here,
        surely=on_gpu or context.world is not None,
        gpu=(min(free), need.gpu) if free else None,
    )


def judge_memory(
    *, available: float, each: float, once: float, ranks: int, surely: bool, gpu: tuple[float, float] | None
) -> Finding:
    """In bytes: `each`: needed by a rank; `once`: also needed by the main rank; `gpu`: free on the fullest, and needed.

    `surely`: all `ranks` run on this machine; else some of them may run on others.
    """
    needed = ranks * each + once
    found = f"{size(available)} available; {counted(ranks, 'rank')} on this machine will use about {size(needed)}"
    less = "use fewer ranks here, a smaller --data.prefetch or --batch_size, or a job with more memory (sbatch --mem)"
    problems: list[Finding | None] = [_tight("memory", needed, available, less)]
    if each + once <= available < needed and not surely:
        part = f"not enough memory if all {ranks} ranks run on this machine"
        problems = [warn(part, f"under its launcher, doctor checks every machine; {less}")]
    if gpu is not None:
        found += f"; GPU: {size(gpu[0])} free, about {size(gpu[1])} needed"
        less = "use a larger --accumulate, a smaller --batch_size, more GPUs, or --checkpoint.blocking"
        problems.append(_tight("GPU memory", gpu[1], gpu[0], less))
    return conclude(found, *problems)


def _tight(what: str, needed: float, available: float, advice: str) -> Finding | None:
    if needed > available:
        return fail(f"not enough {what}", advice)
    return warn(f"{what} is tight", advice) if needed > TIGHT * available else None


def check_launcher(context: Context) -> Finding:
    """The variables that launchers and schedulers set."""
    env, launched, no_address = os.environ, context.world.size if context.world else 0, ""
    wrong = problem(env, on_cpu=context.device.type == "cpu") or ""
    try:
        socket.getaddrinfo(env.get("MASTER_ADDR", "127.0.0.1"), None)
    except (OSError, UnicodeError) as error:
        no_address = getattr(error, "strerror", None) or str(error)
    return judge_launcher(env, launched, torch.cuda.device_count(), wrong, no_address)


def judge_launcher(env: Mapping[str, str], launched: int, gpus: int, wrong: str, no_address: str) -> Finding:
    """`launched`: the number of launched ranks, 0 without a launcher; `wrong`: the problem with a launcher's variables;
    `no_address`: why MASTER_ADDR has no address; "": it has one, or is not set.
    """
    how = f"{launched} ranks were launched" if launched else "one process, without a launcher"
    nodes, given = env.get("SLURM_NNODES", "1"), env.get("SLURM_GPUS_ON_NODE", "")
    problems: list[Finding] = []
    if job := env.get("SLURM_JOB_ID"):
        how += f"; SLURM job {job} on {counted(int(nodes), 'node')}"
    if nodes != "1" and not launched:
        advice = "`srun torchrun .. -m dcgan_dist doctor ..` checks all of them, and their network"
        problems.append(warn(f"only 1 of {nodes} nodes is checked", advice))
    if given.isdecimal() and int(given) > gpus and not launched:
        advice = "see the line devices; srun may need the same --gpus-per-node as sbatch"
        problems.append(fail(f"the job has {given} GPUs on this node, torch sees {gpus}", advice))
    if no_address:
        advice = "use its IP address (MASTER_ADDR, --main_process_ip), or add it to /etc/hosts"
        problems.append(fail(f"MASTER_ADDR {env['MASTER_ADDR']} has no address here ({no_address})", advice))
    if wrong:
        problems.append(fail(f"{wrong} (environment)", ADVICE))
    return conclude(how, *problems)


def check_wandb(context: Context) -> Finding:
    """Whether the W&B server answers and accepts the key, if the run uses it."""
    options = context.config.wandb
    mode, reason = resolve_mode(options, os.environ)
    if mode != "online":
        return ok(f"not used: W&B is {mode} ({reason})")
    asked = options.mode == "online" or bool(os.environ.get("WANDB_MODE"))
    return judge_wandb(ask_server(WANDB_TIMEOUT), asked)


def judge_wandb(answer: Answer, asked: bool) -> Finding:
    """`asked`: the user requested W&B, so that its absence is a failure."""
    if answer.accepted:
        return ok(f"online: {answer.what}")
    key = "`wandb login --relogin`, or set WANDB_API_KEY"
    connection = "fix the connection or WANDB_BASE_URL; or --wandb.mode offline, and `dcgan-dist wandb sync RUN` later"
    found = f"{answer.what}; the run would be logged offline"
    return (fail if asked else warn)(found, key if answer.reached else connection)
