"""Command line and YAML files -> Config, and back. YAML is turned into options, so that one parser checks both."""

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import tyro
import yaml
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from dcgan_dist.config import Config, Options, words
from dcgan_dist.config.settings import environment, obey
from dcgan_dist.config.spelling import bare, check_name, given, kinds, negative, spelled
from dcgan_dist.errors import UsageError, show_tracebacks
from dcgan_dist.location import Location, redacted
from dcgan_dist.run import wandb_settings

T = TypeVar("T")
PROGRAM = "dcgan_dist.train"
DESCRIPTION = """Train a DCGAN on image shards, on any number of processes.

Options may also stand in YAML files, each given by --config FILE; later files and the command line win."""
NEVER_EMPTY = {
    "--data.shards": "names no shards; leave the option out for the embedded cartoon faces",
    "--data.classes": "names no classes; leave the option out for all images",
    "--only": "names no checks; leave the option out for all",
}


@dataclass(frozen=True, kw_only=True)
class CommandOptions(Options):
    """What every command has."""

    debug: bool = False
    """Show the traceback of an error."""


KINDS = kinds(Config)
SPELLINGS = KINDS | {negative(name): kind for name, kind in KINDS.items() if kind is bool}
NAMES = tuple(KINDS)


def load(argv: Sequence[str], *, quiet: bool = False) -> Config:
    """The configuration that files, options and other tools' settings give, of which each that matters is named.

    Raises UsageError in one line; prints help and exits for --help.

    Args:
        argv: the command line without the program's name.
        quiet: print nothing (for all ranks but the first).
    """
    show_tracebacks("--debug" in argv)
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    files.add_argument("--config", action="append", default=[], type=words.path)
    try:
        known, options = files.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError(f"--config needs a file ({error})") from error
    _refuse_empty_lists(options)
    settings = {"prog": PROGRAM, "description": DESCRIPTION}
    config, chosen = Config(), set[str]()
    for path in known.config:
        in_file = _options_in(path)
        config = _parse(Config, in_file, where=f"{path}: ", quiet=quiet, default=config, **settings)
        chosen |= given(in_file, KINDS)
    options = [_scalar_resume(option) for option in options]
    config = _parse(Config, options, quiet=quiet, default=config, **settings)
    chosen |= given(options, KINDS)
    config, lines = obey(config, environment(), chosen)
    config = replace(config, wandb=wandb_settings.obey(config.wandb, os.environ, chosen))
    if lines and not quiet:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
    show_tracebacks(config.debug)
    return config.check()  # only now: a file may leave to the command line what makes it consistent


def _refuse_empty_lists(options: Sequence[str]) -> None:
    """A shell variable that stands for nothing must not turn the training to other images."""
    for option, following in pairwise([*options, "--"]):
        name, equals, value = option.partition("=")
        if name in NEVER_EMPTY and not value and (equals or not following or following.startswith("--")):
            raise UsageError(f"{name} {NEVER_EMPTY[name]}")


def parse(schema: type[T], argv: Sequence[str], program: str) -> T:
    """The options of another command, a dataclass. Raises UsageError in one line; prints help and exits for --help."""
    show_tracebacks("--debug" in argv)
    # a switch may be turned off, too, which the help need not say of those that are off
    style = (tyro.conf.FlagCreatePairsOff,) if {"-h", "--help"} & {*argv} else ()
    style += (tyro.conf.PositionalMetavarFromFieldName,)
    options = _parse(schema, argv, prog=program, config=style)
    show_tracebacks(getattr(options, "debug", False))
    return options


def load_with(schema: type[T], argv: Sequence[str], program: str, *, quiet: bool = False) -> tuple[T, Config]:
    """The options of a command that also takes those of the training. Raises and prints as `load` and `parse` do."""
    if "--help" in argv or "-h" in argv:
        with contextlib.suppress(SystemExit):
            _parse(schema, ["--help"], quiet=quiet, prog=program)
        load(["--help"], quiet=quiet)
    known = kinds(schema)
    own: list[str] = []
    others: list[str] = []
    to = others
    for word in argv:
        if word.startswith("--"):
            to = own if bare(word) in known or bare(word) in map(negative, known) else others
        to.append(word)
    _refuse_empty_lists(own)
    return _parse(schema, own, prog=program), load(others, quiet=quiet)


def dump(config: Config, *, reveal: bool = False) -> str:
    """The configuration as YAML; with `reveal`, which puts the secrets of Locations in, `--config` reads it back."""
    return yaml.safe_dump(_plain(config, reveal), sort_keys=False)


# ---- YAML


