"""W&B's own settings: variables, and the files that `wandb init`, `wandb offline` and others write.

OPTIONS, OBEYED and FIXED are the complete table, which docs/settings.md explains.
"""

import configparser
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from dcgan_dist.config.run_groups import WandbConfig
from dcgan_dist.errors import UsageError

Mode = Literal["online", "offline", "disabled"]
MODES: dict[str, Mode] = {  # values of WANDB_MODE; the last two are old names
    "online": "online",
    "offline": "offline",
    "disabled": "disabled",
    "run": "online",
    "dryrun": "offline",
}
OPTIONS = {
    "WANDB_MODE": "mode",
    "WANDB_DISABLED": "mode",
    "WANDB_PROJECT": "project",
    "WANDB_ENTITY": "entity",
    "WANDB_RUN_GROUP": "group",
    "WANDB_JOB_TYPE": "job_type",
    "WANDB_TAGS": "tags",
    "WANDB_NAME": "name",
    "WANDB_NOTES": "notes",
}
"""Variables that set an option of ours, unless that is given."""
OBEYED = (
    "WANDB_DIR", "WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_BASE_URL", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE",
    "WANDB_CONFIG_DIR",
)  # fmt: skip
"""Variables that W&B itself reads, like all that are not in this table."""
FIXED = {
    "WANDB_RESUME": "allow", "WANDB_RESUME_FROM": "", "WANDB_FORK_FROM": "",  # the run folder says which run goes on
    "WANDB_CONSOLE": "off", "WANDB_HOST": "", "WANDB_PROGRAM": "dcgan_dist.train", "WANDB_SAVE_CODE": "false",
    "WANDB_DISABLE_CODE": "true", "WANDB_DISABLE_GIT": "true",  # nothing of these leaves the machine
    "WANDB_INIT_TIMEOUT": "20", "WANDB_LOGIN_TIMEOUT": "20", "WANDB_FINISH_TIMEOUT": "20",  # fits into a grace time
    # second names of WANDB_NAME and so on; and what would read files into the run, or patch TensorBoard
    "WANDB_RUN_NAME": "", "WANDB_RUN_NOTES": "", "WANDB_RUN_TAGS": "", "WANDB_RUN_JOB_TYPE": "", "WANDB_ROOT_DIR": "",
    "WANDB_CONFIG_PATHS": "", "WANDB_SYNC_TENSORBOARD": "", "WANDB_LAUNCH": "", "WANDB_FORCE": "",
    "WANDB_SILENT": "true", "WANDB_QUIET": "true", "WANDB_SHOW_INFO": "false",
}  # fmt: skip
"""Variables that are not used, and the values in their place."""
SHARE = {
    "WANDB_SAVE_CODE": ("code", "true"), "WANDB_DISABLE_CODE": ("code", "false"),
    "WANDB_DISABLE_GIT": ("git", "false"), "WANDB_HOST": ("host", ""),
}  # fmt: skip
"""Those of them that --wandb.share decides: the part, and the value if it is shared."""
ONCE = ("WANDB_NAME", "WANDB_TAGS", "WANDB_NOTES")
"""Variables for the first attempt; later ones keep names and tags that were changed by hand."""
OFF = ("", "0", "false", "f", "no", "n", "off")


def variables(env: Mapping[str, str]) -> dict[str, str]:
    """The environment `env`, with the values in W&B's settings files, except a key."""
    found = _in_files(env)[0]
    if found.get("mode") == "online":  # from `wandb enabled`: no longer disabled, but the key decides
        del found["mode"]
    return {f"WANDB_{name.upper()}": value for name, value in found.items() if name != "api_key"} | dict(env)


def unreadable(env: Mapping[str, str]) -> list[str]:
    """A line for each of W&B's settings files that cannot be read."""
    return _in_files(env)[1]


