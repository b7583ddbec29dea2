"""Names of options as they are typed: dots, hyphens, switches, and suggestions for unknown ones."""

import difflib
import re
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from dcgan_dist.config.checks import ConfigError
from dcgan_dist.config.values import SWITCH, quoted


def kinds(schema: type, prefix: str = "") -> dict[str, Any]:
    """The types of all options of a dataclass, by their dotted names."""
    found: dict[str, Any] = {}
    hints = get_type_hints(schema, include_extras=True)
    for item in fields(schema):
        hint = hints[item.name]
        group = isinstance(hint, type) and is_dataclass(hint)
        found |= kinds(hint, f"{prefix}{item.name}.") if group else {prefix + item.name: hint}
    return found


def spelled(options: Sequence[str], known: dict[str, Any], positional: bool) -> Iterator[str]:
    """The words of a command line with switches as tyro has them: `--x=false` and `--x false` become --no_x.

    `known`: from `kinds`; `positional`: there are arguments without names. Raises ConfigError for unknown options.
    """
    names = [name for name, kind in known.items() if kind is bool]
    switches = {name: (name, True) for name in names} | {negative(name): (name, False) for name in names}
    # after a switch, `on` may be a positional argument
    after = {"true", "false"} if positional else SWITCH
    rest = deque(options)
    while rest:
        option = rest.popleft()
        flag, equals, value = option.partition("=")
        if flag.startswith("--") and flag not in ("--", "--help"):
            check_name(flag, known, switches)
        if not flag.startswith("--") or bare(flag) not in switches:
            yield option
            continue
        name, on = switches[bare(flag)]
        if not equals and rest and (rest[0].lower() in after or not (positional or rest[0].startswith("-"))):
            value = rest.popleft()
        if (equals or value) and value.lower() not in SWITCH:
            raise ConfigError(f"{flag} {quoted(value)}: is a switch; give true or false, or no value")
        yield f"--{name if on == SWITCH.get(value.lower(), True) else negative(name)}"


def given(options: Sequence[str], known: dict[str, Any]) -> set[str]:
    """The names of the `known` options that are given."""
    switches = {negative(name): name for name, kind in known.items() if kind is bool}
    return {switches.get(name, name) for name in (bare(word) for word in options if word.startswith("--"))}


def bare(flag: str) -> str:
    """The name of an option in its dataclass."""
    return flag.partition("=")[0].removeprefix("--").replace("-", "_")


def negative(name: str) -> str:
    """The option that turns a switch off: data.no_hflip."""
    return re.sub(r"(\w+)$", r"no_\1", name)


def check_name(flag: str, known: Collection[str], switches: Collection[str] = ()) -> None:
    """Raises ConfigError for an option that does not exist, with similar names."""
    name = bare(flag)
    if name in known or name in switches:
        return
    near = difflib.get_close_matches(name, known, cutoff=0.75) or [full for full in known if _last(name) in _last(full)]
    hint = f"did you mean {' or '.join(f'--{full}' for full in near[:3])}?" if near else "--help lists them all"
    raise ConfigError(f"there is no option --{name}; {hint}")


def _last(name: str) -> str:
    return name.rpartition(".")[2]
