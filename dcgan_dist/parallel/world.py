"""The processes of this job, their devices and their collectives."""

import os
import socket
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dcgan_dist.config import Config, settings
from dcgan_dist.data.system.workers import available_cores
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.parallel.accelerator import accelerator_for
from dcgan_dist.parallel.activity import Activity
from dcgan_dist.parallel.rendezvous import rendezvous
from dcgan_dist.parallel.variables import MARK, check_gpus, check_variables

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
# Process groups, kept until the program ends: if DDP released the last reference, it would wait for a thread of gloo
# while it holds the GIL, for which that thread waits (seen with torch 2.11, in about one of ten runs on 4 ranks).
_kept: list[dist.ProcessGroup] = []


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the others of the job."""

    accelerator: "Accelerator"
    timeout: timedelta = timedelta(minutes=10)  # of the collectives
    activity: Activity = field(default_factory=Activity)
    alone: bool = False  # as if this rank were the only one, for comparisons with all of them

    @property
    def rank(self) -> int:
        """Number of this process in the job."""
        return 0 if self.alone else self.accelerator.process_index

    @property
    def size(self) -> int:
        """Number of processes in the job."""
        return 1 if self.alone else self.accelerator.num_processes

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0

    @property
    def local_main(self) -> bool:
        """Whether this is the first rank of its node."""
        return self.accelerator.is_local_main_process

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device

    @cached_property
    def local_size(self) -> int:
        """Ranks on this node; all ranks must ask for it together."""
        if self.size == 1:
            return 1
        if "LOCAL_WORLD_SIZE" in os.environ:  # set by torchrun and accelerate launch, not by srun
            return int(os.environ["LOCAL_WORLD_SIZE"])
        names = [""] * self.size
        self.activity.collective("local_size", dist.all_gather_object, names, socket.gethostname())
        return names.count(socket.gethostname())

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network in DDP, if there are several ranks."""
        if self.size == 1:
            return network
        with warnings.catch_warnings():
            # newer versions of torch have another name for broadcast_buffers
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            wrapped = self.accelerator.prepare_model(network, device_placement=False)
        # its gradient is the last one: then, to the end of the backward pass, DDP waits for those of the other ranks
        first = next(network.parameters())
        first.register_post_accumulate_grad_hook(lambda _: self.activity.begin_collective("gradients"))
        return wrapped

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss, averaged over the ranks if the network is wrapped."""
        self.accelerator.backward(loss)
        self.activity.end_collective()

    def no_sync(self, network: nn.Module) -> AbstractContextManager:
        """Within it, gradients of a wrapped network stay on this rank."""
        return self.accelerator.no_sync(network)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Adds up over all ranks, in place."""
        if self.size > 1:
            self.activity.collective("sum_", dist.all_reduce, tensor)
        return tensor

    def maximum(self, *values: int) -> tuple[int, ...]:
        """The largest of each number over all ranks; the same on all."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.int64, device=self.device)
        self.activity.collective("maximum", dist.all_reduce, tensor, op=dist.ReduceOp.MAX)
        return tuple(tensor.tolist())

    def from_main(self, make: Callable[[], T]) -> T:
        """The main rank's result, or error, of `make` on every rank."""
        with self.activity.patiently("from_main"):
            box: list[Any] = list(_attempt(make)) if self.main else [None, None]
            failure = box[1]
            if self.size > 1:
                box[1] = _as_user_error(failure, self.rank)
                dist.broadcast_object_list(box, src=0, device=self.device)
        if failure is not None and not isinstance(failure, UserError):
            raise failure  # a bug: its own traceback here, one line on the other ranks
        if box[1] is not None:
            raise box[1].of_all_ranks()
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, on all ranks, in their order."""
        values = [value] * self.size
        if self.size > 1:
            self.activity.collective("gather", dist.all_gather_object, values, value)
        return values

    def everywhere(self, act: Callable[[], T]) -> T:
        """Runs `act` on every rank; if it fails on any, every rank raises the same error."""
        with self.activity.patiently("everywhere"):
            result, failure = _attempt(act)
            failures = [_as_user_error(failure, self.rank)]
            if self.size > 1:
                failures *= self.size
                dist.all_gather_object(failures, _as_user_error(failure, self.rank))
        if failure is not None and not isinstance(failure, UserError):
            raise failure
        for error in failures:
            if error is not None:
                raise error.of_all_ranks()
        return cast(T, result)

    def main_first(self, make: Callable[[], T]) -> T:
        """Every rank's own result of `make`; the others call it after the main rank, and find its files on disk."""
        result, failure = _attempt(make) if self.main else (None, None)

        def finish() -> T:
            if failure is not None:
                raise failure
            return cast(T, result)

        self.wait_patiently()
        self.everywhere(finish)  # the others need not try after its error
        if not self.main:
            result, failure = _attempt(make)
        self.wait_patiently()
        return self.everywhere(finish)

    def wait_patiently(self) -> None:
        """Waits for ranks that may read or write files for hours, without --timeout."""
        if self.size > 1:
            group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
            assert isinstance(group, dist.ProcessGroup)
            dist.barrier(group=group)
            dist.destroy_process_group(group)

    def broadcast_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The main rank's named tensors on every rank (on the CPU); the argument of the others is ignored."""
        shapes = self.from_main(lambda: {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()})
        if self.size == 1:
            return tensors
        received: dict[str, Tensor] = {}
        for name, (shape, dtype) in shapes.items():
            value = (tensors[name] if self.main else torch.empty(shape, dtype=dtype)).to(self.device)
            self.activity.collective("broadcast_tensors", dist.broadcast, value, src=0)
            received[name] = value.cpu()
        return received

    def broadcast_buffers(self, *networks: nn.Module) -> None:
        """Gives every rank the main rank's parameters and buffers; DDP does not broadcast buffers here."""
        if self.size > 1:
            for network in networks:
                for tensor in network.state_dict(keep_vars=True).values():
                    self.activity.collective("broadcast_buffers", dist.broadcast, tensor.data, src=0)

    def barrier(self) -> None:
        """Waits for all ranks."""
        with self.activity.patiently("barrier"):
            self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Ends the process group."""
        if self.size > 1 and isinstance(dist.group.WORLD, dist.ProcessGroup):
            _kept.append(dist.group.WORLD)
        self.accelerator.end_training()


def _attempt(act: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """The result of `act` and None, or None and its error."""
    try:
        return act(), None
    except Exception as error:
        return None, error


def _as_user_error(error: Exception | None, rank: int) -> UserError | None:
    """An error as the other ranks raise it."""
    if error is None or isinstance(error, UserError):
        return error
    return UserError(f"rank {rank} failed: {type(error).__name__}: {' '.join(str(error).split())[:500]}")


def launch(config: Config, asked: bool = False) -> World:
    """Joins the processes that the launcher started. `asked`: this one was already asked to stop.

    Raises UserError when they do not find each other, and UsageError when --world_size is another number.
    """
    gpus = 0 if settings.cpu_requested(os.environ) else torch.cuda.device_count()
    check_variables(on_cpu=not gpus)
    check_gpus(gpus)
    accelerator = rendezvous(accelerator_for(config.timeout, cpu=not gpus), config.timeout, asked)
    activity = Activity(on_gpu=accelerator.device.type == "cuda")
    world = World(accelerator=accelerator, timeout=timedelta(seconds=config.timeout), activity=activity)
    # a dry run on one process describes the ranks of a later launch
    if config.world_size not in (None, world.size) and not config.dry_run:
        launched = "1 rank was" if world.size == 1 else f"{world.size} ranks were"
        advice = "check --num_processes of accelerate launch (--nproc-per-node of torchrun), or leave --world_size out"
        raise UsageError(f"--world_size {config.world_size}, but {launched} launched; {advice}")
    return world


def set_cpu_threads(world: World) -> str | None:
    """Sets the threads from OMP_NUM_THREADS or MKL_NUM_THREADS, else the node's cores divided by its CPU ranks.

    OMP_NUM_THREADS=1 counts only under our launcher, because others set it by default. Returns a line to print. Each of
    several ranks on GPUs gets one CPU thread by default.
    """
    requested = settings.requested_threads(os.environ, ours=MARK in os.environ)
    if world.device.type != "cpu":
        if world.size > 1 and requested is None:
            torch.set_num_threads(1)
        return None
    cores, ranks = available_cores(), world.local_size
    threads, why = requested or (max(1, cores // ranks), f"cores: {cores}, ranks on this node: {ranks}")
    torch.set_num_threads(threads)
    return f"computing threads per rank: {threads} ({why})"
