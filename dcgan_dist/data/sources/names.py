"""The files and URLs that an argument names, and what kind of file each is."""

from pathlib import Path

from dcgan_dist.data.remote.client import Remote, base_name, is_remote
from dcgan_dist.data.remote.unpack import TAR_ENDINGS
from dcgan_dist.data.shards.patterns import exists, spell_out
from dcgan_dist.data.system.storage import NO_FILE
from dcgan_dist.errors import UsageError
from dcgan_dist.location import Location

ENDINGS = {
    **dict.fromkeys(TAR_ENDINGS, "tar"),
    ".parquet": "Parquet",
    ".zip": "zip",
    ".csv": "list",
    ".tsv": "list",
    ".jsonl": "list",
}


def ending(name: str) -> str:
    """Which of ENDINGS a path or URL has; '' for none."""
    return next((known for known in ENDINGS if base_name(name).lower().endswith(known)), "")


def stem(name: str) -> str:
    """The file's name without ending."""
    last = base_name(name)
    return last[: len(last) - len(ending(name))]


def expand(text: str) -> list[str]:
    """The files that an argument names, or one folder.

    Raises UsageError for what does not exist, and for a file that is named twice.
    """
    found = spell_out(text, Remote())
    for name in found:
        if not (is_remote(name) or exists(name)):
            raise UsageError(f"{name}: no such file or folder; {HINT}")
        if not is_remote(name) and not (Path(name).is_file() or Path(name).is_dir()):
            raise UsageError(f"{name}: {NO_FILE}; {HINT}")
    if len(set(found)) < len(found):
        raise UsageError(f"{Location(text)}: names a file twice")
    return found


HINT = (
    "give a folder of images, a .zip of one, or torchvision:NAME; or tar shards (.tar, .tar.gz, .tar.bz2, .tar.xz, "
    ".tar.zst) or .parquet files, here or by URL; or a .csv, .tsv or .jsonl list of paths"
)
