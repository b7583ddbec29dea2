"""Memory of the machine, of its GPUs, and what processes share."""

import shutil

import torch

from dcgan_dist.commands.doctor.case import Case
from dcgan_dist.commands.doctor.finding import Finding, conclude, fail, warn
from dcgan_dist.commands.words import counted
from dcgan_dist.run.console import human_bytes as size
from dcgan_dist.run.memory import available_memory, estimate, process_available

TIGHT = 0.8  # part of what is available
SHARED_BY_NCCL = 64e6  # bytes for each rank of this machine
MESSAGES = 1e6  # bytes of shared memory that locks between processes take


def check_memory(case: Case) -> Finding:
    """Memory of the machine and of its GPUs."""
    config, on_gpu, here = case.config, case.device.type == "cuda", case.local_ranks
    need = estimate(config, case.arithmetic, config.world_size or (case.world.size if case.world else here), on_gpu)
    free = [torch.cuda.mem_get_info(number)[0] for number in range(min(here, torch.cuda.device_count()))]
    return judge_memory(
        available=min(available_memory(), here * process_available()),
        each=need.host,
        once=need.host_once,
        ranks=here,
        surely=on_gpu or case.world is not None,
        gpu=(min(free), need.gpu) if free else None,
    )


def judge_memory(
    *, available: float, each: float, once: float, ranks: int, surely: bool, gpu: tuple[float, float] | None
) -> Finding:
    """Compares the estimated need with what is available; all in bytes.

    Args:
        available: to this process and its children.
        each: needed by every rank.
        once: needed by the main rank in addition.
        ranks: the number of ranks on this machine.
        surely: they all run here; else some of them may be meant for other machines.
        gpu: free on the fullest GPU, and needed on it; None: the run uses no GPU.
    """
    needed = ranks * each + once
    found = f"{size(available)} available; {counted(ranks, 'rank')} on this machine will use about {size(needed)}"
    less = "use fewer ranks here, a smaller --data.prefetch or --batch_size, or a job with more memory (sbatch --mem)"
    problems: list[Finding | None] = [_tight("memory", needed, available, less)]
    if each + once <= available < needed and not surely:
        part = f"not enough memory if all {ranks} ranks run on this machine"
        problems = [warn(part, f"under its launcher, doctor examines every machine; {less}")]
    if gpu is not None:
        found += f"; GPU: {size(gpu[0])} free, about {size(gpu[1])} needed"
        less = "use a larger --accumulate, a smaller --batch_size, more GPUs, or --checkpoint.blocking"
        problems.append(_tight("GPU memory", gpu[1], gpu[0], less))
    return conclude(found, *problems)


def _tight(what: str, needed: float, available: float, advice: str) -> Finding | None:
    if needed > available:
        return fail(f"not enough {what}", advice)
    return warn(f"{what} is tight", advice) if needed > TIGHT * available else None


def check_shared_memory(case: Case) -> Finding:
    """/dev/shm, through which the GPUs of one machine may communicate."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        free = None
    return judge_shared_memory(free, case.local_ranks if case.device.type == "cuda" else 0)


def judge_shared_memory(free: float | None, gpu_ranks: int) -> Finding:
    """`free`: bytes; None: there is no /dev/shm. Batches need none of it."""
    more = "enlarge it: docker run --shm-size=1g, or mount -o remount,size=1g /dev/shm"
    if free is None or free < MESSAGES:
        what = "there is no /dev/shm" if free is None else f"/dev/shm is full ({size(free)} free)"
        return fail(f"{what}: decoding processes cannot start", more)
    needed = SHARED_BY_NCCL * gpu_ranks if gpu_ranks > 1 else 0
    small = warn(f"NCCL may need about {size(needed)} for {gpu_ranks} ranks", more) if free < needed else None
    return conclude(f"/dev/shm has {size(free)} free", small)
