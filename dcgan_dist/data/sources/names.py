"""The files and URLs that an argument names, and what kind of file each is."""

from glob import glob
from pathlib import Path

from braceexpand import braceexpand

from dcgan_dist.data.remote.client import Remote, is_remote, shown
from dcgan_dist.data.sources.base import ENCODING
from dcgan_dist.errors import UsageError

ENDINGS = {
    ".tar": "tar",
    ".tar.gz": "tar",
    ".tgz": "tar",
    ".tar.zst": "tar",
    ".parquet": "Parquet",
    ".zip": "zip",
    ".csv": "list",
    ".tsv": "list",
    ".jsonl": "list",
}


def ending(name: str) -> str:
    """Which of ENDINGS a path or URL has; '' for none."""
    return next((known for known in ENDINGS if shown(name).lower().endswith(known)), "")


def stem(name: str) -> str:
    """The file's name without ending."""
    last = shown(name).rpartition("/")[2]
    return last[: len(last) - len(ending(name))]


def exists(name: str) -> bool:
    """Whether there is such a file or folder; a name that is too long for one is none."""
    try:
        return Path(name).exists()
    except OSError:
        return False


def expand(text: str) -> list[str]:
    """Spells out brace lists and globs: those of a glob by the bytes of their names.

    Raises UsageError for a pattern without files, and for a file that is named twice.
    """
    if exists(text):  # whatever signs it has in its name
        return [text]
    try:
        patterns = list(braceexpand(text))
    except ValueError as error:
        raise UsageError(f"{shown(text)}: the braces do not match") from error
    found = [name for pattern in patterns for name in _without_glob(pattern)]
    if len(set(found)) < len(found):
        raise UsageError(f"{shown(text)}: names a file twice")
    return found


def _without_glob(pattern: str) -> list[str]:
    if is_remote(pattern):
        return Remote().expand(pattern)
    if exists(pattern):
        return [pattern]
    if not any(sign in pattern for sign in "*?["):
        raise UsageError(f"{pattern}: no such file or folder; {HINT}")
    files = glob(pattern, recursive=True)  # noqa: PTH207, for Path.glob takes no absolute pattern
    if not files:
        raise UsageError(f"{pattern}: no such files (seen from {Path.cwd()})")
    return sorted(files, key=lambda name: name.encode(*ENCODING))


HINT = (
    "give a folder of images, a .zip of one, or torchvision:NAME; or tar shards (.tar, .tar.gz, .tar.zst) or .parquet "
    "files, here or by URL; or a .csv, .tsv or .jsonl list of paths"
)
