"""Requests to a run: to stop, by a signal, a file or a time budget; to save, by a file.

Standard library only: it is imported and listens before torch is imported, which takes seconds.
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
    """A stop was requested while the run was prepared."""


def launched() -> bool:
    """Whether torchrun or accelerate launch started this process; they treat every exit code but 0 as a crash."""
    from dcgan_dist.config import settings  # its import takes a moment, in which a signal would end the process

    return settings.started_by_launcher(os.environ) and MARK not in os.environ


def codes_are_crashes() -> bool:
    """Whether what started this process takes every exit code but 0 for a crash. W&B's agent ends after a few of them;
    W&B itself is given the exit code.
    """
    return launched() or bool(os.environ.get("WANDB_SWEEP_ID"))


def asks_to_stop(file: Path) -> bool:
    """Whether the file exists, and is not for another attempt."""
    text = _text(file)
    return text is not None and not _for_another_attempt(text)


def is_for_another_attempt(file: Path) -> bool:
    """Whether slurm/train.sh wrote the file for another attempt of the run, which had reached its time limit."""
    return _for_another_attempt(_text(file) or "")


def _text(file: Path) -> str | None:
    """None: the file does not exist, or the disk does not answer; "": a folder, or another user's file."""
    with suppress(OSError):
        try:
            return file.read_text(errors="replace")
        except (PermissionError, IsADirectoryError):
            return "" if file.stat() else None
    return None


def _for_another_attempt(text: str) -> bool:
    attempt = re.match(r"SLURM job (\d+), restart (\d+)", text)
    env = os.environ
    return attempt is not None and attempt.groups() != (env.get("SLURM_JOB_ID"), env.get("SLURM_RESTART_COUNT", "0"))


class RequestMonitor:
    """Records requests; the train loop acts at the end of an iteration, on all ranks together.

    A second signal changes nothing. A rank whose launcher was killed stops, too, because later signals would not reach
    it.
    """

    def __init__(self) -> None:
        parent = os.getppid()
        self.reason = ""
        self._began = time.monotonic()
        self._first_signal = 0
        self._left_behind = False
        self._answered = os.environ.get("RANK", "0") != "0"  # one rank is enough to answer
        self._stop: Path | None = None
        self._save: Path | None = None
        self.save_noted: int | None = None  # time of change of the file SAVE at the last look; None: no file
        self._save_failed: int | None = None
        self._minutes = 0.0
        # nohup ignores SIGHUP
        noted = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in noted}
        self._left_behind = launched()  # by accelerate launch, which does not wait at Ctrl-C
        self._parent = parent if launched() or "LOCAL_RANK" in os.environ else None

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and not self._answered and (self.reason or self._left_behind):
            self._answered = bool(self.reason)
            again = NOT_BEGUN if self._stop is None else ALREADY_STOPPING
            os.write(2, again if self.reason else STOPPING)  # not sys.stderr: this may have interrupted a write to it
        self._first_signal = self._first_signal or number
        self.ask(signal.Signals(number).name)

    def restore_handlers(self) -> None:
        """Restores earlier handlers, and raises a recorded signal again: for a command that has nothing to save."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._first_signal:
            signal.raise_signal(self._first_signal)

    def watch(self, stop: Path, save: Path | None, minutes: float) -> None:
        """Also watches a file that asks for a stop, one that asks for a checkpoint, and a time budget; 0: none."""
        self._stop, self._save, self._minutes = stop, save, minutes

    def ask(self, reason: str) -> None:
        """Requests a stop."""
        self.reason = self.reason or reason

    def seconds(self) -> float:
        """Since this attempt began."""
        return time.monotonic() - self._began

    def stop_wanted(self) -> bool:
        """Whether a stop was requested on this rank."""
        if self._stop is not None and asks_to_stop(self._stop):
            self.ask(f"{self._stop} exists")
        elif self._minutes and self.seconds() >= 60 * self._minutes:
            self.ask(f"--stop.after_minutes {self._minutes:g}")
        elif self._parent is not None and os.getppid() != self._parent:
            self.ask("its launcher ended")
        return bool(self.reason)

    def raise_if_stopped(self) -> None:
        """Raises StoppedError when a stop was requested on this rank; long preparations call it."""
        if self.stop_wanted():
            raise StoppedError(self.reason)

    def save_wanted(self) -> bool:
        """Whether a checkpoint was requested on this rank."""
        time_of_change = self._time_of_save()
        self.save_noted = None if time_of_change == self._save_failed else time_of_change
        return self.save_noted is not None

    def saved(self) -> None:
        """The requested checkpoint is on disk: removes the file, unless it was touched again meanwhile."""
        noted, self.save_noted = self.save_noted, None
        if self._save is not None and noted is not None and noted == self._time_of_save():
            with suppress(OSError):
                self._save.unlink()

    def save_failed(self) -> None:
        """The requested checkpoint could not be written: it is not tried again until the file is touched again."""
        self._save_failed, self.save_noted = self.save_noted, None

    def _time_of_save(self) -> int | None:
        try:
            return self._save.stat().st_mtime_ns if self._save is not None else None
        except OSError:
            return None


_early: list[RequestMonitor] = []


def listen() -> None:
    """Starts this process's attempt: records signals from here on."""
    _early.append(RequestMonitor())
    unblock()


def unblock() -> None:
    """Unblocks the signals that our launcher blocked until this process could handle them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def preparing(training: bool) -> Iterator[None]:
    """While a command is imported: training listens from here on; any other command ends at Ctrl-C with one line.

    Imports sometimes lose a KeyboardInterrupt.
    """
    if training:
        listen()
        yield
        return
    unblock()

    def leave(number: int, _frame: FrameType | None) -> None:
        os.write(2, b"interrupted\n")
        os._exit(128 + number)

    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, leave)
    yield
    signal.signal(signal.SIGINT, before)


def asked() -> bool:
    """Whether a stop was requested since `listen`."""
    return any(requests.stop_wanted() for requests in _early)


def take() -> RequestMonitor:
    """The requests since `listen`, or since now."""
    return _early.pop() if _early else RequestMonitor()
