"""`dcgan-dist doctor`: examines this machine for this run, and prints what is fine and what is not."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dcgan_dist import cli
from dcgan_dist.commands.doctor import disk, hardware, memory, outside, ranks, run_folder, shards
from dcgan_dist.commands.doctor.case import Case
from dcgan_dist.commands.doctor.exchange import Exchange
from dcgan_dist.commands.doctor.finding import Finding, FoundError, fail
from dcgan_dist.commands.doctor.table import Line, lines_of, summary
from dcgan_dist.commands.output import check_output
from dcgan_dist.config import Config, Options
from dcgan_dist.data.storage import write_atomically
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.parallel.variables import problem
from dcgan_dist.parallel.world import World, launch, set_cpu_threads
from dcgan_dist.run.folder import environment

PROGRAM = "dcgan-dist doctor"
MARGIN = 30.0  # seconds that one rank may be later than another
GROUP_TIMEOUT = 180  # seconds: more than a check may take, for NCCL ends the whole process when it is over
A_DAY = 86_400.0  # seconds


@dataclass(frozen=True)
class Check:
    """One of the things that are looked at."""

    act: Callable[[Case], Finding]
    seconds: float
    """After which it counts as failed."""
    together: bool = False
    """All ranks take part in it."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Options):
    """Examine this machine for a training with these options: what is fine, what is not, and what to do about it.

    Exit code 0: nothing fails; 1: something does; 2: wrong usage. Under a launcher (dcgan-dist launch -m dcgan_dist
    doctor) its ranks and all their nodes are examined.
    """

    only: tuple[str, ...] = ()
    """Names of checks, as in --only disk,ranks; absent: all."""
    skip: tuple[str, ...] = ()
    """Checks to leave out."""
    deep: bool = False
    """Read the shards to their ends, and decode every image."""
    json: Path | None = None
    """File for all that was found."""
    overwrite: bool = False
    """Let --json replace a file."""


def main(argv: list[str]) -> int:
    """Runs the command; 1 if anything fails. Raises UsageError and UserError."""
    # of variables that are wrong the check `launcher` speaks
    several = problem(os.environ, on_cpu=True) is None and int(os.environ.get("WORLD_SIZE", "1")) > 1
    rank = int(os.environ["RANK"]) if several else 0
    own, config = _options(argv, quiet=rank != 0)
    world = _join(config) if several else None
    config.per_rank(world.size if world is not None else config.world_size or 1)
    case = Case(config=config, deep=own.deep, world=world)
    only, skip = _names(own.only) or CHECKS, _names(own.skip)
    names = [name for name in CHECKS if name in only and name not in skip]
    began = time.monotonic()
    exchange = Exchange(world) if world is not None else None
    lines = _on_all_ranks(case, names, exchange, rank == 0) if exchange is not None else _alone(case, names)
    if rank == 0:
        print(summary(lines, time.monotonic() - began), flush=True)
        if own.json is not None:
            found = json.dumps(_results(lines), indent=1).encode() + b"\n"
            write_atomically(own.json, found, new=not own.overwrite)
            print(f"written: {own.json}", flush=True)
    if exchange is not None:
        exchange.end()
    return _end(lines, world)


def _join(config: Config) -> World:
    """The ranks that were launched. Raises UserError when they do not find each other."""
    world = launch(replace(config, timeout=GROUP_TIMEOUT))
    set_cpu_threads(world)
    _ = world.local_size  # which all ranks may have to find out together
    return world


def _options(argv: Sequence[str], quiet: bool) -> tuple[DoctorOptions, Config]:
    """This command's own options, and the training's."""
    own, config = cli.load_with(DoctorOptions, argv, PROGRAM, quiet=quiet)
    for option in ("only", "skip"):
        unknown = [name for name in _names(getattr(own, option)) if name not in CHECKS]
        if unknown:
            raise UsageError(f"--{option}: there is no check '{unknown[0]}'; there are {', '.join(CHECKS)}")
    if own.json is not None:
        check_output("--json", own.json, own.overwrite)
        if not own.json.absolute().parent.is_dir():
            raise UsageError(f"--json {own.json}: name a file in a folder that exists")
    return own, config


def _names(words: Sequence[str]) -> list[str]:
    """Of checks, which may be parted by commas."""
    return [name for word in words for name in word.split(",")]


def _alone(case: Case, names: Sequence[str]) -> list[Line]:
    """All checks one after the other, each line as soon as it is known."""
    lines: list[Line] = []
    for name in names:
        line = examine(name, CHECKS[name], case)
        print("\n".join(lines_of(line, CHECKS)), flush=True)
        lines.append(line)
    return lines


