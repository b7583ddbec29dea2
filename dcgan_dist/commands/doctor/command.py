"""`dcgan-dist doctor`: runs the checks, on this machine or on all launched ranks, and prints the results."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from dcgan_dist.commands.doctor import DoctorOptions, machine, ranks, run_folder, shards
from dcgan_dist.commands.doctor.context import Context
from dcgan_dist.commands.doctor.finding import Finding, FoundError, Line, fail, summary
from dcgan_dist.commands.output import check_output
from dcgan_dist.config import Config
from dcgan_dist.data.system.storage import write_atomically
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.parallel.world import World, launch, set_cpu_threads
from dcgan_dist.run.folder import environment

SECONDS = 60.0  # after which a check counts as failed
MARGIN = 30.0  # seconds that one rank may be later than another
GROUP_TIMEOUT = 180  # seconds; more than a check may take, because NCCL ends the process afterwards


def run(own: DoctorOptions, config: Config, several: bool) -> int:
    """Runs the checks, on all ranks if `several` were launched; 1 if anything fails. Raises UsageError, UserError."""
    _check_options(own)
    world: World | None = None
    if several:
        world = launch(replace(config, timeout=GROUP_TIMEOUT))
        set_cpu_threads(world)
        _ = world.local_size  # all ranks must ask for it together
    config.per_rank(world.size if world is not None else config.world_size or 1)
    context = Context(config=config, world=world)
    only, skip = _names(own.only) or CHECKS, _names(own.skip)
    names = [name for name in CHECKS if name in only and name not in skip]
    began = time.monotonic()
    lines = _alone(context, names) if world is None else _on_all_ranks(context, names, world)
    if world is None or world.main:
        print(summary(lines, time.monotonic() - began), flush=True)
        if own.json is not None:
            about = {name: value for name, value in environment().items() if name != "command"}  # it can hold secrets
            good = all(line.mark != "FAIL" for line in lines)
            found = {"ok": good, "about": about, "checks": [asdict(line) for line in lines]}
            write_atomically(own.json, json.dumps(found, indent=1).encode() + b"\n", new=not own.overwrite)
            print(f"written: {own.json}", flush=True)
    return _end(lines, world)


def _check_options(own: DoctorOptions) -> None:
    for option in ("only", "skip"):
        unknown = [name for name in _names(getattr(own, option)) if name not in CHECKS]
        if unknown:
            raise UsageError(f"--{option}: there is no check '{unknown[0]}'; there are {', '.join(CHECKS)}")
    if own.json is not None:
        check_output("--json", own.json, own.overwrite)
        if not own.json.absolute().parent.is_dir():
            raise UsageError(f"--json {own.json}: name a file in a folder that exists")


def _names(words: Sequence[str]) -> list[str]:
    return [name for word in words for name in word.split(",")]


def _alone(context: Context, names: Sequence[str]) -> list[Line]:
    """All checks one after the other; prints each line at once."""
    lines: list[Line] = []
    for name in (name for name in names if name not in TOGETHER):
        lines.append(examine(name, context))
        _print(lines[-1:])
    if together := [name for name in names if name in TOGETHER]:
        began = time.monotonic()
        try:
            found = ranks.examine_local_ranks(context.config, together)
        except UserError as error:
            found = [_line(together[0], fail(str(error), ranks.NETWORK), time.monotonic() - began)]
        _print(found)
        lines += found
    return lines


def _on_all_ranks(context: Context, names: Sequence[str], world: World) -> list[Line]:
    """The checks of the first rank of every node, then those of all ranks together. The main rank prints all lines."""
    alone, together = ([name for name in names if (name in TOGETHER) == both] for both in (False, True))
    lines = [examine(name, context) for name in alone] if os.environ.get("LOCAL_RANK", "0") == "0" else []
    found = ranks.gather(world, "nodes", lines, MARGIN + len(alone) * SECONDS)
    found = sorted(found, key=lambda line: list(CHECKS).index(line.check))
    _print(found if world.main else [])
    if any(line.check in TOGETHER for line in found):
        return found  # a rank is missing
    lines = []
    for name in together:
        lines.append(examine(name, context))
        if lines[-1].mark == "FAIL":
            break
    try:
        lines = ranks.gather(world, "ranks", lines, MARGIN + len(together) * SECONDS)
    except UserError:
        if world.main:
            raise  # else the main rank, which may hold the store, has read all lines and ended
    lines = list({line.found: line for line in lines[::-1]}.values())[::-1]  # most ranks report the same
    _print(lines if world.main else [])
    return found + lines


def _print(lines: Sequence[Line]) -> None:
    nodes = len({line.node for line in lines}) > 1
    for line in lines:
        print(line.text(CHECKS, node=nodes), flush=True)


def examine(name: str, context: Context) -> Line:
    """The line of one check, also after an error or without an end."""
    box: list[Finding] = []
    thread = threading.Thread(target=lambda: box.append(_finding(name, context)), name=name, daemon=True)
    began = time.monotonic()
    thread.start()
    thread.join(SECONDS)
    advice = f"perhaps a file server or a network does not answer; --skip {name} leaves this check out"
    hung = fail(f"no answer within {SECONDS:g} s", ranks.NETWORK if name in TOGETHER else advice)
    rank = f"rank {context.world.rank} on " if name in TOGETHER and context.world else ""
    return _line(name, box[0] if box else hung, time.monotonic() - began, rank, hung=not box)


def _line(name: str, finding: Finding, seconds: float, rank: str = "", hung: bool = False) -> Line:
    return Line(**asdict(finding), check=name, node=rank + socket.gethostname(), seconds=seconds, hung=hung)


def _finding(name: str, context: Context) -> Finding:
    try:
        return CHECKS[name](context)
    except FoundError as found:
        return found.args[0]
    except UserError as error:
        return fail(" | ".join(str(error).splitlines()), "training would end with this error: follow its advice")
    except Exception as error:
        what = " ".join(str(error).split())[:300]
        if name in TOGETHER and isinstance(error, RuntimeError):  # torch's: another rank is gone, or does not answer
            return fail(what, ranks.NETWORK)
        return fail(f"the check itself failed: {type(error).__name__}: {what}", "report this, and use --skip")


def _end(lines: Sequence[Line], world: World | None) -> int:
    """The exit code; that of the main rank is the job's, because a launcher ends the main rank when another fails."""
    failed = {line.check for line in lines if line.mark == "FAIL"}
    if world is None:
        return int(bool(failed))
    code = int(bool(failed) and world.main)
    if failed.intersection(TOGETHER):
        sys.stdout.flush()
        os._exit(code)  # a thread that waits for another rank would keep this process
    world.close()
    return code


CHECKS: dict[str, Callable[[Context], Finding]] = {
    "devices": machine.check_devices,
    "precision": machine.check_precision,
    "launcher": machine.check_launcher,
    "disk": run_folder.check_disk,
    "locks": run_folder.check_locks,
    "shards": shards.check_shards,
    "run_dir": run_folder.check_run_dir,
    "cache": shards.check_cache,
    "memory": machine.check_memory,
    "wandb": machine.check_wandb,
    "ranks": ranks.check_ranks,
    "equality": ranks.check_equality,
}
TOGETHER = ("ranks", "equality")  # the checks of all ranks together
