"""What is outside of this machine: the W&B server, the launcher, the scheduler, the other nodes' names."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dcgan_dist.commands.doctor.case import Case
from dcgan_dist.commands.doctor.finding import Finding, conclude, fail, ok, warn
from dcgan_dist.parallel.variables import ADVICE, problem
from dcgan_dist.run.wandb import resolve_mode
from dcgan_dist.run.wandb_key import Answer, ask_server

WANDB_TIMEOUT = 8.0  # seconds


def check_wandb(case: Case) -> Finding:
    """Whether the server answers and takes the key, if it will be used."""
    options = case.config.wandb
    mode, reason = resolve_mode(options, os.environ)
    if mode != "online":
        return ok(f"not needed: W&B is {mode} ({reason})")
    asked = options.mode == "online" or bool(os.environ.get("WANDB_MODE"))
    return judge_wandb(ask_server(WANDB_TIMEOUT), asked)


def judge_wandb(answer: Answer, asked: bool) -> Finding:
    """`asked`: somebody wants it by name, so that its absence is more than a pity."""
    if answer.accepted:
        return ok(f"online: {answer.what}")
    key = "`wandb login --relogin`, or set WANDB_API_KEY"
    connection = "mend the connection or WANDB_BASE_URL; or --wandb.mode offline, and `wandb sync` later"
    advice = key if answer.reached else connection
    found = f"{answer.what}; the run would be kept offline"
    return (fail if asked else warn)(found, advice)


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """How this process was started, and what it would need to start others."""

    launched: int
    """Ranks that were launched with this one; 0: it is alone."""
    gpus: int
    slurm: Mapping[str, str]
    """Variables of the scheduler."""
    main_address: str
    """Where the ranks meet (MASTER_ADDR)."""
    main_unknown: str
    """Why its address cannot be found; "": it is known, or not asked for."""
    own_name: str
    own_unknown: str
    """Why this machine does not know its own name; "": it does."""
    busy_port: int | None
    """The port for the ranks to meet at, if another program holds it."""
    wrong: str
    """What is wrong with the variables of a launcher, so that a run would be refused; "": nothing."""


def check_launcher(case: Case) -> Finding:
    """The environment that launchers and schedulers set."""
    env = os.environ
    main, own = env.get("MASTER_ADDR", ""), socket.gethostname()
    launched = case.world.size if case.world is not None else 0
    port = env.get("MASTER_PORT", "")
    return judge_launcher(
        Launcher(
            launched=launched,
            gpus=torch.cuda.device_count(),
            slurm={name: value for name, value in env.items() if name.startswith("SLURM_")},
            main_address=main,
            main_unknown=_unknown(main) if main else "",
            own_name=own,
            own_unknown=_unknown(own),
            # the ranks that were launched have it themselves
            busy_port=int(port) if port.isdecimal() and not launched and _busy(int(port)) else None,
            wrong=problem(env, on_cpu=case.device.type == "cpu") or "",
        )
    )


def _unknown(name: str) -> str:
    try:
        socket.getaddrinfo(name, None)
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def _busy(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def judge_launcher(facts: Launcher) -> Finding:
    """Whether ranks will find each other."""
    slurm, problems = facts.slurm, []
    how = f"{facts.launched} ranks were launched" if facts.launched else "this process is alone"
    if job := slurm.get("SLURM_JOB_ID"):
        nodes = slurm.get("SLURM_NNODES", "1")
        how += f"; SLURM job {job} on {nodes} node{'s' * (nodes != '1')}"
        if nodes != "1" and not facts.launched:
            advice = "srun torchrun .. -m dcgan_dist doctor .. examines all, and the network between them"
            problems.append(warn(f"only 1 of {nodes} nodes is examined", advice))
        given = slurm.get("SLURM_GPUS_ON_NODE", "")
        if given.isdecimal() and int(given) > facts.gpus and not facts.launched:
            advice = "see the line devices; srun may need --gpus-per-node as sbatch had it"
            problems.append(fail(f"the job has {given} GPUs here, torch sees {facts.gpus}", advice))
    elif not facts.launched:
        how += "; no scheduler's job"
    if facts.main_unknown:
        advice = "give its IP address instead (MASTER_ADDR, --main_process_ip), or add it to /etc/hosts"
        problems.append(fail(f"MASTER_ADDR {facts.main_address} is not known here ({facts.main_unknown})", advice))
    if facts.own_unknown:
        advice = "add it to /etc/hosts; or name the network by GLOO_SOCKET_IFNAME, where ranks of several nodes talk"
        problems.append(warn(f"this machine does not know its own name {facts.own_name} ({facts.own_unknown})", advice))
    if facts.busy_port is not None:
        advice = "choose another (--main_process_port, MASTER_PORT)"
        problems.append(fail(f"port {facts.busy_port} (MASTER_PORT) is taken by another program", advice))
    if facts.wrong:
        problems.append(fail(f"{facts.wrong} (environment)", ADVICE))
    return conclude(how, *problems)
