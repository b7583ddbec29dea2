"""Are all shards there? Compares the shards that were found with the manifest.json beside them."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import glob
from pathlib import Path

from braceexpand import braceexpand

from dcgan_dist.data.remote.client import Remote, base_name, is_remote
from dcgan_dist.data.shards.manifest import NAME, Manifest, folder_of, manifest_beside, within_folder
from dcgan_dist.data.shards.patterns import exists
from dcgan_dist.errors import UserError
from dcgan_dist.location import Location
from dcgan_dist.text import listed

NAMES_LISTED = 5  # in one message
MANIFEST_THREADS = 16


@dataclass(frozen=True)
class Completeness:
    """The differences between shards and the manifests beside them, as messages."""

    missing: tuple[str, ...] = ()
    """Shards that a manifest names, a pattern asks for, and that do not exist. One line for each folder."""
    notes: tuple[str, ...] = ()
    """Other differences: shards that were not asked for or that no manifest names, and unusable manifests."""
    manifest: Manifest | None = None  # the manifest of all shards, if they lie in one folder

    def require(self) -> "Completeness":
        """Raises UserError when shards are missing; returns itself."""
        if self.missing:
            how = "restore what is missing, or name the shards to use one by one, as in 'shard-{00000..00007}.tar'"
            raise UserError(f"{'; '.join(self.missing)}: {how}")
        return self


def compare_with_manifests(patterns: Sequence[str], names: Sequence[str], remote: Remote) -> Completeness:
    """Compares the shards `names` with the manifests in their folders.

    `patterns`: of these shards, as given by the user: paths, globs, brace lists, folders, URLs.
    """
    named, globs = _split(patterns)
    folders = _by_folder(names, globs)
    missing, notes, beside = [], [], []
    with ThreadPoolExecutor(MANIFEST_THREADS) as pool:
        manifests = list(pool.map(lambda folder: _manifest(folder, remote), folders))
    for (folder, found), manifest in zip(folders.items(), manifests, strict=True):
        beside += [manifest] if found else []
        if isinstance(manifest, UserError):
            notes.append(f"{manifest}; so missing shards and the names of classes are not known")
        elif manifest is not None:
            absent = _absent(folder, found, manifest, _wanted(folder, found, named, globs))
            if absent:
                missing.append(f"{within_folder(folder, NAME)} names {listed(absent, NAMES_LISTED)}, not found there")
            elif found:
                notes += _differences(folder, found, manifest)
    only = beside[0] if len(beside) == 1 and isinstance(beside[0], Manifest) else None
    return Completeness(tuple(missing), tuple(notes), only)


def _manifest(folder: str, remote: Remote) -> Manifest | UserError | None:
    try:
        return manifest_beside(folder, remote)
    except UserError as error:
        return error


def _by_folder(names: Iterable[str], globs: Iterable[str]) -> dict[str, set[str]]:
    """The shards found in each folder; also folders with a manifest in which a glob finds none."""
    folders: dict[str, set[str]] = {}
    for name in names:
        if not name.startswith("pipe:"):
            folders.setdefault(folder_of(name), set()).add(base_name(name))
    for pattern in globs:
        manifests = [] if is_remote(pattern) else glob(str(Path(pattern).parent / NAME), recursive=True)  # noqa: PTH207
        folders |= {folder: set() for folder in map(folder_of, manifests) if folder not in folders}
    return folders


def _split(patterns: Iterable[str]) -> tuple[set[str], list[str]]:
    """The shards that patterns name one by one, and the globs among them."""
    named, globs = set[str](), list[str]()
    for pattern in map(Location, patterns):
        literal = exists(pattern) or pattern.startswith("pipe:")
        for piece in [pattern.reveal()] if literal else braceexpand(pattern.reveal()):
            path = piece if literal or is_remote(piece) else str(Path(piece).expanduser())
            if not exists(path) and any(sign in path for sign in "*?["):
                globs.append(path)
            else:
                named.add(_normal(path))
    return named, globs


def _wanted(folder: str, found: set[str], named: set[str], globs: Iterable[str]) -> list[str]:
    """Patterns of the file names that are wanted from a folder in which the shards `found` were found.

    A shard that is named asks for no other; a folder asks for all in it, and so do a glob and a glob of folders.
    """
    bases = [base_name(glob) for glob in globs]
    if not found:
        return bases
    others = [name for name in found if _normal(within_folder(folder, name)) not in named]
    wanted = [base for base in bases if any(fnmatchcase(name, base) for name in others)]
    in_folders = any(not any(fnmatchcase(name, base) for base in bases) for name in others)
    return wanted + ["*"] * in_folders


def _normal(name: str) -> str:
    return Location(name) if is_remote(name) else os.path.normpath(name)


def _absent(folder: str, found: set[str], manifest: Manifest, wanted: Iterable[str]) -> list[str]:
    """Wanted shards that the manifest names, and that were not found or do not exist."""
    absent = [entry.name for entry in manifest.shards if entry.name not in found]
    absent = [name for name in absent if any(fnmatchcase(name, base) for base in wanted)]
    return absent if is_remote(folder) else [name for name in absent if not Path(folder, name).exists()]


def _differences(folder: str, found: set[str], manifest: Manifest) -> list[str]:
    known, beside = {entry.name for entry in manifest.shards}, within_folder(folder, NAME)
    lines = []
    if used := len(found & known) if found & known != known else 0:
        lines.append(f"{used:,} of the {len(known):,} shards that {beside} names {'is' if used == 1 else 'are'} used")
    # opening refuses shards that were named and do not exist
    if extra := [name for name in sorted(found - known) if is_remote(folder) or Path(folder, name).exists()]:
        names = listed(extra, NAMES_LISTED)
        lines.append(f"{beside} does not name {names}: of another set, or left from an earlier one?")
    return lines
