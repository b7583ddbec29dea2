"""Brace lists and globs, of files and of remote objects."""

import os
import re
import shlex
from glob import glob
from itertools import chain, islice
from pathlib import Path

from braceexpand import braceexpand

from dcgan_dist.data.formats import EXTENSIONS, is_image_name
from dcgan_dist.data.remote.client import Remote, base_name, is_remote
from dcgan_dist.data.remote.unpack import TAR_ENDINGS
from dcgan_dist.errors import UsageError
from dcgan_dist.location import Location

SIGNS = re.compile(r"[{}*?\[\\]|^~/")  # without them a name is no pattern
NO_SHARDS = (*EXTENSIONS, ".parquet", ".arrow", ".zip", ".csv", ".tsv", ".jsonl")
FOLDERS = 100  # that are looked into for images


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
    if SIGNS.search(pattern.reveal()) and exists(pattern):
        return [str(pattern)]
    try:
        names = list(braceexpand(pattern.reveal()))
    except ValueError as error:
        raise UsageError(f"{pattern}: the braces do not match") from error
    return [file for name in names for file in _without_glob(name, remote)]


def shards_of(pattern: str, remote: Remote) -> list[str]:
    """The same, with the shards in them in place of folders. Raises UsageError for a folder without shards, too."""
    return [shard for name in spell_out(pattern, remote) for shard in _shards_in(name, remote)]


def _is_shard(name: str) -> bool:
    return name.lower().endswith(TAR_ENDINGS)


def _shards_in(name: str, remote: Remote) -> list[str]:
    if is_remote(name) and name.endswith("/"):
        return remote.expand(Location(f"{Location(name).reveal()}*.tar"))
    # a network disk takes long to say for thousands
    if is_remote(name) or _is_shard(name) or not (exists(name) and Path(name).is_dir()):
        if base_name(name).lower().endswith(NO_SHARDS):
            what = "is no shard; dcgan-dist shard SOURCE OUT --size 64 makes shards of images"
            raise UsageError(f"{Location(name)}: {what}")
        return [name]
    try:
        found = sorted((path.name for path in Path(name).iterdir()), key=os.fsencode)
    except OSError as error:
        raise UsageError(f"{name}: cannot be read ({error.strerror})") from error
    shards = [str(Path(name) / file) for file in found if _is_shard(file) and not file.startswith(".")]
    if not shards:
        images = any(map(is_image_name, found)) or any(
            map(is_image_name, chain.from_iterable(files for _, _, files in islice(os.walk(name), FOLDERS)))
        )
        what = "these are images, not shards" if images else "holds no shards (.tar)"
        raise UsageError(f"{name}: {what}; dcgan-dist shard {shlex.quote(name)} OUT --size 64 makes shards of a folder")
    return shards


def _without_glob(name: str, remote: Remote) -> list[str]:
    if is_remote(name):
        return remote.expand(name)
    name = str(Path(name).expanduser()) if name.partition("/")[0] == "~" else name  # no shell has, of a YAML file
    if not any(sign in name for sign in "*?[") or exists(name):
        return [name]
    files = glob(name, recursive=True)  # noqa: PTH207, for Path.glob takes no absolute pattern
    if not files:
        raise UsageError(f"{name}: no such files (seen from {Path.cwd()})")
    return sorted(files, key=os.fsencode)
