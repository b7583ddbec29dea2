"""Options in YAML files, converted to those of the command line, so that one parser checks both; and back."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import yaml

from dcgan_dist.config import Config
from dcgan_dist.config.option_names import bare, check_name, kinds, negative
from dcgan_dist.errors import UsageError, os_error_as_user_error
from dcgan_dist.location import Location

KINDS = kinds(Config)
SPELLINGS = KINDS | {negative(name): kind for name, kind in KINDS.items() if kind is bool}


def dump(config: Config, *, reveal: bool = False) -> str:
    """The configuration as YAML; with `reveal`, which includes the secrets of Locations, `--config` can read it."""
    return yaml.safe_dump(_plain(config, reveal), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """Leaves values as text, without octal numbers, dates or `off`; refuses a repeated key."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [rule for rule in rules if rule[0].endswith((":null", ":merge"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if not key.tag.endswith(":merge")]
        twice = [key for number, key in enumerate(keys) if key in keys[:number]]
        if twice:
            raise yaml.MarkedYAMLError(problem=f"'{twice[0]}' is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, option: str = "--config") -> dict[str, Any]:
    """The mapping in a file that `option` names, with values as text. Raises UsageError."""
    try:
        with os_error_as_user_error(f"{option} {path}", "cannot be read", UsageError):
            tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:  # its text quotes lines
        place = f"{error.problem} in line {error.problem_mark.line + 1}" if error.problem_mark else error.problem
        raise UsageError(f"{option} {path}: is not YAML ({place})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{option} {path}: is not YAML ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise UsageError(f"{option} {path}: is nested too deep") from error
    if not isinstance(tree, dict):
        raise UsageError(f"{option} {path}: must be a mapping of options, for example 'model: {{image_size: 96}}'")
    return tree


def options_in(path: Path) -> list[str]:
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
        raise UsageError(f"--config {path}: {twice[0]} is given twice")
    return options


def as_options(tree: Any, prefix: str = "") -> Iterator[str]:
    """Converts a YAML mapping to options: {model: {nz: 64}} -> --model.nz=64. Raises UsageError for anything else."""
    for key, value in tree.items():
        name = f"--{prefix}{key}"
        kind, group = SPELLINGS.get(bare(name)), any(known.startswith(f"{prefix}{key}.") for known in KINDS)
        several = get_origin(kind) is tuple
        match value:
            case dict() if kind is None:
                yield from as_options(value, f"{prefix}{key}.")
            case None if group:
                pass  # all its options are commented out
            case None if NoneType in get_args(kind):
                yield f"{name}=None"
            case list() if several and all(isinstance(item, str) for item in value):
                yield name
                yield from (_item(name, item) for item in value)
            case str() | list() if group and name != "--resume":
                raise UsageError(f"{name} {value}: is a group of options, as in '{key}: {{NAME: VALUE}}'")
            case str() | int() | float() if kind is not None or group:
                yield f"{scalar_resume(name)}={value}"
            case _:
                if not group:
                    check_name(name, KINDS)
                shown = {NoneType: "nothing", list: "a list", dict: "a mapping"}.get(type(value), type(value).__name__)
                raise UsageError(f"{name}: {shown} is given where {'words are' if several else 'one value is'} needed")


def _item(name: str, value: str) -> str:
    """An item of a list, which must not look like an option."""
    if value.startswith("-"):
        raise UsageError(f"{name} {value}: an item of a list cannot begin with '-'; put ./ in front of a path")
    return value


def scalar_resume(option: str) -> str:
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
