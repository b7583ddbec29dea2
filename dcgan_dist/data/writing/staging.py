"""The folder inside OUT in which shards are written until all are complete, so that a killed command can continue.

    OUT/.partial/PLAN/plan.json          what is being written; PLAN is the fingerprint of the images and the options
    OUT/.partial/PLAN/0002/0002034.tar   shard 2,034, and its receipt once it is complete
    OUT/.partial/PLAN/0002/0002034.receipt
    OUT/.partial/PLAN/digests/           checksums of the source's files, for --duplicates drop
    OUT/.partial/PLAN/dropped.txt        the list of the duplicates that are not packed
    OUT/.partial/PLAN/publishing.json    from here on shards move to OUT: the numbers of those that hold images, and the
                                         files of an earlier set that are removed before
    OUT/.partial/copies/                 staged copies of a source that cannot be read at random
    OUT/.partial/lock                    held by the command that is writing, or shared by all its parts
    OUT/.partial/PLAN/lock               shared by the parts that are writing this plan

Another plan has another folder, so that old and new never mix, whichever of several computers begins first.
"""

import errno
import fcntl
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dcgan_dist.data.shards.index import read_index
from dcgan_dist.data.shards.manifest import numbered_shard_names
from dcgan_dist.data.system.locks import lock
from dcgan_dist.data.system.storage import write_atomically
from dcgan_dist.errors import UserError

PARTIAL, COPIES, LOCK = ".partial", "copies", "lock"
PLAN, PUBLISHING, RECEIPT = "plan.json", "publishing.json", ".receipt"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # what network disks without locks answer
SHARDS_TOGETHER = 1_000
OWN = re.compile(r"\.?[0-9a-f]{32}")  # plans, and copies of a source; all else in OUT/.partial is the user's
VERSION = 3  # of all these files, and of what a plan makes of the same images


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is being written."""

    images: int  # images that are to be packed
    shards: int
    parts: int  # number of computers that share the work, for messages
    left_out: dict[str, int]  # other files in the source, by their endings
    dropped: int  # duplicates that are not packed
    classes: Mapping[int, str]  # names of labels; empty: they have none
    options: dict[str, Any]  # those that decide what the shards hold


@dataclass(kw_only=True)
class Receipt:
    """What a shard holds, in a JSON file beside it that is written after it: a shard with a receipt is complete.

    Numbers of images are positions in the source.
    """

    bytes: int = 0  # size of the shard's file
    xxh128: str = ""  # of the shard's file, hexadecimal
    fingerprint: str = ""  # that of the shard's index, 16 hexadecimal digits
    samples: int = 0
    several: int = 0  # images made of files that hold several pictures, of which the first is used
    labels: Counter[str] = field(default_factory=Counter)  # images of each label; those without one do not count
    stored_sizes: Counter[str] = field(default_factory=Counter)  # stored images of each 'WIDTHxHEIGHT'
    source_sizes: Counter[str] = field(default_factory=Counter)  # the same for the images that they were made of
    pixels: list[list[int]] = field(default_factory=list)  # the `counts` of PixelCounts of the stored images
    bad: list[tuple[int, str]] = field(default_factory=list)  # number and message of each unreadable, left out image
    files: list[tuple[int, str, str]] = field(default_factory=list)  # number, xxh3-128, place; to report duplicates


def read_receipt(shard: Path) -> Receipt | None:
    """The receipt beside a shard; None when there is none, or it is damaged."""
    try:
        tree = json.loads(shard.with_suffix(RECEIPT).read_bytes())
        counters = {name: Counter(tree[name]) for name in ("labels", "stored_sizes", "source_sizes")}
        return Receipt(**tree | counters)
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Staging:
    """The files of one plan."""

    def __init__(self, out: Path, folder: Path) -> None:
        self.out, self.folder = out, folder
        self.digests = folder / "digests"
        self.dropped = folder / "dropped.txt"
        self._read_publishing()

    def shard(self, number: int) -> Path:
        """Where a shard is written. Folders stay small: writing a shard looks through the one that it is in."""
        return self.folder / f"{number // SHARDS_TOGETHER:04}" / f"{number:07}.tar"

    def write_plan(self, plan: Plan) -> None:
        """Keeps the plan for `merge_shards`."""
        write_atomically(self.folder / PLAN, json.dumps(asdict(plan), indent=1).encode())

    def read_plan(self) -> Plan:
        """The plan that write_plan has kept. Raises UserError when it is damaged."""
        try:
            tree = json.loads((self.folder / PLAN).read_bytes())
            return Plan(**tree | {"classes": {int(label): name for label, name in tree["classes"].items()}})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{self.folder / PLAN}: is damaged; run the parts again") from error

    def begin_publishing(self, shards: list[int], earlier: list[str]) -> None:
        """Records which shards, in their order, take which names in OUT, and which files of an earlier set go first."""
        write_atomically(self.folder / PUBLISHING, json.dumps({"shards": shards, "earlier": earlier}).encode())
        self._read_publishing()

    def _read_publishing(self) -> None:
        tree: dict[str, Any] = {"shards": [], "earlier": []}
        with suppress(OSError, ValueError):
            tree = json.loads((self.folder / PUBLISHING).read_bytes())
        names = numbered_shard_names(len(tree["shards"]))
        self.published: dict[int, Path] = dict(zip(tree["shards"], (self.out / name for name in names), strict=True))
        """Number and place of the shards that may have moved to OUT already; none before that began."""
        self.earlier: list[str] = tree["earlier"]  # the files in OUT that are removed before the shards move there

    def receipt(self, number: int) -> Receipt | None:
        """The receipt of a shard that is complete, here or in OUT; None for any other."""
        shard = self.shard(number)
        receipt = read_receipt(shard)
        shard = shard if shard.exists() else self.published.get(number, shard)
        with suppress(OSError, UserError):
            size, index = shard.stat().st_size, read_index(shard)
            if receipt is not None and index is not None:
                wanted = (receipt.bytes, receipt.samples, receipt.fingerprint)
                return receipt if (size, len(index), f"{index.fingerprint:016x}") == wanted else None
        return None

    def is_worth_keeping(self) -> bool:
        """Whether there is anything that need not be done again."""
        return any(self.folder.glob("*/*.receipt")) or any(self.digests.glob("*.bin"))

    def remove(self) -> None:
        """Removes the plan's files; the plan first, without which nothing takes the rest for unfinished shards."""
        (self.folder / PLAN).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def locked_out(out: Path, shared: bool) -> Iterator[None]:
    """Keeps other commands out of OUT's unfinished shards, except others that share them.

    The system frees the lock of a killed process. Afterwards the folder is gone, unless something unfinished is in it,
    and so is OUT if it was made for nothing. Raises UserError when another command has the lock.
    """
    partial, problem = out / PARTIAL, "another command is writing shards there; wait for its end, or stop it"
    made = not out.exists()
    try:
        with _locked(partial, shared, f"{out}: {problem}"):
            yield
    finally:
        with suppress(UserError), _locked(partial, shared=False, problem="others share it, or have it by now"):
            if not any(path.name == COPIES or OWN.match(path.name) for path in partial.iterdir()):
                (partial / LOCK).unlink()
                with suppress(OSError):  # there are other files in it
                    partial.rmdir()
                    if made:
                        out.rmdir()


