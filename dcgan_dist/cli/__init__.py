"""Command line and YAML files -> Config, and back. Imports no torch, so that help and errors are fast."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import tyro

from dcgan_dist.cli.parser import parse_options
from dcgan_dist.cli.yaml_files import KINDS, dump, options_in, read_yaml, scalar_resume
from dcgan_dist.config import Config, OptionGroup, values
from dcgan_dist.config.option_names import bare, given, kinds, negative
from dcgan_dist.config.settings import apply_settings, launch_environment
from dcgan_dist.errors import UsageError, run_and_report, show_tracebacks
from dcgan_dist.run import wandb_settings

__all__ = ["KINDS", "CommandOptions", "check", "dump", "load", "load_lines", "load_with", "parse", "read_yaml"]

T = TypeVar("T")
PROGRAM = "dcgan_dist.train"
DESCRIPTION = "Train a DCGAN on image shards, on any number of processes."
NEVER_EMPTY = {
    "--data.shards": "names no shards; leave the option out for the embedded cartoon faces",
    "--data.classes": "names no classes; leave the option out for all images",
    "--only": "names no checks; leave the option out for all",
}
_checked: dict[tuple[str, ...], tuple[Config, list[str]]] = {}  # a file is read once: it may be a pipe, --config <(..)


@dataclass(frozen=True, kw_only=True)
class CommandOptions(OptionGroup):
    """Options of every command."""

    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class _WithFiles(Config):
    """For --help: with the options that are read before those of the run."""

    config: Path | None = None
    """A YAML file with options. May be given several times: later files and the command line win."""
    print_config: bool = False
    """Print the resolved options as YAML and stop."""


def load(argv: Sequence[str], *, quiet: bool = False) -> Config:
    """The configuration from files, options and other tools' settings, with a line for each of those.

    `argv`: the command line without the program's name; `quiet`: print nothing, for all ranks but the first.
    Raises UsageError; prints and exits for --help and --print_config.
    """
    config, lines = load_lines(argv, quiet=quiet)
    if lines and not quiet:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
    return config


def load_lines(argv: Sequence[str], *, quiet: bool = False) -> tuple[Config, list[str]]:
    """The same, with the lines in place of printing them."""
    return _checked.pop(tuple(argv), None) or _read(argv, quiet)


def check(argv: Sequence[str], *, rank: int) -> None:
    """Ends the process for --help, --print_config and wrong options, before torch is imported."""

    def act() -> int:
        _checked[tuple(argv)] = _read(argv, quiet=rank != 0)
        return 0

    code = run_and_report(act, rank=rank, given=argv)
    if code:
        sys.exit(code)


def _read(argv: Sequence[str], quiet: bool) -> tuple[Config, list[str]]:
    """The configuration, and lines on other tools' settings."""
    show_tracebacks("--debug" in argv)
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    files.add_argument("--config", action="append", default=[], type=values.path)
    files.add_argument("--print_config", "--print-config", action="store_true")
    try:
        known, options = files.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError(f"--config needs a file ({error})") from error
    _refuse_empty_lists(options)
    settings = {"prog": PROGRAM, "description": DESCRIPTION}
    config, chosen = Config(), set[str]()
    for path in known.config:
        in_file = options_in(path)
        config = parse_options(Config, in_file, where=f"{path}: ", quiet=quiet, default=config, **settings)
        chosen |= given(in_file, KINDS)
    if {"-h", "--help"} & {*options}:  # the values in the files are the defaults
        shown = _WithFiles(**vars(config))
        parse_options(_WithFiles, ["--help"], quiet=quiet, default=shown, **settings)
    options = [scalar_resume(option) for option in options]
    config = parse_options(Config, options, quiet=quiet, default=config, **settings)
    chosen |= given(options, KINDS)
    config, lines = apply_settings(config, launch_environment(), chosen)
    config = replace(config, wandb=wandb_settings.obey(config.wandb, os.environ, chosen))
    if trial := wandb_settings.trial_folder(config.run_dir, os.environ):
        lines = [*lines, f"W&B: a trial of sweep {os.environ['WANDB_SWEEP_ID']}, in the run folder {trial}"]
        config = replace(config, run_dir=trial)
    show_tracebacks(config.debug)
    config.check()  # only now: a file may be inconsistent without the command line
    if known.print_config:
        if not quiet:
            sys.stdout.write(dump(config))
        sys.exit()
    return config, lines


def _refuse_empty_lists(options: Sequence[str]) -> None:
    """An empty shell variable must not change the data set."""
    for option, following in pairwise([*options, "--"]):
        name, equals, value = option.partition("=")
        if name in NEVER_EMPTY and not value and (equals or not following or following.startswith("--")):
            raise UsageError(f"{name} {NEVER_EMPTY[name]}")


def parse(schema: type[T], argv: Sequence[str], program: str) -> T:
    """The options of another command, a dataclass. Raises UsageError; prints help and exits for --help."""
    show_tracebacks("--debug" in argv)
    # without --no_x of switches that are off
    style = (tyro.conf.FlagCreatePairsOff,) if {"-h", "--help"} & {*argv} else ()
    style += (tyro.conf.PositionalMetavarFromFieldName,)
    options = parse_options(schema, argv, prog=program, config=style)
    show_tracebacks(getattr(options, "debug", False))
    return options


def load_with(schema: type[T], argv: Sequence[str], program: str, *, quiet: bool = False) -> tuple[T, Config]:
    """The options of a command, and those of training. Raises and prints as `load` and `parse` do."""
    if {"-h", "--help"} & {*argv}:
        with contextlib.suppress(SystemExit):
            parse_options(schema, ["--help"], quiet=quiet, prog=program)
        load(["--help"], quiet=quiet)
    known = {*kinds(schema), *map(negative, kinds(schema))}
    own, others, mine = list[str](), list[str](), False
    for word in argv:
        mine = bare(word) in known if word.startswith("--") else mine
        (own if mine else others).append(word)
    _refuse_empty_lists(own)
    return parse_options(schema, own, prog=program), load(others, quiet=quiet)
