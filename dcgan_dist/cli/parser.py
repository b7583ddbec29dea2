"""The parser of all options: tyro, with our own parsing of values, and its errors as one line."""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from dcgan_dist.config import values
from dcgan_dist.config.option_names import kinds, spelled
from dcgan_dist.errors import UsageError
from dcgan_dist.location import redacted

T = TypeVar("T")
VALUES = ConstructorRegistry()
MEANINGS = {int: values.whole_number, float: values.number, str: values.name, Path: values.path}
_errors: list[str] = []  # of values, before tyro breaks them into lines


@VALUES.primitive_rule
def _value(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Parses numbers, names and paths, and `None` where an option may be absent."""
    parts = get_args(info.type) if info.type_origin in (Union, UnionType) else (info.type,)
    kind, *others = [part for part in parts if part is not NoneType] or [NoneType]
    base, *more = get_args(kind) if get_origin(kind) is Annotated else [kind]
    meaning = next((item for item in more if callable(item)), MEANINGS.get(base))
    if meaning is None or others:
        return None  # left to tyro

    def read(args: list[str]) -> Any:
        if NoneType in parts and args[0].lower() in ("none", "null"):
            return None
        try:
            return meaning(args[0])
        except ValueError as error:
            _errors.append(str(error))
            raise

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{None}|" * (NoneType in parts) + base.__name__.upper(),
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, base) or (value is None and NoneType in parts),
        str_from_instance=lambda value: [str(value)],
    )


def parse_options(schema: type[T], options: Sequence[str], where: str = "", quiet: bool = False, **settings: Any) -> T:
    """The options, words of a command line, as a dataclass. Raises UsageError; prints help and exits for --help.

    `where`: begins the message of an error; `quiet`: print no help; `settings`: other arguments of tyro.cli.
    """
    output = io.StringIO()
    _errors.clear()
    try:
        known = kinds(schema)
        positional = any(tyro.conf.Positional in get_args(kind) for kind in known.values())
        args = list(spelled(options, known, positional))
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            return tyro.cli(schema, args=args, use_underscores=True, registry=VALUES, **settings)
    except UsageError as error:
        raise UsageError(where + redacted(str(error), *options)) from error
    except SystemExit as stop:
        if stop.code in (None, 0):  # --help
            if not quiet:
                sys.stdout.write(output.getvalue())
            raise
        raise UsageError(where + redacted(_one_line(output.getvalue()), *options)) from stop


def _one_line(box: str) -> str:
    """Tyro's message as one line, without frame, title and help."""
    lines = [line.strip("│ ").strip() for line in box.splitlines()]
    lines = [line for line in lines if line.strip("─-╭╮╰╯ ")]
    tail = ("Argument helptext", "For full helptext")
    end = next((number for number, line in enumerate(lines) if line.startswith(tail)), len(lines))
    text = " ".join(lines[1:end] if end > 1 else lines)
    option = re.match(r"Error parsing \[?(\S+?)\]?:", text)
    return f"{option[1]} {_errors[-1]}" if option and _errors else text
