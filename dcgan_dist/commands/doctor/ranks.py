"""The ranks: their reports, their communication, and whether they compute the same as one rank."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from dcgan_dist import cli
from dcgan_dist.commands.doctor.context import Context
from dcgan_dist.commands.doctor.finding import Finding, Line, conclude, fail, warn
from dcgan_dist.config import Config
from dcgan_dist.config.groups import SyncBatchNorm
from dcgan_dist.data.system.workers import shielded_program
from dcgan_dist.errors import UserError
from dcgan_dist.parallel.engine import Iteration
from dcgan_dist.parallel.launcher import Job
from dcgan_dist.parallel.noise import split_of
from dcgan_dist.parallel.store import ask, connect, host
from dcgan_dist.parallel.world import World
from dcgan_dist.run.console import human_bytes as size

T = TypeVar("T")
ANSWER = 30.0  # seconds that the launcher's store may take
LOOK_EVERY = 0.1  # seconds
RUN = "from dcgan_dist import __main__ as front; from dcgan_dist.parallel import shutdown; shutdown.leave(front.main())"
PROGRAM = (sys.executable, "-c", RUN, "doctor")
SECONDS = 240.0  # for all started ranks; importing torch from a slow file server may take a minute
TURNS = 10
SLOW = 0.2  # seconds that the all-reduce of the gradients may take
ITERATIONS = 3
IMAGES = 4  # of a micro-batch on each rank
MOST_MICRO_BATCHES = 3
EQUAL = 1e-10  # in float64, of a tensor's norm
NETWORK = "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network of the ranks; no firewall may block it"
FOREIGN = ("SLURM_", "PMI", "OMPI_", "MV2_", "ACCELERATE_", "TORCHELASTIC_", "FSDP_")  # of other launchers


def gather(world: World, what: str, lines: Sequence[Line], seconds: float) -> list[Line]:
    """The lines of all ranks; for a rank that does not answer within `seconds`, a line with that failure.

    Uses the launcher's store, which works also when collectives do not. Raises UserError when it is gone.
    """
    names = [f"{what}/{rank}" for rank in range(world.size)]
    store = _ask(lambda: connect("doctor", ANSWER))
    _ask(lambda: store.set(names[world.rank], json.dumps([asdict(line) for line in lines])))
    deadline = time.monotonic() + seconds
    while not _ask(lambda: store.check(names)) and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY)
    found: list[Line] = []
    for rank, name in enumerate(names):
        if _ask(lambda name=name: store.check([name])):
            found += [Line(**line) for line in json.loads(_ask(lambda name=name: store.get(name)))]
        else:
            silent = fail(f"rank {rank} did not report within {seconds:.0f} s", "check its output and its machine")
            found.append(Line(**asdict(silent), check="ranks", node=f"rank {rank}", seconds=seconds, hung=True))
    return found


def _ask(call: Callable[[], T]) -> T:
    try:
        return ask(call).result(ANSWER)
    except (RuntimeError, OSError) as error:
        why = " ".join(str(error).split())[:200] or f"no answer within {ANSWER:g} s"
        problem = f"the launcher's store is gone: its process, or that of rank 0, has ended or hangs ({why})"
        raise UserError(problem) from error


def local_world(config: Config) -> tuple[int, bool]:
    """The number of ranks to start here, and whether on GPUs: one on each that the run uses, else two on CPUs."""
    gpus = min(torch.cuda.device_count(), config.world_size or torch.cuda.device_count())
    return (gpus, True) if gpus > 1 else (2, False)


def examine_local_ranks(config: Config, checks: Sequence[str]) -> list[Line]:
    """The lines of ranks that are started here, and ended. Raises UserError when one fails or does not end."""
    (ranks, on_gpu), store = local_world(config), host()
    cpu = {} if on_gpu else {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}
    env = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)} | cpu
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        options, out = Path(folder) / "config.yaml", Path(folder) / "found.json"
        options.write_text(cli.dump(replace(config, world_size=None, batch_size=ranks * config.accumulate)))
        command = [*PROGRAM, "--config", options, "--only", ",".join(checks), "--json", out]
        logs = [Path(folder) / f"{rank}.log" for rank in range(ranks)]
        processes: list[subprocess.Popen] = []
        for log, variables in zip(logs, Job(here=ranks, port=store.port).environments(env), strict=True):
            with log.open("w") as file:
                program = shielded_program(command, env=variables, stdout=subprocess.DEVNULL, stderr=file)
                processes.append(running.enter_context(program))
        failed = _wait(processes)
        if out.exists():
            return [Line(**line) for line in json.loads(out.read_text())["checks"]]
        lines = logs[failed].read_text(errors="replace").strip().splitlines()
        why = lines[-1][:300] if lines else f"exit code {processes[failed].returncode}"
        raise UserError(f"rank {failed} of {ranks} failed: {why}")


def _wait(processes: Sequence[subprocess.Popen]) -> int:
    """Waits until rank 0 has ended or another one has failed, and returns its number."""
    deadline = time.monotonic() + SECONDS
    while processes[0].poll() is None:
        failed = next((rank for rank, process in enumerate(processes) if process.poll()), None)
        if failed is not None:
            return failed
        if time.monotonic() > deadline:
            raise UserError(f"the {len(processes)} ranks did not end within {SECONDS:g} s")
        time.sleep(LOOK_EVERY)
    return 0


def check_ranks(context: Context) -> Finding:
    """Times the all-reduce of the gradients; takes the median of the slowest rank."""
    (world, ranks), turns = _launched(context), []
    gradients = torch.zeros(context.networks.gradients // 4, device=world.device)
    for _ in range(TURNS):
        world.barrier()
        began = time.perf_counter()
        world.sum_(gradients)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        turns.append(time.perf_counter() - began)
    return judge_ranks(ranks, max(world.gather(statistics.median(turns))), gradients.nbytes)


def judge_ranks(ranks: str, seconds: float, gradients: int) -> Finding:
    """`seconds`: for an all-reduce of `gradients` bytes."""
    found = f"{ranks}: the all-reduce of the gradients ({size(gradients)}) takes {seconds * 1e3:,.1f} ms"
    advice = f"stop other programs on these machines; {NETWORK}; or use fewer ranks, or a larger --batch_size"
    return conclude(found, warn("the ranks communicate slowly", advice) if seconds > SLOW else None)


def check_equality(context: Context) -> Finding:
    """Whether training on all ranks gives the same weights as on one, in float64."""
    world, ranks = _launched(context)
    deviation, tensor = max(world.gather(deviate(small_run(context.config, world.size), world)))
    return judge_equality(ranks, deviation, tensor, context.config.sync_batchnorm)


def judge_equality(ranks: str, deviation: float, tensor: str, sync_batchnorm: SyncBatchNorm) -> Finding:
    """`deviation`: relative, the largest of all tensors and ranks; inf: not a number; `tensor`: its name.

    Equality is promised with shared BatchNorm statistics.
    """
    found = f"{ranks}: after {ITERATIONS} iterations in float64, the weights differ by {deviation:.0e} from those of "
    found += "one rank"
    if not deviation <= EQUAL:
        advice = "do not train on several ranks with this torch and these drivers; report this line and the versions"
        return fail(f"several ranks do not compute what one computes (worst: {tensor}); {found}", advice)
    unit = {"none": "ranks", "node": "nodes"}.get(sync_batchnorm)
    differs = f"with --sync_batchnorm {sync_batchnorm}, another number of {unit} trains differently"
    local = warn(differs, "use --sync_batchnorm global, unless you want this")
    return conclude(found, local if unit else None)


def _launched(context: Context) -> tuple[World, str]:
    """The ranks, and their description."""
    world = context.world
    assert world is not None
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)  # each check is a thread, and barriers use the thread's device
    return world, f"{world.size} ranks on {'GPUs (NCCL)' if world.device.type == 'cuda' else 'the CPU (gloo)'}"


def small_run(config: Config, ranks: int) -> Config:
    """The configuration with tiny networks in float64 and the same loss, augmentation, schedule and memory format."""
    accumulate = min(config.accumulate, MOST_MICRO_BATCHES)
    size = 48 if config.model.image_size % 3 == 0 else 32
    # without shared statistics several ranks train differently, which the finding reports
    shared = "global" if config.sync_batchnorm in ("none", "node") else config.sync_batchnorm
    batch = IMAGES * ranks * accumulate
    return replace(
        config,
        images=ITERATIONS * batch,
        model=replace(config.model, image_size=size, nz=8, ngf=4, ndf=4),
        precision="fp64",
        accumulate=accumulate,
        batch_size=batch,
        sync_batchnorm=shared,
        world_size=None,
    )


def deviate(config: Config, world: World) -> tuple[float, str]:
    """Trains on all ranks together and on this one alone; the largest difference of a tensor, and its name."""
    one = World(accelerator=world.accelerator, timeout=world.timeout, alone=True)
    together, alone = (_trained(config, each) for each in (world, one))
    return max((_difference(together[name], alone[name]), name) for name in alone)


def _trained(config: Config, world: World) -> dict[str, Tensor]:
    """The state after training on random images, of which each rank takes its part, half of them mirrored."""
    split = split_of(config, world)
    places = torch.cat([torch.arange(start, start + split.per_rank_micro) for start in split.slices(0)])
    shape = (ITERATIONS, config.batch_size, config.model.channels, config.model.image_size, config.model.image_size)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(config.seed))
    flips = (places % 2 == 0).to(world.device)
    iteration = Iteration(config, world, ((batch, flips) for batch in images[:, places].to(world.device)))
    for _ in range(ITERATIONS):
        iteration.run()
    tensors = iteration.state.tensors()
    return {f"{file}/{name}": t.double() for file, each in tensors.items() for name, t in each.items()}


def _difference(ours: Tensor, theirs: Tensor) -> float:
    norm, difference = float(theirs.norm()), float((ours - theirs).norm())
    found = difference / norm if norm else difference
    return found if found == found else float("inf")
