"""What a run is asked for from outside: to stop, by a signal, a file, a time budget; to save, by a file.

Standard library only: it is imported, and listens, before torch is, which takes seconds.
"""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from dcgan_dist.errors import UserError
from dcgan_dist.parallel.variables import MARK

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STOPPING = (
    b"\nstopping after this iteration, with a checkpoint; the launcher may be gone before the line `stopped at`\n"
)
ALREADY_STOPPING = (
    b"\nalready stopping: at the end of this iteration, with a checkpoint (Ctrl-\\ ends it at once, without)\n"
)
NOT_BEGUN = b"\nalready stopping: as soon as the preparations are over (Ctrl-\\ ends it at once; nothing is lost)\n"


class StoppedError(UserError):
    """A stop was asked for while the run was prepared."""


def launched() -> bool:
    """Whether torchrun or accelerate launch started this process, which take every exit code but 0 for a crash."""
    from dcgan_dist.config import settings  # its import takes a moment, in which a signal would end the process

    return settings.started_by_launcher(os.environ) and MARK not in os.environ


def asks_to_stop(file: Path) -> bool:
    """Whether the file is there, and not from slurm/train.sh for another attempt of the run, whose time was over."""
    try:
        return not _for_another_attempt(file.read_text(errors="replace"))
    except (PermissionError, IsADirectoryError):
        with suppress(OSError):
            file.stat()
            return True  # somebody else's, or a folder
        return False
    except OSError:
        return False  # it is not there, or the disk does not answer for a moment


def is_for_another_attempt(file: Path) -> bool:
    """Whether the file is there, and from slurm/train.sh for another attempt of the run, whose time was over."""
    with suppress(OSError):
        return _for_another_attempt(file.read_text(errors="replace"))
    return False


def _for_another_attempt(text: str) -> bool:
    attempt = re.match(r"SLURM job (\d+), (?:restart|life) (\d+)", text)
    env = os.environ
    return attempt is not None and attempt.groups() != (env.get("SLURM_JOB_ID"), env.get("SLURM_RESTART_COUNT", "0"))


class RequestMonitor:
    """Only notes what is asked for; the train loop acts at the end of an iteration, on all ranks together.

    A second signal changes nothing. Files serve where no signal arrives: early in the start, or from a shell. A rank
    whose launcher was killed stops, too: signals that were meant for the rank will not reach it any more.
    """

    def __init__(self) -> None:
        """This attempt begins here."""
        parent = os.getppid()
        self.reason = ""
        self._began = time.monotonic()
        self._first_signal = 0
        self._left_behind = False
        self._answered = os.environ.get("RANK", "0") != "0"  # one rank is enough to answer
        self._stop: Path | None = None
        self._save: Path | None = None
        self._save_noted: int | None = None
        self._save_failed: int | None = None
        self._minutes = 0.0
        # nohup ignores the end of the terminal, and is to be obeyed
        noted = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in noted}
        self._left_behind = launched()  # by accelerate launch, which does not wait at Ctrl-C
        self._parent = parent if launched() or "LOCAL_RANK" in os.environ else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and not self._answered and (self.reason or self._left_behind):
            self._answered = bool(self.reason)
            again = NOT_BEGUN if self._stop is None else ALREADY_STOPPING
            os.write(2, again if self.reason else STOPPING)  # not sys.stderr: this may have interrupted a write to it
        self._first_signal = self._first_signal or number
        self.ask(signal.Signals(number).name)

    def restore_handlers(self) -> None:
        """Handles signals as before, and those that were noted meanwhile: for a command that has nothing to save."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._first_signal:
            signal.raise_signal(self._first_signal)

    def watch(self, stop: Path, save: Path | None, minutes: float) -> None:
        """From now on also heeds a file that asks for a stop, one that asks for a checkpoint, and a budget; 0: none."""
        self._stop, self._save, self._minutes = stop, save, minutes

    def ask(self, reason: str) -> None:
        """A stop asked for by another part of the program."""
        self.reason = self.reason or reason

    def seconds(self) -> float:
        """Since this attempt began."""
        return time.monotonic() - self._began

    def stop_wanted(self) -> bool:
        """Whether a stop was asked for on this rank."""
        if self._stop is not None and asks_to_stop(self._stop):
            self.ask(f"{self._stop} exists")
        elif self._minutes and self.seconds() >= 60 * self._minutes:
            self.ask(f"--stop.after_minutes {self._minutes:g}")
        elif self._parent is not None and os.getppid() != self._parent:
            self.ask("its launcher ended")
        return bool(self.reason)

    def raise_if_stopped(self) -> None:
        """For long preparations to call now and then: raises StoppedError when a stop was asked for on this rank."""
        if self.stop_wanted():
            raise StoppedError(self.reason)

    def save_wanted(self) -> bool:
        """Whether a checkpoint was asked for on this rank."""
        age = self._age_of_save()
        self._save_noted = None if age == self._save_failed else age
        return self._save_noted is not None

    @property
    def save_noted(self) -> bool:
        """Whether a checkpoint was asked for when that was looked at last."""
        return self._save_noted is not None

    def saved(self) -> None:
        """The checkpoint that was asked for is on disk: removes the file that asked for it.

        A file that was touched again meanwhile stays, for the checkpoint does not hold what came since.
        """
        noted, self._save_noted = self._save_noted, None
        if self._save is not None and noted is not None and noted == self._age_of_save():
            with suppress(OSError):
                self._save.unlink()

    def save_failed(self) -> None:
        """The checkpoint that was asked for could not be written: it is not tried again until it is asked for again."""
        self._save_failed, self._save_noted = self._save_noted, None

    def _age_of_save(self) -> int | None:
        try:
            return self._save.stat().st_mtime_ns if self._save is not None else None
        except OSError:
            return None


_early: list[RequestMonitor] = []


def listen() -> None:
    """Begins this process's attempt, and notes signals from here on."""
    _early.append(RequestMonitor())
    unblock()


def unblock() -> None:
    """Lets those signals through that our launcher held back from this process until it could handle them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def preparing(training: bool) -> Iterator[None]:
    """While a command is imported by a process that is there for nothing else.

    A training listens from here on. Ctrl-C ends any other at once, by a line: imports lose such an exception at times.
    """
    if training:
        listen()
        yield
        return
    unblock()

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        os.write(2, b"interrupted\n")
        os._exit(128 + number)

    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, leave)
    yield
    signal.signal(signal.SIGINT, before)


def asked() -> bool:
    """Whether a stop was asked for since `listen`."""
    return any(requests.stop_wanted() for requests in _early)


def take() -> RequestMonitor:
    """What has been asked for since `listen`, or since now."""
    return _early.pop() if _early else RequestMonitor()
