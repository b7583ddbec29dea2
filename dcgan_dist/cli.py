"""Command line and YAML files -> Config, and back. YAML is turned into options, so that one parser checks both."""

import argparse
import contextlib
import difflib
import io
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from dcgan_dist.config import Config, flatten
from dcgan_dist.errors import UsageError
from dcgan_dist.location import Location, redacted

T = TypeVar("T")
PROGRAM = "dcgan_dist.train"
DESCRIPTION = """Train a DCGAN on image shards, on any number of processes.

Options may also stand in YAML files, each given by --config FILE; later files and the command line win."""
NAMES = tuple(flatten(Config()))
SWITCHES = {
    spelling
    for name, default in flatten(Config()).items()
    if isinstance(default, bool)
    for spelling in (name, re.sub(r"(\w+)$", r"no_\1", name))
}
NEVER_EMPTY = {
    "--data.shards": "names no shards; leave the option out for the embedded cartoon faces",
    "--data.classes": "names no classes; leave the option out for all images",
}
REWORDED = {
    r"^Error parsing [\w.]+: (?=--)": "",
    r"^Error parsing (\S+): invalid literal for int\(\) with base 10: '(.*)'$": r"\1 \2: must be a whole number",
    r"^Error parsing (\S+): could not convert string to float: '(.*)'$": r"\1 \2: must be a number",
}


def load(argv: Sequence[str], *, quiet: bool = False) -> Config:
    """The configuration that files and options give. Raises UsageError in one line; prints help and exits for --help.

    Args:
        argv: the command line without the program's name.
        quiet: print nothing (for all ranks but the first).
    """
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    files.add_argument("--config", action="append", default=[], type=Path)
    try:
        known, options = files.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError(f"--config needs a file ({error})") from error
    _refuse_empty_lists(options)
    config = Config()
    for path in known.config:
        config = _parse(list(as_options(_read_yaml(path))), config, where=f"{path}: ", quiet=quiet)
    config = _parse([_scalar_resume(option) for option in options], config, where="", quiet=quiet)
    return config.check()  # only now: a file may leave to the command line what makes it consistent


def _refuse_empty_lists(options: Sequence[str]) -> None:
    """A shell variable that stands for nothing must not turn the training to other images."""
    for option, following in pairwise([*options, "--"]):
        name, equals, value = option.partition("=")
        if name in NEVER_EMPTY and not value and (equals or following.startswith("--")):
            raise UsageError(f"{name} {NEVER_EMPTY[name]}")


def parse(kind: type[T], argv: Sequence[str], program: str) -> T:
    """The options of another command, a dataclass. Raises UsageError in one line; prints help and exits for --help."""
    style = (tyro.conf.PositionalMetavarFromFieldName, tyro.conf.FlagCreatePairsOff)
    return _tyro(kind, argv, prog=program, config=style)


def dump(config: Config, *, reveal: bool = False) -> str:
    """The configuration as YAML; with `reveal`, which puts the secrets of Locations in, `--config` reads it back."""
    return yaml.safe_dump(_plain(config, reveal), sort_keys=False)


def as_options(tree: Any, prefix: str = "") -> Iterator[str]:
    """Spells a YAML mapping as options: {model: {nz: 64}} -> --model.nz=64."""
    for key, value in tree.items():
        name = f"--{prefix}{key}"
        match value:
            case dict():
                yield from as_options(value, f"{prefix}{key}.")
            case bool():
                yield name if value else f"--{prefix}no_{key}"
            case list():
                yield name
                yield from (_item(name, item) for item in value)
            case None if any(known.startswith(f"{prefix}{key}.") for known in NAMES):
                pass  # a group whose options are all commented out
            case _:
                yield f"{_scalar_resume(name)}={value}"


def _item(name: str, value: Any) -> str:
    """An item of a list, which must not turn into an option of its own."""
    if str(value).startswith("-"):
        raise UsageError(f"{name} {value}: an item of a list cannot begin with '-'; put ./ in front of a path")
    return str(value)


def _scalar_resume(option: str) -> str:
    """`--resume never` is short for `--resume.source never`."""
    name, equals, value = option.partition("=")
    return f"--resume.source{equals}{value}" if name == "--resume" else option


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror})") from error
    except yaml.MarkedYAMLError as error:  # without the lines that its text quotes
        place = f"{error.problem} in line {error.problem_mark.line + 1}" if error.problem_mark else error.problem
        raise UsageError(f"--config {path}: is not YAML ({place})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(tree, dict):
        raise UsageError(f"--config {path}: must be a mapping of options, for example 'model: {{image_size: 96}}'")
    return tree


def _parse(options: Sequence[str], default: Config, where: str, quiet: bool) -> Config:
    for option in options:
        if option.startswith("--") and (where or option != "--help"):
            _check_name(option, where)
    return _tyro(Config, options, where, quiet, default=default, prog=PROGRAM, description=DESCRIPTION)


def _tyro(kind: type[T], options: Sequence[str], where: str = "", quiet: bool = False, **settings: Any) -> T:
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            result = tyro.cli(kind, args=list(options), use_underscores=True, **settings)
    except SystemExit as stop:
        if stop.code in (None, 0):  # --help
            if not quiet:
                sys.stdout.write(output.getvalue())
            raise
        given = (text for option in options for text in (option, option.partition("=")[2]))
        raise UsageError(where + redacted(_one_line(output.getvalue()), *given)) from stop
    for name, value in flatten(result).items():
        if isinstance(value, Path) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(value)):
            raise UsageError(f"{where}{name} {value}: is a URL; name a path on a disk")
    return result


def _check_name(option: str, where: str) -> None:
    """Raises UsageError for an option that does not exist, naming the nearest, and for a switch with a value."""
    name, equals, value = option.removeprefix("--").partition("=")
    name = name.replace("-", "_")
    if name not in NAMES and name not in SWITCHES:
        near = difflib.get_close_matches(name, NAMES, cutoff=0.75) or [
            known for known in NAMES if _last(name) in _last(known)
        ]
        hint = f"did you mean {' or '.join(f'--{known}' for known in near[:3])}?" if near else "--help lists them all"
        raise UsageError(f"{where}there is no option --{name}; {hint}")
    if name in SWITCHES and equals:
        raise UsageError(f"{where}--{name} {value}: is a switch and takes no value (in YAML: true or false)")


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _one_line(box: str) -> str:
    """Tyro's framed message as one line, without its frame, its title and its repetition of the help."""
    lines = [line.strip("│ ").strip() for line in box.splitlines()]
    lines = [line for line in lines if line.strip("─-╭╮╰╯ ")]
    end = next(
        (n for n, line in enumerate(lines) if line.startswith(("Argument helptext", "For full helptext"))), len(lines)
    )
    text = " ".join(lines[1:end] if end > 1 else lines)
    for pattern, plain in REWORDED.items():
        text = re.sub(pattern, plain, text)
    return text


def _plain(value: Any, reveal: bool) -> Any:
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name), reveal) for item in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item, reveal) for item in value]
    if isinstance(value, Location) and reveal:
        return value.reveal()
    return str(value) if isinstance(value, Path | Location) else value
