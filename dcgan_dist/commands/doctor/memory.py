"""Memory, and what the system lets a process have."""

import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from dcgan_dist.commands.doctor.case import Case
from dcgan_dist.commands.doctor.finding import Finding, conclude, fail, warn
from dcgan_dist.commands.words import counted
from dcgan_dist.data.reading.fetch import MOST_OPEN
from dcgan_dist.run.console import human_bytes as size
from dcgan_dist.run.memory import available_memory, estimate, process_available

TIGHT = 0.8  # part of what is there
SHARED_BY_NCCL = 64e6  # bytes for each rank of this machine
MESSAGES = 1e6  # bytes of shared memory that locks between processes take
FILES_A_SHARD = 2  # half of the descriptors are left to other things
LOCKED_BY_NETWORK = 1e9  # bytes that InfiniBand may want to pin


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes."""

    available: float
    """That this process and its children may still take."""
    ranks: int
    """That will share this machine."""
    surely: bool
    """All of them: they were launched, or have their GPUs. Else they may be meant for several machines."""
    needed: float
    """By all of them, roughly."""
    alone: float
    """By the main rank alone."""
    ring: float
    """Of it, batches that are read ahead."""
    gpu_free: float | None
    """On the fullest GPU of those that a rank will have; None: there is none."""
    gpu_needed: float
    """By the main rank, roughly."""


def check_memory(case: Case) -> Finding:
    """Memory of the machine and of its GPUs."""
    config, on_gpu = case.config, case.device.type == "cuda"
    ranks = config.world_size or (case.world.size if case.world else case.local_ranks)
    need = estimate(config, case.arithmetic, ranks, on_gpu)
    used = min(case.local_ranks, torch.cuda.device_count())
    free = [torch.cuda.mem_get_info(number)[0] for number in range(used)]
    return judge_memory(
        Memory(
            available=min(available_memory(), case.local_ranks * process_available()),
            ranks=case.local_ranks,
            surely=on_gpu or case.world is not None,
            needed=case.local_ranks * need.host + need.host_once,
            alone=need.host + need.host_once,
            ring=case.local_ranks * sum(need.reading.values()),
            gpu_free=min(free) if free else None,
            gpu_needed=need.gpu,
        )
    )


def judge_memory(facts: Memory) -> Finding:
    """Whether what is needed is there."""
    found = f"{size(facts.available)} of memory available, about {size(facts.needed)} needed by "
    found += f"{counted(facts.ranks, 'rank')} here ({size(facts.ring)} of it batches read ahead)"
    less = "fewer ranks here, a smaller --data.prefetch or --batch_size, or a job with more memory (sbatch --mem)"
    problems: list[Finding | None] = [_tight("memory", facts.needed, facts.available, less)]
    if facts.alone <= facts.available < facts.needed and not facts.surely:
        part = f"too little memory, if all {facts.ranks} ranks run here"
        problems = [warn(part, f"under its launcher the doctor examines every machine; {less}")]
    if facts.gpu_free is not None:
        found += f"; GPU: {size(facts.gpu_free)} free, about {size(facts.gpu_needed)} needed"
        less = "a larger --accumulate, a smaller --batch_size, more GPUs, or --checkpoint.blocking"
        problems.append(_tight("GPU memory", facts.gpu_needed, facts.gpu_free, less))
    return conclude(found, *problems)


def _tight(what: str, needed: float, there: float, advice: str) -> Finding | None:
    if needed > there:
        return fail(f"too little {what}", advice)
    return warn(f"{what} is tight", advice) if needed > TIGHT * there else None


@dataclass(frozen=True, kw_only=True)
class SharedMemory:
    """/dev/shm."""

    free: float | None
    """Bytes; None: there is none."""
    ranks: int
    """GPU ranks that will talk through it; 0 or 1: none."""


def check_shared_memory(case: Case) -> Finding:
    """/dev/shm, by which GPUs of one machine may talk."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        free = None
    return judge_shared_memory(SharedMemory(free=free, ranks=case.local_ranks if case.device.type == "cuda" else 0))


def judge_shared_memory(facts: SharedMemory) -> Finding:
    """The ring of batches is no part of it: it has memory without a name, which counts as the process's own."""
    more = "enlarge it: docker run --shm-size=1g, or mount -o remount,size=1g /dev/shm"
    if facts.free is None or facts.free < MESSAGES:
        what = "there is no /dev/shm" if facts.free is None else f"/dev/shm is full ({size(facts.free)} free)"
        return fail(f"{what}: decoding processes cannot start", more)
    needed = SHARED_BY_NCCL * facts.ranks if facts.ranks > 1 else 0
    small = warn(f"NCCL may want about {size(needed)} for {facts.ranks} ranks", more)
    return conclude(
        f"/dev/shm has {size(facts.free)} free; batches do not lie in it", small if facts.free < needed else None
    )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What this process may have (ulimit)."""

    files: float
    """Open ones that it may allow itself."""
    shards: int
    """Open at a time."""
    file_size: float
    """Bytes of one file."""
    largest_file: float
    """Bytes of the largest one of a checkpoint."""
    locked: float
    """Bytes that it may pin."""
    infiniband: bool
    """A network that pins memory is there."""


def check_limits(case: Case) -> Finding:
    """Limits of the process. Those of another file system's quota are not known to it."""

    def limit(kind: int, hard: bool = False) -> float:
        value = resource.getrlimit(kind)[hard]
        return float("inf") if value == resource.RLIM_INFINITY else value

    return judge_limits(
        Limits(
            files=limit(resource.RLIMIT_NOFILE, hard=True),  # the reader raises the soft limit to what it needs
            shards=min(case.shards, MOST_OPEN),
            file_size=limit(resource.RLIMIT_FSIZE),
            largest_file=case.networks.largest_file,
            locked=limit(resource.RLIMIT_MEMLOCK),
            infiniband=Path("/dev/infiniband").is_dir(),
        )
    )


def judge_limits(facts: Limits) -> Finding:
    """Against what the run needs."""
    files = "any number of" if facts.files == float("inf") else f"{facts.files:,.0f}"
    needed = FILES_A_SHARD * facts.shards
    return conclude(
        f"{files} files may be open" + (f"; open at a time: {counted(facts.shards, 'shard')}" if facts.shards else ""),
        fail(
            f"no file may be larger than {size(facts.file_size)}, but a checkpoint has one of "
            f"{size(facts.largest_file)}",
            "ulimit -f unlimited",
        )
        if facts.file_size < facts.largest_file
        else None,
        warn("shards will be closed and opened again all the time", f"ulimit -Hn {needed} or more; or larger shards")
        if facts.files < needed
        else None,
        warn(f"only {size(facts.locked)} may be pinned, and InfiniBand is here", "ulimit -l unlimited")
        if facts.infiniband and facts.locked < LOCKED_BY_NETWORK
        else None,
    )
