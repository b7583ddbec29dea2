"""Brace lists and globs of files and of remote objects."""

import os
import re
import shlex
from collections import Counter
from glob import glob
from itertools import islice
from pathlib import Path

from braceexpand import braceexpand

from dcgan_dist.data.images.formats import EXTENSIONS, ending_of, is_image_name
from dcgan_dist.data.remote.client import Remote, base_name, is_remote
from dcgan_dist.data.remote.unpack import TAR_ENDINGS
from dcgan_dist.data.shards.manifest import SIDE_FILES
from dcgan_dist.errors import UsageError, UserError, os_error_as_user_error
from dcgan_dist.location import Location

SIGNS = re.compile(r"[{}*?\[\\]|^~/")  # of a pattern
NO_SHARDS = (*EXTENSIONS, ".parquet", ".arrow", ".zip", ".csv", ".tsv", ".jsonl")
FOLDERS = 100  # searched for images
WRITTEN = (*SIDE_FILES, ".partial")  # beside shards, by dcgan-dist shard


def exists(name: str) -> bool:
    """Whether there is such a file or folder; False for a name that is too long."""
    try:
        return Path(name).exists()
    except OSError:
        return False


def spell_out(pattern: str, remote: Remote) -> list[str]:
    """The paths and URLs that a pattern matches: those of a brace list in its order, those of a glob sorted.

    The name of an existing file is never taken as a pattern. A name without a pattern need not exist. Raises UsageError
    for a pattern that matches no files.
    """
    pattern = Location(pattern)
    if SIGNS.search(pattern.reveal()) and exists(pattern):
        return [str(pattern)]
    try:
        names = list(braceexpand(pattern.reveal()))
    except ValueError as error:
        raise UsageError(f"{pattern}: the braces do not match") from error
    return [file for name in names for file in _without_glob(name, remote)]


def shards_of(pattern: str, remote: Remote, passed: Counter[str] | None = None) -> list[str]:
    """The same, with folders replaced by the shards in them. Raises UsageError also for a folder without shards.

    `passed`: counts other files in these folders, except those that `dcgan-dist shard` writes.
    """
    passed = Counter() if passed is None else passed
    return [shard for name in spell_out(pattern, remote) for shard in _shards_in(name, remote, passed)]


def _is_shard(name: str) -> bool:
    return base_name(name).lower().endswith(TAR_ENDINGS)


def _shards_in(name: str, remote: Remote, passed: Counter[str]) -> list[str]:
    # on a network disk it takes long to find out which of thousands are folders
    found = None if _is_shard(name) and not name.endswith("/") else _files_in(name, remote)
    if found is None:
        if base_name(name) == "manifest.json":
            raise UsageError(f"{Location(name)}: is no shard; name the folder of the shards")
        if base_name(name).lower().endswith(NO_SHARDS):
            what = "is no shard; dcgan-dist shard SOURCE OUT --size 64 makes shards of images"
            raise UsageError(f"{Location(name)}: {what}")
        return [name]
    shards = [file for file in found if _is_shard(file) and not base_name(file).startswith(".")]
    if not shards:
        below = (file for _, _, files in islice(os.walk(name), FOLDERS) for file in files)
        images = any(map(is_image_name, found if is_remote(name) else below))
        what = "these are images, not shards" if images else "holds no shards (.tar)"
        here = "COPY" if is_remote(name) else shlex.quote(name)
        how = f"dcgan-dist shard {here} OUT --size 64 makes shards of a folder"
        raise UsageError(f"{name}: {what}; {how}{' on a local disk' * is_remote(name)}")
    others = [file for file in set(found) - set(shards) if base_name(file) not in WRITTEN]
    passed.update("folders" if not is_remote(file) and Path(file).is_dir() else ending_of(file) for file in others)
    return shards


def _files_in(name: str, remote: Remote) -> list[str] | None:
    """The files and folders in a folder, sorted; None for a name that seems to be no folder."""
    if is_remote(name):
        no_listing = name.lower().startswith(("http://", "https://"))
        file = not name.endswith("/") and (no_listing or base_name(name).lower().endswith(NO_SHARDS))
        return None if file else _remote_files(name, remote)
    if not (exists(name) and Path(name).is_dir()):
        return None
    with os_error_as_user_error(name, "cannot be read", UsageError):
        return [str(path) for path in sorted(Path(name).iterdir(), key=os.fsencode)]


def _remote_files(url: str, remote: Remote) -> list[str] | None:
    folder = re.sub(r"([*?\[])", r"[\1]", Location(url).reveal().rstrip("/"))
    try:
        found = remote.expand(Location(f"{folder}/*"))
    except UserError:
        if url.endswith("/"):
            raise
        return None
    return [name for name in found if name.rstrip("/") != url.rstrip("/")]  # which may be a file of no bytes


def _without_glob(name: str, remote: Remote) -> list[str]:
    if is_remote(name):
        return remote.expand(name)
    # no shell expands that in a YAML file; a user may have no home
    name = os.path.expanduser(name) if name.partition("/")[0] == "~" else name  # noqa: PTH111
    if not any(sign in name for sign in "*?[") or exists(name):
        return [name]
    files = glob(name, recursive=True)  # noqa: PTH207, for Path.glob takes no absolute pattern
    if not files:
        raise UsageError(f"{name}: no such files (seen from {Path.cwd()})")
    return sorted(files, key=os.fsencode)
