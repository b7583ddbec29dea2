"""Brace lists and globs, of files and of remote objects."""

import os
from glob import glob
from pathlib import Path

from braceexpand import braceexpand

from dcgan_dist.data.remote.client import Remote, is_remote
from dcgan_dist.errors import UsageError
from dcgan_dist.location import Location


def exists(name: str) -> bool:
    """Whether there is such a file or folder; a name that is too long for one is none."""
    try:
        return Path(name).exists()
    except OSError:
        return False


def spell_out(pattern: str, remote: Remote) -> list[str]:
    """The paths and URLs that a pattern stands for: those of a brace list as they follow, those of a glob sorted.

    What is the name of a file is that file, whatever signs it has. What has no pattern in it need not exist. Raises
    UsageError for a pattern without files.
    """
    pattern = Location(pattern)
    if exists(pattern):
        return [str(pattern)]
    try:
        names = list(braceexpand(pattern.reveal()))
    except ValueError as error:
        raise UsageError(f"{pattern}: the braces do not match") from error
    return [file for name in names for file in _without_glob(name, remote)]


def _without_glob(name: str, remote: Remote) -> list[str]:
    if is_remote(name):
        return remote.expand(name)
    if exists(name) or not any(sign in name for sign in "*?["):
        return [name]
    files = glob(name, recursive=True)  # noqa: PTH207, for Path.glob takes no absolute pattern
    if not files:
        raise UsageError(f"{name}: no such files (seen from {Path.cwd()})")
    return sorted(files, key=os.fsencode)
