"""What kind of file a path or URL is of, by its ending."""

from dcgan_dist.data.remote.client import base_name
from dcgan_dist.data.remote.unpack import TAR_ENDINGS

ENDINGS = {
    **dict.fromkeys(TAR_ENDINGS, "tar"),
    **dict.fromkeys((".csv", ".tsv", ".jsonl"), "list"),
    ".parquet": "Parquet",
    ".zip": "zip",
}


def ending(name: str) -> str:
    """Which of ENDINGS a path or URL has; '' for none."""
    return next((known for known in ENDINGS if base_name(name).lower().endswith(known)), "")


def stem(name: str) -> str:
    """The file's name without ending."""
    return base_name(name)[: -len(ending(name)) or None]