class _Loader(yaml.SafeLoader):
    """Leaves words as they stand, for options to read: no octal, no date, no `off`; and takes no key twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [rule for rule in rules if rule[0].endswith((":null", ":merge"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if not key.tag.endswith(":merge")]
        twice = [key for number, key in enumerate(keys) if key in keys[:number]]
        if twice:
            raise yaml.MarkedYAMLError(problem=f"'{twice[0]}' stands there twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, option: str = "--config") -> dict[str, Any]:
    """The mapping in a file that `option` names; its values are words as they stand. Raises UsageError."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be read ({error.strerror})") from error
    except yaml.MarkedYAMLError as error:  # without the lines that its text quotes
        place = f"{error.problem} in line {error.problem_mark.line + 1}" if error.problem_mark else error.problem
        raise UsageError(f"{option} {path}: is not YAML ({place})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{option} {path}: is not YAML ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise UsageError(f"{option} {path}: is nested too deep") from error
    if not isinstance(tree, dict):
        raise UsageError(f"{option} {path}: must be a mapping of options, for example 'model: {{image_size: 96}}'")
    return tree


def _options_in(path: Path) -> list[str]:
    """The options in a file."""
    tree = read_yaml(path)
    try:
        options = list(as_options(tree))
    except RecursionError as error:  # of an alias in itself
        raise UsageError(f"--config {path}: is nested too deep") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    names = [bare(option) for option in options if option.startswith("--")]
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:  # in two spellings
        raise UsageError(f"--config {path}: {twice[0]} stands there twice")
    return options


def as_options(tree: Any, prefix: str = "") -> Iterator[str]:
    """Spells a YAML mapping as options: {model: {nz: 64}} -> --model.nz=64. Raises UsageError for what is none."""
    for key, value in tree.items():
        name = f"--{prefix}{key}"
        kind, group = SPELLINGS.get(bare(name)), any(known.startswith(f"{prefix}{key}.") for known in NAMES)
        several = get_origin(kind) is tuple
        match value:
            case dict() if kind is None:
                yield from as_options(value, f"{prefix}{key}.")
            case None if group:
                pass  # all of its options are commented out
            case None if NoneType in get_args(kind):
                yield f"{name}=None"
            case list() if several and all(isinstance(item, str) for item in value):
                yield name
                yield from (_item(name, item) for item in value)
            case str() | list() if group and name != "--resume":
                raise UsageError(f"{name} {value}: is a group of options, as in '{key}: {{NAME: VALUE}}'")
            case str() | int() | float() if kind is not None or group:
                yield f"{_scalar_resume(name)}={value}"
            case _:
                if not group:
                    check_name(name, KINDS)
                shown = {NoneType: "nothing", list: "a list", dict: "a mapping"}.get(type(value), type(value).__name__)
                raise UsageError(f"{name}: {shown} stands where {'words are' if several else 'one value is'} needed")


def _item(name: str, value: str) -> str:
    """An item of a list, which must not turn into an option of its own."""
    if value.startswith("-"):
        raise UsageError(f"{name} {value}: an item of a list cannot begin with '-'; put ./ in front of a path")
    return value


def _scalar_resume(option: str) -> str:
    """`--resume never` is short for `--resume.source never`."""
    name, equals, value = option.partition("=")
    return f"--resume.source{equals}{value}" if name == "--resume" else option


def _plain(value: Any, reveal: bool) -> Any:
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name), reveal) for item in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item, reveal) for item in value]
    if isinstance(value, Location) and reveal:
        return value.reveal()
    return str(value) if isinstance(value, Path | Location) else value


# ---- words


def _parse(schema: type[T], options: Sequence[str], where: str = "", quiet: bool = False, **settings: Any) -> T:
    output = io.StringIO()
    _complaints.clear()
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
    """Tyro's framed message as one line, without its frame, its title and its repetition of the help."""
    lines = [line.strip("│ ").strip() for line in box.splitlines()]
    lines = [line for line in lines if line.strip("─-╭╮╰╯ ")]
    end = next(
        (n for n, line in enumerate(lines) if line.startswith(("Argument helptext", "For full helptext"))), len(lines)
    )
    text = " ".join(lines[1:end] if end > 1 else lines)
    option = re.match(r"Error parsing \[?(\S+?)\]?:", text)
    return f"{option[1]} {_complaints[-1]}" if option and _complaints else text


# ---- values

VALUES = ConstructorRegistry()
MEANINGS = {int: words.whole_number, float: words.number, str: words.name, Path: words.path}
_complaints: list[str] = []  # about values, before tyro breaks them into lines


@VALUES.primitive_rule
def _value(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Numbers, names and paths as people type them; None, where an option may be absent."""
    parts = get_args(info.type) if info.type_origin in (Union, UnionType) else (info.type,)
    kind, *others = [part for part in parts if part is not NoneType] or [NoneType]
    base, *more = get_args(kind) if get_origin(kind) is Annotated else [kind]
    meaning = next((item for item in more if callable(item)), MEANINGS.get(base))
    if meaning is None or others:
        return None  # tyro knows what to do

    def read(args: list[str]) -> Any:
        if NoneType in parts and args[0].lower() in ("none", "null"):
            return None
        try:
            return meaning(args[0])
        except ValueError as error:
            _complaints.append(str(error))
            raise

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{None}|" * (NoneType in parts) + base.__name__.upper(),
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, base) or (value is None and NoneType in parts),
        str_from_instance=lambda value: [str(value)],
    )
