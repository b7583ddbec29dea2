"""Ranks on this machine, started as a launcher does, with an end to all waiting."""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from dcgan_dist import cli
from dcgan_dist.config import Config
from dcgan_dist.data.workers import deaf_program
from dcgan_dist.parallel.peers import host

RANK = (sys.executable, "-m", "dcgan_dist.commands.doctor.rank")
SECONDS = 100.0  # until all ranks must have ended; from a cold file server torch alone takes a minute
LOOK_EVERY = 0.1  # seconds
FOREIGN = ("SLURM_", "PMI", "OMPI_", "MV2_", "ACCELERATE_", "TORCHELASTIC_", "FSDP_", "MASTER_")  # of other launchers


class RanksError(Exception):
    """Ranks that failed, or did not end."""


def local_world(config: Config) -> tuple[int, bool]:
    """How many ranks are started here, and whether on GPUs: one each on all that the run will use, else two on CPUs."""
    gpus = min(torch.cuda.device_count(), config.world_size or torch.cuda.device_count())
    return (gpus, True) if gpus > 1 else (2, False)


def run_locally(config: Config, ranks: int, on_gpu: bool) -> dict[str, Any]:
    """What rank 0 answers. Raises RanksError when a rank fails or does not end; no process outlives this call."""
    with tempfile.TemporaryDirectory() as folder:
        options, out = Path(folder) / "config.yaml", Path(folder) / "answer.json"
        options.write_text(cli.dump(config))
        store = host()
        logs = [Path(folder) / f"{rank}.log" for rank in range(ranks)]
        with ExitStack() as running:
            processes: list[subprocess.Popen] = []
            for rank, log in enumerate(logs):
                with log.open("w") as file:
                    environment = _environment(rank, ranks, store.port, on_gpu)
                    streams = {"stdout": file, "stderr": subprocess.STDOUT}
                    program = deaf_program([*RANK, options, out], env=environment, **streams)
                    processes.append(running.enter_context(program))
            _wait(processes, logs)
            return json.loads(out.read_text())


def _wait(processes: list[subprocess.Popen], logs: list[Path]) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        codes = [process.poll() for process in processes]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None:
            lines = logs[failed].read_text(errors="replace").strip().splitlines() or [f"exit code {codes[failed]}"]
            raise RanksError(f"rank {failed} of {len(processes)} failed: {lines[-1][:300]}")
        waiting = [rank for rank, code in enumerate(codes) if code is None]
        if not waiting:
            return
        if time.monotonic() > deadline:
            which = " and ".join(map(str, waiting))
            raise RanksError(f"of {len(processes)} ranks, {which} have not ended within {SECONDS:g} s")
        time.sleep(LOOK_EVERY)


def _environment(rank: int, ranks: int, port: int, on_gpu: bool) -> dict[str, str]:
    """What torchrun sets; of other launchers' variables, none."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    threads = {} if on_gpu else {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}
    return (
        kept
        | threads
        | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # rank 0 makes none of its own
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
    )
