"""Errors that a user can fix: one line that says what is wrong, where, and what to do."""

import io
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import dropwhile
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from dcgan_dist.location import redacted


class UserError(Exception):
    """Something in the run failed that the user can fix (a shard, a disk, a checkpoint); exit code 1."""

    exit_code = 1
    on_all_ranks = False  # every rank raises this error, so that only one prints it

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))

    def of_all_ranks(self) -> Self:
        """The same error, marked as one that every rank raises."""
        self.on_all_ranks = True
        return self


class UsageError(UserError):
    """The command itself is wrong (a flag, a size, a combination, a path); exit code 2."""

    exit_code = 2


# messages of Python, NumPy, torch and CUDA when memory, threads or processes are exhausted
EXHAUSTED = re.compile(
    "OutOfMemoryError|out of memory|can't allocate memory|cannot allocate memory|start (new|watchdog) thread|bad_alloc|"
    "failed to map segment|Resource temporarily unavailable",
    re.IGNORECASE,
)
_tracebacks = False


def show_tracebacks(wanted: bool) -> None:
    """Sets whether errors show their traceback (--debug)."""
    global _tracebacks
    _tracebacks = wanted


def debug_last(arguments: Sequence[str]) -> list[str]:
    """Moves a --debug in front of the command's name behind it, where its options are."""
    rest = list(dropwhile(lambda word: word == "--debug", arguments))
    show_tracebacks("--debug" in arguments)
    return [*rest, "--debug"] if rest and len(rest) < len(arguments) else rest


def tracebacks_wanted() -> bool:
    """Whether --debug was given."""
    return _tracebacks


@contextmanager
def os_error_as_user_error(where: object, problem: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """An OSError inside becomes a `kind`: "`where`: `problem` (the reason)"; `where`: "" is the file of the error."""
    try:
        yield
    except OSError as error:
        raise kind(f"{where or error.filename or 'a file'}: {problem} ({error.strerror or error})") from error


def to_stderr(line: str) -> None:
    """Writes a line for the user, at once."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def run_and_report(
    act: Callable[[], int], *, rank: int = 0, given: Sequence[str] = (), output_counts: bool = True
) -> int:
    """Runs a command; a UserError becomes one line on standard error and its exit code, with --debug its traceback.

    Ctrl-C is one line, too: the text of the KeyboardInterrupt. If the reader of standard output ends (`| head`),
    there is none.

    Args:
        act: the command; returns its exit code.
        rank: this process. Rank 0 reports errors that all ranks raise; the first rank of every node reports a wrong
            command, because a file may be missing on one node only.
        given: the words of the command line; neither the line nor a traceback quotes their secrets.
        output_counts: whether a command fails when its standard output cannot be written. One that keeps its results
            in files only reports it.
    """

    def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace)), *given))

    sys.excepthook = print_traceback
    _prepare_streams()
    try:
        return _acted(act, output_counts)
    except KeyboardInterrupt as interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program ends already
        if _tracebacks:
            raise
        if rank == 0 or os.environ.get("LOCAL_RANK", "0") == "0":
            to_stderr(str(interrupt) or "interrupted")
        return 128 + signal.SIGINT
    except Exception as failure:
        if isinstance(failure, BrokenPipeError) and _is_unread(sys.stdout):  # and no connection
            discard(sys.stdout)
            return 128 + signal.SIGPIPE
        error = failure if isinstance(failure, UserError) else from_system_error(failure)
        if _tracebacks or error is None:
            raise
        local_rank = os.environ.get("LOCAL_RANK", "0")
        if rank == 0 or not (error.on_all_ranks or (isinstance(error, UsageError) and local_rank != "0")):
            where = f"rank {rank}: " if rank else ""
            to_stderr(f"{where}error: {redacted(str(error), *given)}")
        return error.exit_code


def _prepare_streams() -> None:
    for name, mode in ("stdin", "r"), ("stdout", "w"), ("stderr", "w"):
        if getattr(sys, name) is None:  # closed (`>&-`): else the next file that is opened would get the output
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may have characters that the terminal cannot show
            stream.reconfigure(errors="backslashreplace")


def from_system_error(error: Exception) -> UserError | None:
    """An error of the system (memory, threads, processes, files) in one line. None for an error of the program."""
    words = [type(error).__name__, *str(error).split()]
    what = " ".join(words).partition(" If reserved")[0][:300]
    if isinstance(error, MemoryError) or EXHAUSTED.search(what):
        return UserError(
            f"out of memory, threads or processes ({what}): a smaller --batch_size, --data.prefetch, --data.workers or "
            "--processes, a larger --accumulate, or --checkpoint.blocking helps; complete files on disk stay"
        )
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return UserError(f"{where}{error.strerror or error}")
    return None


def _acted(act: Callable[[], int], output_counts: bool) -> int:
    try:
        try:
            Path.cwd()  # without it, torch cannot be imported and no process started
        except OSError as error:
            raise UserError("the current folder is gone; change to another one") from error
        return act()
    finally:
        _flush(output_counts)


def _flush(output_counts: bool) -> None:
    """Flushes now, because Python prints its own errors at its exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(sys.stdout)
        problem = f"standard output cannot be written ({error.strerror})"
        if output_counts:
            raise UserError(problem) from error
        to_stderr(f"WARNING: {problem}; the run's folder is complete")


def discard(stream: TextIO) -> None:
    """Sends the rest of an output to nowhere; Python flushes it once more at its exit. Raises OSError, ValueError."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def _is_unread(stream: TextIO) -> bool:
    """Whether it is a pipe without a reader."""
    with suppress(OSError):
        look = select.poll()
        look.register(stream.fileno(), select.POLLERR)
        return bool(look.poll(0))
    return False
