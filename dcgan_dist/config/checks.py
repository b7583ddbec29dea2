"""The limits of options, and the errors that quote their flags."""

import operator
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, get_args, get_type_hints

from dcgan_dist.errors import UsageError


class ConfigError(UsageError):
    """Options that are out of range or contradict each other; the message quotes the flags."""


def check(ok: bool, message: str) -> None:
    """Raises ConfigError with this message unless `ok`."""
    if not ok:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class Range:
    """The limits of a number, as in `Annotated[int, Range(least=1, most=10)]`. NaN is outside of all."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def problem(self, value: float) -> str | None:
        """What is wrong with a value; None: nothing."""
        for limit, within, words in (
            (self.least, operator.ge, "at least"),
            (self.above, operator.gt, "more than"),
            (self.most, operator.le, "at most"),
            (self.below, operator.lt, "less than"),
        ):
            if limit is not None and not within(value, limit):
                return f"must be {words} {limit:,}"
        return None


@dataclass(frozen=True, kw_only=True)
class OptionGroup:
    """A group of options; numbers must be within their Range."""

    prefix: ClassVar[str] = ""  # of the options' names

    def __post_init__(self) -> None:
        for name, limits in ranges(type(self)).items():
            value = getattr(self, name)
            problem = None if value is None else limits.problem(value)
            check(problem is None, f"--{self.prefix}{name} {value}: {problem}")


@cache
def ranges(kind: type[OptionGroup]) -> dict[str, Range]:
    """The limits of the fields of a dataclass."""
    found: dict[str, Range] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        parts = (part for whole in (hint, *get_args(hint)) for part in get_args(whole))  # of `Annotated[..] | None`
        found.update((name, part) for part in parts if isinstance(part, Range))
    return found
