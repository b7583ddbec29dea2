"""A run that hangs ends, and says where: every rank writes the stacks of its threads and one line, then the job ends.

A thread of each rank looks at what the main thread says of itself (activity.py). The main thread may be anywhere: in a
collective, in a read, in C. Should it hold Python's lock for ever, this thread cannot run either; then a timer of
faulthandler, which needs no lock and is put off as long as this thread runs, writes the stacks and ends the process.
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
from dcgan_dist.parallel.shutdown import rank_lost
from dcgan_dist.parallel.store import Alarms
from dcgan_dist.parallel.world import World

POLL = 0.5  # seconds
LINGER = 2.0  # seconds in which other ranks see an alarm and write their stacks
GRACE = 5.0  # seconds in which a rank that sees the alarm may end by itself
OF_TIMEOUT, LONG_OF_TIMEOUT = 0.9, 0.95
"""Of --timeout: limits of an iteration and of what may take long. Less than all, to come before torch's own end."""
FAILED = 1
_REPORTED = "reported to the other ranks"


class Watchdog:
    """Watches this rank's main thread, from now on."""

    def __init__(self, world: World, config: Config, folder: Path) -> None:
        """`folder`: for rank-N.txt, which exists only while it is needed or holds something."""
        self._activity, self._rank = world.activity, world.rank
        chosen = config.watchdog.seconds
        self._limit = OF_TIMEOUT * config.timeout if chosen is None else chosen
        # one rank alone keeps nobody waiting
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
        """The main thread's last words when a collective failed: what this rank was doing, and who is gone."""
        if not self._last_word.acquire(blocking=False):
            time.sleep(2 * GRACE)  # the watchdog is ending this process
        self._lost_at = time.monotonic()
        hang, details = "imed out" in str(error), [str(self._activity)]
        gone: list[str] = []
        if self._thread is not None:
            first = self._alarms.raise_alarm("hang" if hang else "lost")
            self._alarms.answer()
            gone = self._alarms.silent(LINGER / 2) if first else []
        details += [f"no answer from {', '.join(gone)}"] if gone else []
        return f"{', '.join(details)}: {_short(error)}"

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
                self._give_up("ends, for another rank hangs")
            elif alarm == "lost":
                self._lose(now)

    def _put_off(self) -> None:
        """The end by faulthandler's timer; not before other ranks have seen that this one does not answer."""
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
        """Another rank has lost one: collectives fail here, too, unless the main thread is elsewhere."""
        if self._alarm_at == math.inf:
            self._alarm_at = now
            self._alarms.answer()
        if now - self._alarm_at > GRACE and self._last_word.acquire(blocking=False):
            self._write_stacks()
            self._end(f"ends, for another rank has ended ({self._activity})")

    def _write_stacks(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a full disk, a closed file
            self._file.write(f"rank {self._rank}, {datetime.now().astimezone():%F %T %z}: {self._activity}\n")
            self._file.writelines(f"{thread.ident or 0:#018x} is {thread.name}\n" for thread in threading.enumerate())
            self._file.flush()
            faulthandler.dump_traceback(self._file, all_threads=True)

    def _end(self, words: str) -> NoReturn:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"rank {self._rank}: {words}; stacks: {self._file.name}\n")
            sys.stderr.flush()
        os._exit(FAILED)  # the main thread cannot be woken


def _open(path: Path) -> IO[str]:
    """Appended to: what an earlier attempt wrote may not have been read yet."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8")
    except OSError:
        return cast(IO[str], sys.__stderr__)


_watchdogs: list[Watchdog] = []  # of this process: one, for it has one main thread and one timer of faulthandler


def watch(world: World, config: Config, folder: Path) -> None:
    """Begins to watch this rank; `stop_watching` ends it."""
    _watchdogs.append(Watchdog(world, config, folder))


def stop_watching() -> None:
    """Before the program ends in order."""
    while _watchdogs:
        _watchdogs.pop().stop()


def report_if_lost(error: BaseException) -> bool:
    """Whether an error says that another rank is gone, or does not answer.

    If so, the first call reports it to the other ranks, and prints what this one was doing, and who is gone if that is
    known.
    """
    if not (isinstance(error, RuntimeError) and rank_lost(error)):
        return False
    if _REPORTED not in getattr(error, "__notes__", ()):
        error.add_note(_REPORTED)
        words = _watchdogs[-1].lost(error) if _watchdogs else _short(error)
        sys.stderr.write(f"rank {os.environ.get('RANK', '0')}: another rank ended or does not answer ({words})\n")
        sys.stderr.flush()
    return True


def _short(error: RuntimeError) -> str:
    return " ".join(str(error).split()).partition(" This is typically caused")[0][:500]
