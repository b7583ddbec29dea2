"""Are all shards there? A glob finds what is there; a manifest.json beside the shards says what should be."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from braceexpand import braceexpand

from dcgan_dist.data.manifest import NAME, Manifest, folder_of, manifest_beside, within_folder
from dcgan_dist.data.remote.client import Remote, base_name, is_remote
from dcgan_dist.errors import UserError

LISTED = 5  # names in one message


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
    wanted = [_normal(glob) for glob in _globs(patterns)]
    missing, notes, manifest = [], [], None
    for folder, found in folders.items():
        try:
            manifest = manifest_beside(folder, remote)
        except UserError as error:
            notes.append(f"{error}; so whether all shards are there, and the names of classes, are not known")
            continue
        if manifest is not None:
            absent = [name for name in _absent(folder, found, manifest) if _asked_for(folder, name, wanted)]
            missing += [f"{_beside(folder)} names {_listed(absent)}, not found there"] if absent else []
            notes += _others(folder, found, manifest) if not absent else []
    return Completeness(tuple(missing), tuple(notes), manifest if len(folders) == 1 else None)


def _globs(patterns: Iterable[str]) -> list[str]:
    """The patterns that ask for whatever is there."""
    found = []
    for pattern in patterns:
        if pattern.startswith("pipe:") or (not is_remote(pattern) and Path(pattern).is_file()):
            continue
        if not is_remote(pattern) and Path(pattern).is_dir():
            found.append(f"{pattern}/*.tar")
        else:
            found += [name for name in braceexpand(pattern) if any(sign in name for sign in "*?[")]
    return found


def _normal(name: str) -> str:
    return name if is_remote(name) else os.path.normpath(name)


def _asked_for(folder: str, name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(_normal(within_folder(folder, name)), glob) for glob in globs)


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