def _on_all_ranks(case: Case, names: Sequence[str], exchange: Exchange, main: bool) -> list[Line]:
    """What every node's first rank finds at its place; then, when all are back, what the ranks do together.

    The same lines on all ranks. The main rank prints them.
    """
    lines: list[Line] = []
    alone = [name for name in names if not CHECKS[name].together]
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        lines = [examine(name, CHECKS[name], case) for name in alone]
    limit = MARGIN + sum(_limit(name, CHECKS[name], case) for name in alone)
    found = [line for each in exchange.gather("nodes", lines, limit) for line in each]
    found.sort(key=lambda line: list(CHECKS).index(line.check))
    _print(found, main)
    if any(line.hung and CHECKS[line.check].together for line in found):
        return found  # a rank is missing
    lines, began = [], time.monotonic()
    for name in (name for name in names if CHECKS[name].together):
        lines.append(examine(name, CHECKS[name], case))
        if lines[-1].hung:
            break
    left = sum(CHECKS[line.check].seconds for line in lines) - (time.monotonic() - began)
    together = _merged(exchange.gather("ranks", lines, MARGIN + max(left, 0)))
    _print(together, main)
    return found + together


def _merged(lines: list[list[Line]]) -> list[Line]:
    """What the main rank says, for all say the same; but where others say what is wrong in other words, these too."""
    main, *others = lines
    merged, said = list(main), {line.found for line in main}
    for rank, each in enumerate(others, 1):
        first = next((line for line in each if line.mark == "FAIL"), None)
        if first is not None and first.found not in said:
            said.add(first.found)
            merged.append(replace(first, found=f"rank {rank}: {first.found}"))
    return merged


def _print(lines: Sequence[Line], main: bool) -> None:
    if not (main and lines):
        return
    nodes = len({line.node for line in lines}) > 1
    print("\n".join(text for line in lines for text in lines_of(line, CHECKS, node=nodes)), flush=True)


def examine(name: str, check: Check, case: Case) -> Line:
    """The finding of one check, whatever happens in it."""
    box: list[Finding] = []
    limit = _limit(name, check, case)
    thread = threading.Thread(target=lambda: box.append(_finding(check, case)), name=name, daemon=True)
    began = time.monotonic()
    thread.start()
    thread.join(limit)
    seconds = time.monotonic() - began
    if check.together:
        advice = f"the ranks wait for each other: {ranks.NETWORK}"
    else:
        advice = f"something here does not answer, perhaps a file server or a network; --skip {name} leaves it out"
    finding = box[0] if box else fail(f"no answer within {limit:g} s", advice)
    return Line(check=name, node=socket.gethostname(), seconds=seconds, hung=not box, **asdict(finding))


def _limit(name: str, check: Check, case: Case) -> float:
    return A_DAY if case.deep and name == "shards" else check.seconds


def _finding(check: Check, case: Case) -> Finding:
    try:
        return check.act(case)
    except FoundError as found:
        return found.finding
    except UserError as error:
        return fail(" | ".join(str(error).splitlines()), "the training would end with these words: do what they say")
    except Exception as error:
        what = " ".join(str(error).split())[:300]
        return fail(f"the check itself failed: {type(error).__name__}: {what}", "report it, and leave it out by --skip")


def _results(lines: Sequence[Line]) -> dict[str, Any]:
    """For --json. The command is left out, for it can hold secrets."""
    about = {name: value for name, value in environment().items() if name != "command"}
    failed = any(line.mark == "FAIL" for line in lines)
    return {"ok": not failed, "about": about, "checks": [asdict(line) for line in lines]}


def _end(lines: Sequence[Line], world: World | None) -> int:
    code = int(any(line.mark == "FAIL" for line in lines))
    if world is not None and any(line.mark == "FAIL" and CHECKS[line.check].together for line in lines):
        sys.stdout.flush()
        os._exit(code)  # a thread that waits for another rank, or the end of their group, would keep this process
    if world is not None:
        world.close()
    return code


CHECKS: dict[str, Check] = {
    "devices": Check(hardware.check_devices, 20),
    "precision": Check(hardware.check_precision, 20),
    "launcher": Check(outside.check_launcher, 20),
    "space": Check(disk.check_space, 20),
    "disk": Check(disk.check_disk, 30),
    "locks": Check(disk.check_locks, 10),
    "shards": Check(shards.check_shards, 60),
    "run_dir": Check(run_folder.check_run_dir, 120),  # the shards are open by now
    "cache": Check(shards.check_cache, 30),
    "memory": Check(memory.check_memory, 20),
    "shared_memory": Check(memory.check_shared_memory, 10),
    "wandb": Check(outside.check_wandb, 20),
    "ranks": Check(ranks.check_ranks, 120, together=True),
    "equality": Check(ranks.check_equality, 120, together=True),
}
