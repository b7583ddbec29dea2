"""The result of a check, and its text."""

import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

Mark = Literal["ok", "warn", "FAIL"]
WORST_FIRST = ("FAIL", "warn", "ok")


@dataclass(frozen=True)
class Finding:
    """The result of a check, with advice."""

    mark: Mark
    found: str
    advice: str = ""  # one line for each problem


ok = partial(Finding, "ok")
warn = partial(Finding, "warn")  # the run will work, but slower or less safely than it could
fail = partial(Finding, "FAIL")  # the run will not start, or will not finish


def conclude(found: str, *problems: Finding | None) -> Finding:
    """One finding with all problems and the mark of the worst, followed by `found`."""
    there = sorted((p for p in problems if p is not None), key=lambda p: WORST_FIRST.index(p.mark))
    if not there:
        return ok(found)
    return Finding(there[0].mark, "; ".join([*(p.found for p in there), found]), "\n".join(p.advice for p in there))


class FoundError(Exception):
    """Ends a check; its argument is the finding."""


@dataclass(frozen=True, kw_only=True)
class Line(Finding):
    """The finding of one check on one node."""

    check: str
    node: str
    seconds: float
    hung: bool = False  # the check did not end

    def text(self, checks: Iterable[str], node: bool = False) -> str:
        """Mark, check and finding; below them the advice. `checks`: all names; `node`: name the node."""
        head = f"{self.mark:<4}  {self.check:<{max(map(len, checks))}}  "
        parts = [f"{self.node}: " * node + self.found, *(f"-> {advice}" for advice in self.advice.splitlines())]
        wrap = textwrap.TextWrapper(break_long_words=False, break_on_hyphens=False)
        wrap.width = max(80, min(shutil.get_terminal_size((120, 24)).columns, 140)) - len(head)
        # wrapped without the head, which would be alone before a path that is longer than a line
        return head + f"\n{'':<{len(head)}}".join(line for part in parts for line in wrap.wrap(part))


def summary(lines: Sequence[Line], seconds: float) -> str:
    """The last line."""
    counts = Counter(line.mark for line in lines)
    bad = ", ".join(dict.fromkeys(line.check for line in lines if line.mark == "FAIL"))
    verdict = f"not ready for this run ({bad})" if bad else "ready for this run"
    return f"\n{verdict}: {counts['ok']} ok, {counts['warn']} warn, {counts['FAIL']} FAIL, in {seconds:.0f} s"
