"""Folders of pictures as people have them, and all that a folder holds afterwards."""

from pathlib import Path

from support.shards import encoded

SUFFIXES = ("png", "jpg", "webp")
CLASSES = ("cat", "dog", "newt")


def make_pictures(folder: Path, count: int = 18) -> Path:
    """Pictures of three formats, sizes and classes: CLASS/NUMBER.SUFFIX."""
    for number in range(count):
        path = folder / CLASSES[number % 3] / f"{number:03}.{SUFFIXES[number // 3 % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number, path.suffix[1:], size=16 + 4 * (number % 3)))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
