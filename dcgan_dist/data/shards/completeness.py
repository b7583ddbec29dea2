"""Are all shards there? A glob finds what is there; a manifest.json beside the shards says what should be."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import glob
from itertools import chain
from pathlib import Path

from braceexpand import braceexpand

from dcgan_dist.data.remote.client import Remote, base_name, is_remote
from dcgan_dist.data.shards.manifest import NAME, Manifest, folder_of, manifest_beside, within_folder
from dcgan_dist.data.shards.patterns import exists
from dcgan_dist.errors import UserError
from dcgan_dist.location import Location

LISTED = 5  # names in one message
MANIFEST_THREADS = 16  # manifests


@dataclass(frozen=True)
class Completeness:
    """What the manifests beside some shards say of them; lines for people."""

    missing: tuple[str, ...] = ()
    """Shards that a manifest names, that a pattern asks for, and that are not there. One line for each folder."""
    notes: tuple[str, ...] = ()
    """Other differences: shards that were not asked for or that no manifest names, and manifests of no use."""
    manifest: Manifest | None = None
    """The one beside all of the shards, if they lie in one folder."""

    def require(self) -> "Completeness":
        """Raises UserError when shards are missing; returns itself."""
        if self.missing:
            raise UserError(
                f"{'; '.join(self.missing)}: restore what is missing, or name the shards that you mean one by one, as "
                f"in 'shard-{{00000..00007}}.tar'"
            )
        return self


def compare_with_manifests(patterns: Sequence[str], names: Sequence[str], remote: Remote) -> Completeness:
    """Compares shards with the manifests in their folders.

    Args:
        patterns: what the user asked for: paths, globs, brace lists, folders, URLs.
        names: the shards that they stand for.
        remote: how remote manifests are read.
    """
    folders: dict[str, set[str]] = {}
    for name in names:
        if not name.startswith("pipe:"):
            folders.setdefault(folder_of(name), set()).add(base_name(name))
    asked = _Asked(patterns)
    for folder in asked.folders_with_manifests():
        folders.setdefault(folder, set())
    missing, notes, beside = [], [], []
    with ThreadPoolExecutor(MANIFEST_THREADS) as pool:
        manifests = list(pool.map(lambda folder: _manifest(folder, remote), folders))
    for (folder, found), manifest in zip(folders.items(), manifests, strict=True):
        beside += [manifest] if found else []
        if isinstance(manifest, UserError):
            notes.append(f"{manifest}; so whether all shards are there, and the names of classes, are not known")
        elif manifest is not None:
            wanted = asked.bases(folder, found)
            absent = [name for name in _absent(folder, found, manifest) if any(fnmatchcase(name, b) for b in wanted)]
            missing += [f"{_beside(folder)} names {_listed(absent)}, not found there"] if absent else []
            notes += _others(folder, found, manifest) if found and not absent else []
    only = beside[0] if len(beside) == 1 and isinstance(beside[0], Manifest) else None
    return Completeness(tuple(missing), tuple(notes), only)


def _manifest(folder: str, remote: Remote) -> Manifest | UserError | None:
    try:
        return manifest_beside(folder, remote)
    except UserError as error:
        return error


class _Asked:
    """What patterns ask for: shards by their names, or whatever is in a folder and has a name of some form."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._named, self._globs = set[str](), list[str]()
        for pattern in map(Location, patterns):
            pieces = [pattern.reveal()] if exists(pattern) or pattern.startswith("pipe:") else _pieces(pattern)
            for piece in pieces:
                if not exists(piece) and any(sign in piece for sign in "*?["):
                    self._globs.append(piece)
                else:
                    self._named.add(_normal(piece))

    def bases(self, folder: str, found: set[str]) -> list[str]:
        """Forms of the file names that are wanted from a folder, which gave the shards `found`."""
        # named one by one, a shard asks for no other; a folder does, and so do a glob and a glob of folders
        others = [name for name in found if _normal(within_folder(folder, name)) not in self._named]
        bases = [base_name(glob) for glob in self._globs]
        if not found:
            return bases
        wanted = [base for base in bases if any(fnmatchcase(name, base) for name in others)]
        in_folders = any(not any(fnmatchcase(name, base) for base in bases) for name in others)
        return wanted + ["*"] * in_folders

    def folders_with_manifests(self) -> list[str]:
        """Local folders that a glob reaches into, also those without a shard that it finds."""
        local = [piece for piece in self._globs if not is_remote(piece)]
        found = (glob(str(Path(piece).parent / NAME), recursive=True) for piece in local)  # noqa: PTH207
        return [folder_of(name) for name in chain.from_iterable(found)]


def _pieces(pattern: Location) -> list[str]:
    names = braceexpand(pattern.reveal())
    return [name if is_remote(name) else str(Path(name).expanduser()) for name in names]


def _normal(name: str) -> str:
    return Location(name) if is_remote(name) else os.path.normpath(name)


def _absent(folder: str, found: set[str], manifest: Manifest) -> list[str]:
    """Shards that the manifest names and that are neither among those found nor, as far as can be seen, there."""
    rest = [entry.name for entry in manifest.shards if entry.name not in found]
    return rest if is_remote(folder) else [name for name in rest if not Path(folder, name).exists()]


def _others(folder: str, found: set[str], manifest: Manifest) -> list[str]:
    known = {entry.name for entry in manifest.shards}
    lines = []
    if used := len(found & known) if found & known != known else 0:
        lines.append(f"{used:,} of the {len(known):,} shards that {_beside(folder)} names are used")
    # those that were named one by one and are not there are refused when they are opened
    if extra := [name for name in sorted(found - known) if is_remote(folder) or Path(folder, name).exists()]:
        lines.append(f"{_beside(folder)} does not name {_listed(extra)}: of another set, or left from an earlier one?")
    return lines


def _beside(folder: str) -> str:
    return str(within_folder(folder, NAME))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
