"""Where images come from before they are shards: folders, archives, tables, lists, or torchvision's data sets.

A source is a small value that is sent to other processes; each opens it for itself.
"""

from pathlib import Path
from urllib.parse import parse_qsl

from dcgan_dist.data.remote.client import Remote, is_remote
from dcgan_dist.data.shards.completeness import compare_with_manifests
from dcgan_dist.data.shards.foreign import DEFAULT
from dcgan_dist.data.shards.manifest import names_in
from dcgan_dist.data.shards.patterns import exists, spell_out
from dcgan_dist.data.shards.samples import MemberChoice
from dcgan_dist.data.sources.base import ENDINGS, Source, ending, is_hidden, is_image
from dcgan_dist.data.sources.folder import FolderSource, ZipSource, files_below
from dcgan_dist.data.sources.lists import ListSource
from dcgan_dist.data.sources.parquet import ParquetSource
from dcgan_dist.data.sources.tars import Tar, TarSource
from dcgan_dist.data.sources.torchvision import TORCHVISION, TorchvisionSource
from dcgan_dist.data.system.storage import NO_FILE
from dcgan_dist.errors import UsageError
from dcgan_dist.location import Location

HINT = (
    "give a folder of images, a .zip of one, or torchvision:NAME; or tar shards (.tar, .tar.gz, .tar.bz2, .tar.xz, "
    ".tar.zst) or .parquet files, here or by URL; or a .csv, .tsv or .jsonl list of paths"
)


def find_source(
    text: str,
    root: Path = Path("data"),
    download: bool = False,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    choice: MemberChoice = DEFAULT,
) -> Source:
    """The source that a command-line argument names.

    Args:
        text: a folder, a .zip, tar shards, Parquet files, a list, or torchvision:NAME; also a glob or brace list.
        root: the folder of torchvision's data sets.
        download: lets torchvision fetch its data set.
        image_column: the image column of Parquet files, or the path column of a list; None: found by its name.
        label_column: the same for labels.
        choice: how tars of other programs are read.

    Raises UsageError when there is no such thing, and for columns or keys of what has none.
    """
    text = Location(text)
    if text.startswith(TORCHVISION):
        name, _, options = text.removeprefix(TORCHVISION).partition("?")
        try:
            source = TorchvisionSource(name, tuple(parse_qsl(options, strict_parsing=True)), root, download)
        except ValueError as error:
            raise UsageError(f"{text}: {error}; write options as in torchvision:MNIST?train=false") from error
    elif download:
        raise UsageError(f"{text}: is not downloaded; --download is for {TORCHVISION}NAME")
    else:
        source = _files(text, image_column, label_column, choice)
    if choice.for_tars and not isinstance(source, TarSource):
        raise UsageError(f"{text}: has no members; --image_key, --label_key and --allow_cut are for tars")
    if (image_column or label_column) and not isinstance(source, ParquetSource | ListSource):
        raise UsageError(f"{text}: has no columns; --image_column and --label_column are for Parquet files and lists")
    return source


def _files(text: str, image_column: str | None, label_column: str | None, choice: MemberChoice) -> Source:
    if not text:  # an empty variable of a shell, not the folder in which it is
        raise UsageError(f"the source is empty; {HINT}")
    names = _in_folder(Path(text)) if exists(text) and Path(text).is_dir() else _expand(text)
    if not names:
        return FolderSource(Path(text))
    kinds: dict[str, str] = {}  # and the first name of each
    for name in names:
        kinds.setdefault(ENDINGS.get(ending(name), ""), name)
    if "" in kinds:
        problem = "neither a folder nor a .zip, nor a tar, Parquet file or list by its ending"
        raise UsageError(f"{kinds['']}: {problem}; {HINT}")
    if len(kinds) > 1:
        found = " and ".join(kinds.values())
        raise UsageError(f"{found} are of different kinds; give one kind at a time, as in '*.tar'")
    (kind,) = kinds
    if kind == "tar":
        beside = compare_with_manifests([text], names, Remote()).require()
        plain = [Path(name) if ending(name) == ".tar" and not is_remote(name) else None for name in names]
        return TarSource(tuple(map(Tar, names, plain)), names_in(beside.manifest, names), choice, beside.notes)
    if kind == "Parquet":
        return ParquetSource(tuple(names), image_column, label_column)
    if len(names) > 1 or is_remote(names[0]):
        raise UsageError(f"{text}: of {ending(names[0])} files, give one at a time, on a local disk")
    path = Path(names[0])
    return ZipSource(path) if kind == "zip" else ListSource(path.parent, path, image_column, label_column)


def _in_folder(folder: Path) -> list[str]:
    """The tars and Parquet files of a folder without images; nothing for a folder of images."""
    found = []
    for name in files_below(folder):
        if is_image(name):
            return []
        if ENDINGS.get(ending(name)) in ("tar", "Parquet") and not is_hidden(name):
            found.append(str(folder / name))
    return found


def _expand(text: str) -> list[str]:
    """The files that an argument names. Raises UsageError for one that does not exist, or is named twice."""
    found = spell_out(text, Remote())
    for name in found:
        there = is_remote(name) or exists(name)
        if not (there and (is_remote(name) or Path(name).is_file() or Path(name).is_dir())):
            raise UsageError(f"{name}: {NO_FILE if there else 'no such file or folder'}; {HINT}")
    if len(set(found)) < len(found):
        raise UsageError(f"{Location(text)}: names a file twice")
    return found
