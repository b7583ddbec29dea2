"""How much memory a run will need, and how much there is."""

import math
import resource
from dataclasses import dataclass

import psutil
import torch

from dcgan_dist.config import Config
from dcgan_dist.data.reading.shared_batch import bytes_of_batch
from dcgan_dist.data.system.cgroups import memory_limits
from dcgan_dist.errors import UsageError
from dcgan_dist.gan.network_sizes import measure_networks
from dcgan_dist.parallel.precision import Arithmetic
from dcgan_dist.parallel.world import World
from dcgan_dist.run.console import human_bytes
from dcgan_dist.text import Say

PROCESS = {"cpu": 0.7e9, "cuda": 3.0e9}  # bytes of a rank at its start
GPU_CONTEXT = 1.0e9  # bytes
BOTH_WAYS = 2  # a layer's output, and its gradient
LEAST = 0.25  # of that, which autograd keeps at least; measured: 0.3 to 0.4 on CPUs
DECODER = 40e6  # bytes of a decoding process
COPIES = 4  # of the sample grid
NAMED = 0.2  # fraction of all from which on a part is named


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that a run needs. The minima are given by what needs them, with the options that decide it."""

    computing: dict[str, float]  # minimum for each rank, where it computes
    reading: dict[str, float]  # minimum for each rank, in the machine's memory
    showing: dict[str, float]  # minimum for the main rank, in the machine's memory
    host: float  # estimate for each rank, in the machine's memory
    host_once: float  # estimate of what the main rank needs besides
    gpu: float  # estimate for the main rank, on its GPU


def estimate(config: Config, chosen: Arithmetic, ranks: int, on_gpu: bool) -> Need:
    """What a run on that many ranks needs. `on_gpu`: they compute on GPUs."""
    model, data, networks = config.model, config.data, measure_networks(config, chosen.weights)
    images = -(-config.batch_size // ranks)
    ahead = (data.prefetch + 2) * bytes_of_batch(images, model.image_size, model.channels)
    ahead += data.workers * DECODER * (data.decode == "processes")
    state = networks.checkpoint + networks.gradients
    outputs = BOTH_WAYS * networks.outputs * images / config.accumulate / (1 if chosen.forward is None else 2)
    picture = COPIES * model.channels * model.image_size**2 + chosen.weights.itemsize * model.nz
    copy = 0 if config.checkpoint.blocking else networks.checkpoint  # while it is written
    batch = f"--batch_size {config.batch_size}"
    return Need(
        computing={
            f"the networks (--model.nz {model.nz}, --model.ngf {model.ngf}, --model.ndf {model.ndf})": state,
            f"their outputs ({batch}, --accumulate {config.accumulate})": LEAST * outputs,
        },
        reading={f"reading ahead (--data.prefetch {data.prefetch}, --data.workers {data.workers}, {batch})": ahead},
        showing={f"pictures (--log.samples {config.log.samples})": config.log.samples * picture},
        host=PROCESS["cuda" if on_gpu else "cpu"] + ahead + (0 if on_gpu else state + outputs),
        host_once=0 if on_gpu else copy,
        gpu=GPU_CONTEXT + state + outputs + copy,
    )


def require_memory(config: Config, chosen: Arithmetic, world: World, say: Say) -> None:
    """Raises UsageError when a run needs more than there is, and warns when it may need more than is free.

    All ranks call it together. A dry run counts only the ranks that were started here: others of the
    `config.world_size` ranks may be on other machines.
    """
    on_gpu, ranks = world.device.type == "cuda", config.world_size or world.size
    here = min(world.local_size, ranks)
    need = estimate(config, chosen, ranks, on_gpu)

    def check() -> None:
        each = need.reading if on_gpu else need.reading | need.computing
        _refuse(need.showing | {name: here * taken for name, taken in each.items()}, total_memory(), "there is")
        _refuse(need.showing | each, process_limit(), "by ulimit a process may have")
        if on_gpu:
            _refuse(need.computing, torch.cuda.mem_get_info(world.device)[1], "a GPU has")

    world.everywhere(check)
    for count, free in ((here, available_memory()), (1, process_available())):
        rough = count * need.host + need.host_once
        if rough > free:
            what = f"this run may need {human_bytes(rough)} of memory here, and {human_bytes(free)} are free"
            say(f"WARNING: {what}: dcgan-dist doctor --only memory")
            break


def _refuse(parts: dict[str, float], there: float, who: str) -> None:
    needed = sum(parts.values())
    if needed > there:
        largest = sorted((item for item in parts.items() if item[1] > NAMED * needed), key=lambda item: -item[1])
        why = ", ".join(f"{human_bytes(taken)} for {name}" for name, taken in largest)
        raise UsageError(
            f"{human_bytes(needed)} of memory are needed at least, and {who} {human_bytes(there)}: {why}; lower them"
        )


def total_memory() -> float:
    """Bytes that all processes of the job can have on this machine: its memory, and the job's limits."""
    machine = psutil.virtual_memory().total + psutil.swap_memory().total
    return min([machine, *(limit for limit, _ in memory_limits())])


def process_limit() -> float:
    """Bytes that each process can have, by ulimit -v and -d."""
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=math.inf)


def available_memory() -> float:
    """Bytes that are free, also within the job's limits."""
    return min([psutil.virtual_memory().available, *(left for _, left in memory_limits())])


def process_available() -> float:
    """Bytes of address space that are free for this process by ulimit -v."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return math.inf if limit == resource.RLIM_INFINITY else limit - psutil.Process().memory_info().vms
