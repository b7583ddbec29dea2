"""`manifest.json`: the contents of a set of shards, written beside them as the last file.

    version          of this format
    samples, bytes   of all shards
    fingerprint      of the corpus that the shards are in the order of their names
    shards           of each: name, bytes, samples, xxh128 (of the file), fingerprint (of its index)
    size, channels, store            how images are stored; size is null for kept files
    mean, std                        of each channel over all stored pixels, 0 to 1; std is the population's
    stored_sizes, source_sizes       number of images of each "WIDTHxHEIGHT"; "other": of all but the commonest sizes
    classes, unlabelled              label, name (or null) and samples of each class; images without a label
    duplicates       images that equal an earlier one; null: not searched
    bad              unreadable images that were left out
    options          of the packing

Two small files beside it give the length of the set to other programs: sizes.json to open_clip, _info.json to timm.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcgan_dist.data.remote.client import Remote, base_name, is_remote
from dcgan_dist.data.shards.index import corpus_fingerprint
from dcgan_dist.errors import UserError, os_error_as_user_error
from dcgan_dist.location import Location

NAME = "manifest.json"
BAD, DUPLICATES, SIZES, INFO = "bad.txt", "duplicates.txt", "sizes.json", "_info.json"
SIDE_FILES = (BAD, DUPLICATES, SIZES, INFO, NAME)  # in the order in which they are written
MANIFEST_VERSION = 1
SIZES_LISTED = 1_000  # different image sizes, to limit the size of the file


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard."""

    name: str
    bytes: int
    samples: int
    xxh128: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class ClassEntry:
    """One class of images."""

    label: int
    name: str | None
    samples: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The complete set; see the module for the fields."""

    version: int = MANIFEST_VERSION
    samples: int
    bytes: int
    fingerprint: str
    size: int | None
    channels: int
    store: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stored_sizes: dict[str, int]
    source_sizes: dict[str, int]
    classes: tuple[ClassEntry, ...]
    unlabelled: int
    duplicates: int | None
    bad: int
    options: dict[str, Any]
    shards: tuple[ShardEntry, ...]

    def covers(self, names: Iterable[str]) -> bool:
        """Whether it names all these shards."""
        return {base_name(name) for name in names} <= {shard.name for shard in self.shards}


def names_in(manifest: Manifest | None, shards: Sequence[str]) -> dict[int, str]:
    """The class names in the manifest of these shards; none if it is not theirs."""
    if manifest is None or not manifest.covers(shards):
        return {}
    return {entry.label: entry.name for entry in manifest.classes if entry.name is not None}


def manifest_json(manifest: Manifest) -> bytes:
    """The file."""
    return _json(asdict(manifest))


def set_files(manifest: Manifest) -> dict[str, bytes]:
    """The files with the samples of every shard, by name: open_clip's, and timm's with all shards as split `train`."""
    lengths = {shard.name: shard.samples for shard in manifest.shards}
    split = {"name": "train", "filenames": list(lengths), "shard_lengths": list(lengths.values())}
    info = {"splits": {"train": split | {"num_samples": manifest.samples}}}
    return {SIZES: _json(lengths), INFO: _json(info)}


def _json(tree: Any) -> bytes:
    return (json.dumps(tree, indent=1) + "\n").encode()


def numbered_shard_names(count: int) -> list[str]:
    """shard-00000.tar and so on, with as many digits as sort by name needs."""
    width = max(5, len(str(count - 1)))
    return [f"shard-{number:0{width}}.tar" for number in range(count)]


def commonest(sizes: Counter[str]) -> dict[str, int]:
    """The commonest image sizes, and all others together."""
    ranked = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ranked[SIZES_LISTED:])
    return dict(ranked[:SIZES_LISTED]) | ({"other": rest} if rest else {})


def load_manifest(path: Path) -> Manifest:
    """The manifest in a file. Raises UserError when it cannot be read; see parse_manifest."""
    with os_error_as_user_error(path, "cannot be read"):
        return parse_manifest(str(path), path.read_bytes())


def parse_manifest(name: str, data: bytes) -> Manifest:
    """The manifest in the content of a file; `name`: its path or URL, for messages.

    Raises UserError when it is no manifest, of another version, or contradicts itself.
    """
    try:
        tree = json.loads(data)
        version = tree["version"]
        if version != MANIFEST_VERSION:
            problem = f"has version {version!r}, this program reads {MANIFEST_VERSION}"
            raise UserError(f"{name}: {problem}; write the shards again")
        lists = {
            "mean": tuple(map(float, tree["mean"])),
            "std": tuple(map(float, tree["std"])),
            "classes": tuple(ClassEntry(**entry) for entry in tree["classes"]),
            "shards": tuple(ShardEntry(**entry) for entry in tree["shards"]),
        }
        manifest = Manifest(**tree | lists)
        problem = _contradiction(manifest)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise UserError(f"{name}: is not a manifest of shards ({problem}); write the shards again") from error
    if problem:
        raise UserError(f"{name}: contradicts itself ({problem}); write the shards again")
    return manifest


def _contradiction(manifest: Manifest) -> str | None:
    shards, sizes = manifest.shards, manifest.stored_sizes.values()
    names = [shard.name for shard in shards]
    labelled = sum(entry.samples for entry in manifest.classes)
    checks = {
        "samples of the shards": sum(shard.samples for shard in shards) == manifest.samples,
        "bytes of the shards": sum(shard.bytes for shard in shards) == manifest.bytes,
        "order of the names": names == sorted(set(names)),
        "a shard's name is a path": not any("/" in name or "\\" in name for name in names),
        "samples of the classes": labelled + manifest.unlabelled == manifest.samples,
        "fingerprint": corpus_fingerprint(int(shard.fingerprint, 16) for shard in shards) == manifest.fingerprint,
        "number of channels": len(manifest.mean) == len(manifest.std) == manifest.channels in (1, 3),
        "stored_sizes": all(type(count) is int for count in sizes) and sum(sizes) == manifest.samples,
        "labels of the classes": all(type(entry.label) is int for entry in manifest.classes),
        "names of the classes": all(isinstance(entry.name, str | None) for entry in manifest.classes),
    }
    return next((what for what, right in checks.items() if not right), None)


def read_manifest(name: str, remote: Remote) -> Manifest:
    """The manifest at a path or URL. Raises UserError when it is missing, or damaged."""
    if not is_remote(name):
        return load_manifest(Path(name))
    return parse_manifest(Location(name), remote.read(name, 0, remote.stat(name).size))


def manifest_beside(folder: str, remote: Remote) -> Manifest | None:
    """The manifest in a local or remote folder; None where there is none."""
    path = within_folder(folder, NAME)
    if not is_remote(folder):
        return load_manifest(Path(path)) if os.path.lexists(path) else None  # a broken link is reported
    try:
        stat = remote.stat(path)
    except UserError:  # opening the shards reports problems with the server
        return None
    return parse_manifest(Location(path), remote.read(path, 0, stat.size))


def folder_of(name: str) -> str:
    """The folder of a path or URL."""
    if not is_remote(name):
        return str(Path(name).parent)
    return Location(Location(name).reveal().partition("?")[0].rpartition("/")[0])


def within_folder(folder: str, name: str) -> str:
    """Path or URL of a file in a folder."""
    return Location(f"{Location(folder).reveal()}/{name}") if is_remote(folder) else str(Path(folder) / name)