def _in_files(env: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    folder = Path(env.get("WANDB_DIR") or ".")
    local = folder / (".wandb" if (folder / ".wandb").exists() else "wandb") / "settings"
    config = Path(env.get("WANDB_CONFIG_DIR") or Path(env.get("HOME", ".")) / ".config" / "wandb")
    found: dict[str, str] = {}
    lines = []
    for path in (config / "settings", local):
        parser = configparser.ConfigParser(default_section="", interpolation=None)
        try:
            parser.read_string(path.read_text(encoding="utf-8"), source=path.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            reason = str(error).partition("\n")[0]  # the rest quotes the file, which may hold a key
            lines.append(f"{path}: not used, because it cannot be read ({reason})")
        else:
            found |= dict(parser["default"]) if parser.has_section("default") else {}
    return found, lines


def given_as(name: str, env: Mapping[str, str]) -> str:
    """A setting and its value as in a message, with its place."""
    value = variables(env)[name]
    return f"{name}={value}" if name in env else f"{name.removeprefix('WANDB_').lower()} = {value} in W&B's settings"


def asked_mode(env: Mapping[str, str]) -> tuple[Mode, str] | None:
    """The mode in the settings, and the setting; None: there is none."""
    found = variables(env)
    if found.get("WANDB_DISABLED", "").lower() not in OFF:
        return "disabled", given_as("WANDB_DISABLED", env)
    if not (asked := found.get("WANDB_MODE")):
        return None
    where = given_as("WANDB_MODE", env)
    known = MODES.get(asked.lower())
    return (known, where) if known else ("disabled", f"{where} is none of {', '.join(MODES)}")


def obey(config: WandbConfig, env: Mapping[str, str], given: Collection[str]) -> WandbConfig:
    """The options with the values of the settings, except for `given` options ("wandb.project").

    Without the mode, which `auto` looks up at every start.
    """
    asked = {option: value for option, (value, _) in _asked(env).items() if f"wandb.{option}" not in given}
    return replace(config, **asked)


def trial_folder(run_dir: Path, env: Mapping[str, str]) -> Path | None:
    """The folder of this trial of a W&B sweep, below `run_dir`. None: W&B's agent has not started this process.

    Raises UsageError for ids that cannot be names of folders.
    """
    ids = [(name, env.get(name, "")) for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID")]
    if not all(value for _, value in ids):
        return None
    for name, value in ids:
        if not re.fullmatch(r"\w[\w.-]*", value):
            raise UsageError(
                f"{name}={value}: W&B's ids have letters, digits, '-', '_' and '.'; unset it, or correct it"
            )
    return run_dir.joinpath(*(value for _, value in ids))


def not_used(config: WandbConfig, env: Mapping[str, str]) -> list[str]:
    """A line for each setting that is not used. `config`: from `obey`."""
    lines = [
        f"{name}: not used, because --wandb.{option} is given"
        for option, (value, name) in _asked(env).items()
        if getattr(config, option) != value
    ]
    for name, instead in FIXED.items():
        part, shared = SHARE.get(name, ("", ""))
        if name in env and not _alike(env[name], shared if part in config.share else instead):
            why = "; --wandb.share decides" if part else f"; it is always {instead}" if instead else ""
            lines.append(f"{name}={env[name]}: not used{why}")
    return lines


def _asked(env: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """The values of our options in the settings, and the setting as in a message."""
    found = variables(env)
    asked: dict[str, tuple[Any, str]] = {}
    for name, option in OPTIONS.items():
        if option != "mode" and (value := found.get(name)):
            several = tuple(tag.strip() for tag in value.split(",") if tag.strip())
            asked[option] = several if option == "tags" else value, given_as(name, env)
    return asked


def _alike(one: str, other: str) -> bool:
    return one.lower() == other or (other in ("true", "false") and (one.lower() in OFF) == (other in OFF))


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Hides these variables, those that are not used, and the words of the command, which may be secret, from W&B."""
    words, sys.argv = sys.argv, sys.argv[:1]
    kept = {name: os.environ.pop(name) for name in (*names, *FIXED) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
        sys.argv = words
