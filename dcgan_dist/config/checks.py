"""How an option is refused: in one line that quotes the flag."""

from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, ClassVar, get_args, get_origin, get_type_hints

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
        if self.least is not None and not value >= self.least:
            return f"must be at least {self.least:,}"
        if self.above is not None and not value > self.above:
            return f"must be more than {self.above:,}"
        if self.most is not None and not value <= self.most:
            return f"must be at most {self.most:,}"
        if self.below is not None and not value < self.below:
            return f"must be less than {self.below:,}"
        return None


@dataclass(frozen=True, kw_only=True)
class OptionGroup:
    """A group of options, each number of which is held to its Range."""

    prefix: ClassVar[str] = ""
    """What stands before the names of the options."""

    def __post_init__(self) -> None:
        for name, limits in ranges(type(self)).items():
            value = getattr(self, name)
            problem = None if value is None else limits.problem(value)
            check(problem is None, f"--{self.prefix}{name} {value}: {problem}")


@cache
def ranges(kind: type[OptionGroup]) -> dict[str, Range]:
    """The limits of the fields of a dataclass that have some."""
    hints, found = get_type_hints(kind, include_extras=True), {}
    for item in fields(kind):
        hint = hints[item.name]
        parts = [part for part in (hint, *get_args(hint)) if get_origin(part) is Annotated]  # of `Annotated[..] | None`
        limits = [about for part in parts for about in part.__metadata__ if isinstance(about, Range)]
        found |= dict.fromkeys([item.name], limits[0]) if limits else {}
    return found
