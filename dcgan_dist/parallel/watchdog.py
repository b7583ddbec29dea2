"""Ends a run that hangs: every rank writes the stacks of its threads and prints one line, then the job ends.

A thread of each rank watches the activity of the main thread (activity.py), which may hang in a collective, in a read,
or in C. If it holds the GIL, the watching thread cannot run either; then a timer of faulthandler, which needs no GIL
and which this thread keeps postponing, writes the stacks and ends the process.
"""

import contextlib
import faulthandler
import math
import os
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from threading import Event, Lock, Thread
from typing import IO, NoReturn, cast

from dcgan_dist.config import Config
from dcgan_dist.errors import to_stderr
from dcgan_dist.parallel.shutdown import rank_lost
from dcgan_dist.parallel.store import Alarms
from dcgan_dist.parallel.world import World

POLL = 0.5  # seconds
LINGER = 2.0  # seconds in which other ranks see an alarm and write their stacks
GRACE = 5.0  # seconds in which a rank that sees the alarm can end by itself
OF_TIMEOUT, LONG_OF_TIMEOUT = 0.9, 0.95
"""Fractions of --timeout: limits of an iteration and of long work; below 1, to come before torch's own error."""
_REPORTED = "reported to the other ranks"


class Watchdog:
    """Watches this rank's main thread."""

    def __init__(self, world: World, config: Config, folder: Path) -> None:
        """`folder`: for rank-N.txt, which is removed at the end if it is empty."""
        self._activity, self._rank = world.activity, world.rank
        chosen = config.watchdog.seconds
        self._limit = OF_TIMEOUT * config.timeout if chosen is None else chosen
        self._long = max(self._limit, LONG_OF_TIMEOUT * config.timeout) if world.size > 1 else math.inf
        self._over, self._last_word = Event(), Lock()
        self._thread: Thread | None = None
        self._lost_at = self._alarm_at = math.inf
        if self._limit:
            self._path = folder / f"rank-{world.rank}.txt"
            self._file = _open(self._path)
            self._alarms = Alarms(world)
            self._enabled = not faulthandler.is_enabled()
            if self._enabled:  # a mismatch of collectives ends the process by a signal, from a thread of gloo or NCCL
                faulthandler.enable(self._file)
            self._put_off()
            self._thread = Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """The end of this attempt."""
        self._over.set()
        if self._thread is None:
            return
        self._thread.join(GRACE)
        faulthandler.cancel_dump_traceback_later()
        if self._enabled:
            faulthandler.disable()
        if self._file is not sys.__stderr__:
            self._file.close()
            with contextlib.suppress(OSError):
                if self._path.stat().st_size == 0:
                    self._path.unlink()
                    self._path.parent.rmdir()  # unless other ranks still have theirs there

    def lost(self, error: RuntimeError) -> str:
        """Describes a failed collective: the activity of this rank, and the ranks that are gone."""
        if not self._last_word.acquire(blocking=False):
            time.sleep(2 * GRACE)  # the watchdog is ending this process
        self._lost_at = time.monotonic()
        activity, gone = str(self._activity), list[str]()
        if self._thread is not None:
            first = self._alarms.raise_alarm("hang" if "imed out" in str(error) else "lost")
            self._alarms.answer()
            gone = self._alarms.silent(LINGER / 2) if first else []
        missing = f", no answer from {', '.join(gone)}" if gone else ""
        return f"{activity}{missing}: {_short(error)}"

    def _watch(self) -> None:
        seen, since = -1, time.monotonic()
        while not self._over.wait(POLL):
            self._put_off()
            now, progress = time.monotonic(), self._activity.progress
            if progress != seen:
                seen, since = progress, now
            idle, alarm = now - since, self._alarms.alarm()
            if now - self._lost_at > self._long:
                self._write_stacks()
                self._end(f"has lost another rank, and does not end ({self._activity})")
            elif idle > (self._long if self._activity.patient else self._limit):
                self._give_up(f"no progress for {idle:.1f} s")
            elif alarm == "hang":
                self._give_up("ends, because another rank hangs")
            elif alarm == "lost":
                self._lose(now)

    def _put_off(self) -> None:
        """Restarts faulthandler's timer, which leaves other ranks the time to see that this one does not answer."""
        faulthandler.dump_traceback_later(self._limit + 2 * LINGER, exit=True, file=self._file)

    def _give_up(self, why: str) -> None:
        """Does not return unless the main thread ends this rank already."""
        if not self._last_word.acquire(blocking=False):
            return
        activity, first = str(self._activity), self._alarms.raise_alarm("hang")
        self._write_stacks()
        self._alarms.answer()
        gone = self._alarms.silent(LINGER)
        missing = f"; no answer from {', '.join(gone)}" if first and gone else ""
        self._end(f"{why} ({activity}){missing}")

    def _lose(self, now: float) -> None:
        """After another rank has lost one: ends this rank, unless the main thread's collective fails first."""
        if self._alarm_at == math.inf:
            self._alarm_at = now
            self._alarms.answer()
        if now - self._alarm_at > GRACE and self._last_word.acquire(blocking=False):
            self._write_stacks()
            self._end(f"ends, because another rank has ended ({self._activity})")

    def _write_stacks(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a full disk, a closed file
            self._file.write(f"rank {self._rank}, {datetime.now().astimezone():%F %T %z}: {self._activity}\n")
            self._file.writelines(f"{thread.ident or 0:#018x} is {thread.name}\n" for thread in threading.enumerate())
            self._file.flush()
            faulthandler.dump_traceback(self._file, all_threads=True)

    def _end(self, words: str) -> NoReturn:
        with contextlib.suppress(OSError, ValueError):
            to_stderr(f"rank {self._rank}: {words}; stacks: {self._file.name}")
        os._exit(1)  # the main thread cannot be woken


def _open(path: Path) -> IO[str]:
    """Opens a file to append to: an earlier attempt's stacks stay."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8")
    return cast(IO[str], sys.__stderr__)


_watchdogs: list[Watchdog] = []  # at most one, because there is one timer of faulthandler


def watch(world: World, config: Config, folder: Path) -> None:
    """Starts to watch this rank, until `stop_watching`."""
    _watchdogs.append(Watchdog(world, config, folder))


def stop_watching() -> None:
    """Stops the watchdog."""
    while _watchdogs:
        _watchdogs.pop().stop()


def report_if_lost(error: BaseException) -> bool:
    """Whether an error means that another rank is gone or does not answer.

    If so, the first call reports it to the other ranks, and prints this rank's activity and the ranks that are gone.
    """
    if not (isinstance(error, RuntimeError) and rank_lost(error)):
        return False
    if _REPORTED not in getattr(error, "__notes__", ()):
        error.add_note(_REPORTED)
        words = _watchdogs[-1].lost(error) if _watchdogs else _short(error)
        to_stderr(f"rank {os.environ.get('RANK', '0')}: another rank ended or does not answer ({words})")
    return True


def _short(error: RuntimeError) -> str:
    return " ".join(str(error).split()).partition(" This is typically caused")[0][:500]
