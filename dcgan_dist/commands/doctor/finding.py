"""What a check says."""

from dataclasses import dataclass
from typing import Literal

Mark = Literal["ok", "warn", "FAIL"]
WORSE: dict[Mark, int] = {"ok": 0, "warn": 1, "FAIL": 2}


@dataclass(frozen=True)
class Finding:
    """What was found, and what to do about it where it is not well."""

    mark: Mark
    found: str
    advice: str = ""
    """One line for each problem."""


def ok(found: str) -> Finding:
    """All is well."""
    return Finding("ok", found)


def warn(found: str, advice: str) -> Finding:
    """The run will do, but not as well or as safely as it could."""
    return Finding("warn", found, advice)


def fail(found: str, advice: str) -> Finding:
    """The run will not start, or not come to its end."""
    return Finding("FAIL", found, advice)


def conclude(found: str, *problems: Finding | None) -> Finding:
    """All problems as one finding, as bad as the worst, and behind them what was found; without any, all is well."""
    there = sorted((p for p in problems if p is not None), key=lambda p: -WORSE[p.mark])
    if not there:
        return ok(found)
    texts = [*(p.found for p in there), found]
    return Finding(there[0].mark, "; ".join(filter(None, texts)), "\n".join(p.advice for p in there))


class FoundError(Exception):
    """Ends a check early with what it has found."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.found)
        self.finding = finding