@contextmanager
def _locked(folder: Path, shared: bool, problem: str) -> Iterator[None]:
    """Holds the lock in a folder, which is made. Raises UserError with the problem when another has the lock."""
    descriptor = None
    while descriptor is None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = lock(folder / LOCK, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except FileNotFoundError:  # the process that had the lock has removed the folder since
            continue
        except BlockingIOError as error:
            raise UserError(problem) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            descriptor = os.open(folder / LOCK, os.O_RDONLY)
    with os.fdopen(descriptor, "rb"):  # closes it, which releases the lock
        yield


def stagings(out: Path) -> list[Staging]:
    """Of all plans that are unfinished in OUT."""
    return [Staging(out, path.parent) for path in sorted((out / PARTIAL).glob(f"*/{PLAN}"))]


@contextmanager
def open_staging(out: Path, identity: str, say: Callable[[str], None]) -> Iterator[Staging]:
    """The folder of the plan, which no other plan's parts remove meanwhile.

    What other plans have left is removed, and `say` reports it. Raises UserError when a part of another plan is being
    written, or when another plan's shards are on their way to OUT: their old ones may be gone, and with them the
    images, if they were the source.
    """
    staging = Staging(out, out / PARTIAL / identity)
    others = [other for other in stagings(out) if other.folder != staging.folder]
    if any(other.published for other in others):
        problem = "another set of shards was being completed there"
        raise UserError(f"{out}: {problem}; complete it by dcgan-dist shard --merge {out} --overwrite")
    busy = "shards of other images or options are being written there; stop that command, or choose another folder"
    with _locked(staging.folder, shared=True, problem=f"{out}: another command removes what is there; try again"):
        for path in (out / PARTIAL).iterdir():
            if path.name != identity and OWN.fullmatch(path.name):
                with _locked(path, shared=False, problem=f"{out}: {busy}"):
                    shutil.rmtree(path, ignore_errors=True)
        if others:
            say(f"{out}: holds unfinished shards of other images, options or versions; they are removed")
        yield staging


def remove_copies(out: Path) -> None:
    """Removes the staged copies of a source, and their folder if it holds nothing else."""
    with suppress(OSError):
        for path in (out / PARTIAL / COPIES).iterdir():
            if OWN.match(path.name):
                path.unlink()
        (out / PARTIAL / COPIES).rmdir()
