"""What was found, as a table."""

import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dcgan_dist.commands.doctor.finding import Mark

NARROWEST, WIDEST = 80, 140  # characters of a line


@dataclass(frozen=True, kw_only=True)
class Line:
    """One check on one node."""

    mark: Mark
    check: str
    found: str
    advice: str
    """What to do, a line for each problem; "" where all is well."""
    node: str
    seconds: float
    hung: bool
    """It has not come to its end."""


def lines_of(line: Line, checks: Iterable[str], node: bool = False) -> list[str]:
    """Mark, check and finding; below it what to do. `checks`: all names; `node`: say on which one it is."""
    width = min(max(shutil.get_terminal_size(fallback=(120, 24)).columns, NARROWEST), WIDEST)
    head = f"{line.mark:<4}  {line.check:<{max(map(len, checks))}}  "
    where = f"{line.node}: " if node else ""
    arrow = " " * len(head) + "-> "
    parts = [(head, where + line.found), *((arrow, advice) for advice in line.advice.splitlines())]
    lines: list[str] = []
    for first, text in parts:
        lines += textwrap.wrap(
            text,
            width,
            initial_indent=first,
            subsequent_indent=" " * len(first),
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def summary(lines: Sequence[Line], seconds: float) -> str:
    """The last line."""
    counts = Counter(line.mark for line in lines)
    bad = ", ".join(dict.fromkeys(line.check for line in lines if line.mark == "FAIL"))
    verdict = f"not fit for this run ({bad})" if bad else "fit for this run"
    return f"\n{verdict}: {counts['ok']} ok, {counts['warn']} warn, {counts['FAIL']} FAIL, in {seconds:.0f} s"
