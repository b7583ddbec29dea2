"""Starts the ranks of this machine, forwards signals to them, and ends after the last of them.

The launchers of Accelerate and torch print a traceback after a requested stop or an explained error, end before their
ranks, and kill them 30 s after a signal.
"""

import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from dcgan_dist.data.system.workers import SENT_TO_ALL
from dcgan_dist.errors import UsageError, UserError, to_stderr
from dcgan_dist.parallel.variables import MARK, NAMES, SIZES

HANDLED = SENT_TO_ALL | {signal.SIGQUIT, signal.SIGTSTP, signal.SIGCHLD}
KEPT_FROM_RANKS = SENT_TO_ALL | {signal.SIGTTOU}
"""Blocked in a rank until it handles them, so that none is lost and none ends it; SIGTTOU, so that it can print."""
STOPPED = 75  # exit code of a rank that stopped on request
GRACE = 10.0  # seconds in which ranks notice and report that another one failed
KILL_AFTER = 30.0  # more seconds until the others are killed
TICK = 1.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Job:
    """The ranks of a job, and those on this machine."""

    machines: int = 1
    machine: int = 0  # number of this machine
    here: int = 1  # ranks on each machine
    address: str = "127.0.0.1"
    port: int = 0  # of the rendezvous, on the first machine

    @property
    def size(self) -> int:
        """Ranks on all machines."""
        return self.machines * self.here

    def environments(self, given: Mapping[str, str]) -> list[dict[str, str]]:
        """The environment of each rank on this machine. A single rank gets no variables of a launcher."""
        kept = {name: value for name, value in given.items() if name not in NAMES + SIZES} | {MARK: str(os.getpid())}
        if self.size == 1:
            return [kept]
        # else torch prints a long C++ message when a store or a rank is gone
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
    """A port that no other program uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(command: Sequence[str], job: Job, given: Mapping[str, str]) -> int:
    """Runs the command on this machine's ranks of the job, and returns the exit code after the last has ended.

    It is that of the first rank that failed, else 75 if any stopped on request, else 0. Signals that request a stop
    reach every rank once; SIGQUIT kills all; SIGTSTP suspends them with this process. `given`: the environment.

    Raises UsageError when another program uses the port.
    """
    if job.machine == 0:
        _check_port(job.port)
    handled = HANDLED - {number for number in (signal.SIGHUP,) if signal.getsignal(number) == signal.SIG_IGN}  # nohup
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it were ignored, exit codes would be lost
    before = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    ranks = _Ranks()
    try:
        ranks.start(command, job.environments(given))
        # until all have ended, so that it answers also when a rank does not
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
    """The store for the rendezvous and the watchdogs of the ranks."""
    # only now: the ranks import torch at the same time
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    try:
        return TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        raise UserError(f"no rendezvous of the ranks at port {port} ({' '.join(str(error).split())[:200]})") from error


class _Ranks:
    """The ranks of this machine. Each leads a process group, so that it gets a terminal's signals from this process."""

    def __init__(self) -> None:
        self.code = 0
        self.running: dict[int, str] = {}  # process: rank
        self._failed: float | None = None  # time of the first failure
        self._terminated = self._killed = False  # by this process, because one failed

    def start(self, command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> None:
        """Starts one rank in each environment."""
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
        """Handles a signal that this process got."""
        if number == signal.SIGTSTP:
            self._send(signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGSTOP)
            self._send(signal.SIGCONT)
        elif number == signal.SIGQUIT:
            self.kill()
            self.code = 128 + number
        else:
            for pid in self.running:  # not to the processes that they started
                os.kill(pid, number)

    def look(self) -> None:
        """Checks which ranks have ended, and ends the others after a failure."""
        for pid, rank in list(self.running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self.running[pid]
                self._note(rank, pid, os.waitstatus_to_exitcode(status))
        since = 0.0 if self._failed is None else time.monotonic() - self._failed
        if since > GRACE and not self._terminated:
            self._terminated = True
            self.forward(signal.SIGTERM)
        if since > GRACE + KILL_AFTER and self.running and not self._killed:
            waiting = " and ".join(self.running.values())
            to_stderr(f"error: rank {waiting} did not end within {since:.0f} s after another one failed: killed")
            self.kill()

    def _note(self, rank: str, pid: int, code: int) -> None:
        if code < 0 and not self._killed:
            why = "; perhaps out of memory (see dmesg)" if code == -signal.SIGKILL else ""
            to_stderr(f"error: rank {rank} (process {pid}) was ended by {signal.Signals(-code).name}{why}")
        if code in (0, STOPPED):
            self.code = self.code or code
        elif self._failed is None:
            self._failed = time.monotonic()
            if self.code in (0, STOPPED):
                self.code = max(code, 0) or 1

    def kill(self) -> None:
        """Kills all."""
        self._killed = True
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        """To the ranks, and to the processes that they started."""
        for pid in self.running:
            with suppress(ProcessLookupError):
                os.killpg(pid, number)
