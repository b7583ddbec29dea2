"""Requests to stop: signals from a person, a launcher or SLURM, and a STOP file in the run folder."""

import signal
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Only notes that a stop was asked for; the train loop acts at the end of an iteration, on all ranks together.

    A second signal changes nothing. The file serves where no signal arrives: early in the start, or from a shell.
    """

    def __init__(self, file: Path) -> None:
        self.reason = ""
        self._file = file
        for number in SIGNALS:
            # nohup ignores the end of the terminal, and is to be obeyed
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.reason = self.reason or signal.Signals(number).name

    def ask(self, reason: str) -> None:
        """A stop asked for by another part of the program."""
        self.reason = self.reason or reason

    def wanted(self) -> bool:
        """Whether a stop was asked for on this rank."""
        if not self.reason and self._file.exists():
            self.reason = f"{self._file} exists"
        return bool(self.reason)
