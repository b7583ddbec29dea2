"""Starts the ranks of this machine, hands signals on to them, and ends when the last of them has.

The launchers of Accelerate and torch report an end that was asked for, or an error that a rank has explained, by a
traceback of their own, leave before their ranks do, and kill them 30 s after a signal.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from dcgan_dist.data.system.workers import SENT_TO_ALL
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.parallel.variables import MARK, NAMES, SIZES

HANDLED = SENT_TO_ALL | {signal.SIGQUIT, signal.SIGTSTP, signal.SIGCHLD}
KEPT_FROM_RANKS = SENT_TO_ALL | {signal.SIGTTOU}
"""Blocked in a rank until it listens, and handed on then: none is lost, and none ends it; and it may always print."""
STOPPED = 75  # exit code of a rank that stopped as it was asked to
GRACE = 10.0  # seconds in which ranks notice themselves that another one failed, and say so
KILL_AFTER = 30.0  # seconds more until those that still run are killed
TICK = 1.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Job:
    """The ranks of a job, and those of them that this machine runs."""

    machines: int = 1
    machine: int = 0
    """Number of this one."""
    here: int = 1
    """Ranks on each machine."""
    address: str = "127.0.0.1"
    port: int = 0
    """The rendezvous: on the first machine."""

    @property
    def size(self) -> int:
        """Ranks on all machines."""
        return self.machines * self.here

    def environments(self, given: Mapping[str, str]) -> list[dict[str, str]]:
        """Of each rank on this machine. A single rank gets no variables of a launcher, for it waits for nobody."""
        kept = {name: value for name, value in given.items() if name not in NAMES + SIZES} | {MARK: str(os.getpid())}
        if self.size == 1:
            return [kept]
        # else torch reports a store or a rank that has gone by a screen of C++
        defaults = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
        return [
            defaults
            | kept
            | {
                "RANK": str(self.machine * self.here + local),
                "WORLD_SIZE": str(self.size),
                "LOCAL_RANK": str(local),
                "LOCAL_WORLD_SIZE": str(self.here),
                "MASTER_ADDR": self.address,
                "MASTER_PORT": str(self.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",  # this process holds the store of the rendezvous
            }
            for local in range(self.here)
        ]


def free_port() -> int:
    """One that no other program holds now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(command: Sequence[str], job: Job, given: Mapping[str, str]) -> int:
    """Runs the command on this machine's ranks of the job, until the last of them has ended; returns the exit code.

    That of the first rank that failed, or else 75 if any stopped as it was asked to, or else 0. Signals that ask for a
    stop reach every rank once; SIGQUIT kills all; SIGTSTP halts them with this process. `given`: the environment.

    Raises UsageError when another program holds the port.
    """
    if job.machine == 0:
        _check_port(job.port)
    handled = HANDLED - {number for number in (signal.SIGHUP,) if signal.getsignal(number) == signal.SIG_IGN}  # nohup
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as some programs pass it on, it would lose the exit codes
    before = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    ranks = _Ranks()
    try:
        ranks.start(command, job.environments(given))
        # until all have ended: it answers also when a rank does not, and no other machine waits for it in vain
        store = _store(job.port) if job.machine == 0 else None
        while ranks.running:
            signalled = signal.sigtimedwait(handled, TICK)
            if signalled is not None and signalled.si_signo != signal.SIGCHLD:
                ranks.forward(signalled.si_signo)
            ranks.look()
        del store
        return ranks.code
    finally:
        ranks.kill()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            problem = f"cannot be used ({error.strerror}); name another one, on all machines"
            raise UsageError(f"--main_process_port {port}: {problem}") from error


def _store(port: int) -> object:
    """The rendezvous of the ranks, and through which their watchdogs communicate."""
    # seconds, in which the ranks import torch, too
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    try:
        return TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        raise UserError(f"no rendezvous of the ranks at port {port} ({' '.join(str(error).split())[:200]})") from error


class _Ranks:
    """Those of this machine. Each leads a process group, so that a terminal's signals reach it through this process."""

    def __init__(self) -> None:
        self.code = 0
        self.running: dict[int, str] = {}  # process: rank
        self._failed: float | None = None  # when the first one did
        self._asked = self._killed = False  # by this process, because one failed

    def start(self, command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> None:
        """One rank in each environment."""
        for environment in environments:
            pid = os.posix_spawn(
                command[0],
                list(command),
                environment,
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
                setpgroup=0,
                setsigmask=KEPT_FROM_RANKS,
                setsigdef=[signal.SIGPIPE],
            )
            self.running[pid] = environment["RANK"]

    def forward(self, number: int) -> None:
        """A signal that this process got."""
        if number == signal.SIGTSTP:
            self._send(signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGSTOP)
            self._send(signal.SIGCONT)
        elif number == signal.SIGQUIT:
            self.kill()
            self.code = 128 + number
        else:
            for pid in self.running:  # what these started is theirs to end
                os.kill(pid, number)

    def look(self) -> None:
        """Which ranks have ended; and whether the others have to follow one that failed."""
        for pid, rank in list(self.running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self.running[pid]
                self._note(rank, pid, os.waitstatus_to_exitcode(status))
        since = 0.0 if self._failed is None else time.monotonic() - self._failed
        if since > GRACE and not self._asked:
            self._asked = True
            self.forward(signal.SIGTERM)
        if since > GRACE + KILL_AFTER and self.running and not self._killed:
            waiting = " and ".join(self.running.values())
            _say(f"error: rank {waiting} did not end within {since:.0f} s after another one failed: killed")
            self.kill()

    def _note(self, rank: str, pid: int, code: int) -> None:
        if code < 0 and not self._killed:
            why = "; the memory may have been used up (dmesg tells)" if code == -signal.SIGKILL else ""
            _say(f"error: rank {rank} (process {pid}) was ended by {signal.Signals(-code).name}{why}")
        if code in (0, STOPPED):
            self.code = self.code or code
        elif self._failed is None:
            self._failed = time.monotonic()
            if self.code in (0, STOPPED):
                self.code = max(code, 0) or 1

    def kill(self) -> None:
        """All at once."""
        self._killed = True
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        """To the ranks, and to the processes that they started."""
        for pid in self.running:
            with suppress(ProcessLookupError):
                os.killpg(pid, number)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
