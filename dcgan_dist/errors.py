"""The errors a person can do something about: one line that says what, where and what to do."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import dropwhile
from types import TracebackType

from dcgan_dist.location import redacted


class UserError(Exception):
    """Something in the run failed that the user can mend (a shard, a disk, a checkpoint); exit code 1."""

    exit_code = 1
    on_all_ranks = False
    """Every rank raises this same error, so that one of them is enough to print it."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class UsageError(UserError):
    """The command itself is wrong (a flag, a size, a combination, a path); exit code 2."""

    exit_code = 2


_tracebacks = False


def show_tracebacks(wanted: bool) -> None:
    """What --debug asks for, here or in a file: errors keep their traceback from now on, or do not."""
    global _tracebacks
    _tracebacks = wanted


def debug_last(arguments: Sequence[str]) -> list[str]:
    """A command line with the --debug that stands before the name of the command behind it, where its options are."""
    rest = list(dropwhile(lambda word: word == "--debug", arguments))
    show_tracebacks("--debug" in arguments)
    return [*rest, "--debug"] if rest and len(rest) < len(arguments) else rest


def tracebacks_wanted() -> bool:
    """Whether --debug was given."""
    return _tracebacks


def run_and_report(act: Callable[[], int], *, rank: int = 0, given: Sequence[str] = ()) -> int:
    """Runs a command; a UserError becomes one line on standard error and its exit code, or its traceback by --debug.

    Args:
        act: the command; returns its exit code.
        rank: this process. Of errors that all ranks raise, rank 0 speaks; of wrong commands that each rank found by
            itself, the first rank of every node, for a file may be missing on one node alone.
        given: the words of the command line; neither the line nor a traceback quotes their secrets.
    """

    def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace)), *given))

    sys.excepthook = print_traceback
    try:
        return act()
    except UserError as error:
        if _tracebacks:
            raise
        if rank == 0 or not (
            error.on_all_ranks or (isinstance(error, UsageError) and os.environ.get("LOCAL_RANK", "0") != "0")
        ):
            where = f"rank {rank}: " if rank else ""
            sys.stderr.write(f"{where}error: {redacted(str(error), *given)}\n")
            sys.stderr.flush()
        return error.exit_code
