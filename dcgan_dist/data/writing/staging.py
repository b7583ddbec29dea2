"""The folder inside OUT in which shards are written until all are complete, so that a killed command can go on.

    OUT/.partial/PLAN/plan.json          what is being written; PLAN is the fingerprint of the images and the options
    OUT/.partial/PLAN/0002/0002034.tar   shard 2,034, and its receipt once it is complete
    OUT/.partial/PLAN/0002/0002034.receipt
    OUT/.partial/PLAN/digests/           checksums of the source's files, for --duplicates drop
    OUT/.partial/PLAN/publishing.json    from here on shards move to OUT: the numbers of those that hold images, and the
                                         files of an earlier set that go before
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dcgan_dist.data.shards.manifest import numbered_shard_names
from dcgan_dist.data.system.locks import is_at, lock
from dcgan_dist.data.system.storage import write_atomically
from dcgan_dist.data.writing.receipt import Receipt, matches, read_receipt, receipt_path
from dcgan_dist.errors import UserError

PARTIAL = ".partial"
COPIES = "copies"
PLAN, PUBLISHING = "plan.json", "publishing.json"
LOCK = "lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # what network disks without locks answer
SHARDS_TOGETHER = 1_000
OWN = re.compile(r"\.?[0-9a-f]{32}")  # plans, and copies of a source; all else in OUT/.partial is somebody else's
VERSION = 2  # of all these files, and of what a plan makes of the same images


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is being written."""

    images: int
    """Images that are to be packed."""
    shards: int
    left_out: dict[str, int]
    """Other files in the source, by their endings."""
    dropped: int
    """Duplicates that are not packed."""
    classes: Mapping[int, str]
    """Names of labels; empty: they have none."""
    options: dict[str, Any]
    """Those that decide what the shards hold."""


class Staging:
    """The files of one plan."""

    def __init__(self, out: Path, folder: Path) -> None:
        self.out = out
        self.folder = folder
        self.old = False
        """Whether version 1 has written the plan that was read: what is missing of it cannot be added."""

    def shard(self, number: int) -> Path:
        """Where a shard is written. Folders stay small: writing a shard looks through the one that it is in."""
        return self.folder / f"{number // SHARDS_TOGETHER:04}" / f"{number:07}.tar"

    @property
    def digests(self) -> Path:
        """The folder of checksums."""
        return self.folder / "digests"

    @property
    def dropped(self) -> Path:
        """The list of the duplicates that are not packed."""
        return self.folder / "dropped.txt"

    def write_plan(self, plan: Plan) -> None:
        """Keeps the plan for `merge`."""
        write_atomically(self.folder / PLAN, json.dumps(asdict(plan), indent=1).encode())

    def read_plan(self) -> Plan:
        """The plan that write_plan has kept. Raises UserError when it is damaged."""
        try:
            tree = json.loads((self.folder / PLAN).read_bytes())
            classes = tree["classes"]  # a list: of version 0.1
            named = enumerate(classes) if isinstance(classes, list) else classes.items()
            others = tree["left_out"]
            self.old = isinstance(others, int)
            counted = {"left_out": {"others": others} if others else {}} if self.old else {}
            return Plan(**tree | counted | {"classes": {int(label): str(name) for label, name in named}})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{self.folder / PLAN}: is damaged; run the parts again") from error

    def write_parts(self, count: int) -> None:
        """Keeps the number of parts, for messages."""
        write_atomically(self.folder / "parts", str(count).encode())

    def read_parts(self) -> int:
        """The number of parts; 1 when it is not known."""
        try:
            return int((self.folder / "parts").read_text())
        except (OSError, ValueError):
            return 1

    def begin_publishing(self, shards: list[int], earlier: list[str]) -> None:
        """Says which shards, in their order, take which names in OUT, and which files of an earlier set go first."""
        for known in ("_publishing", "published"):
            vars(self).pop(known, None)
        write_atomically(self.folder / PUBLISHING, json.dumps({"shards": shards, "earlier": earlier}).encode())

    @cached_property
    def _publishing(self) -> dict[str, Any]:
        try:
            tree = json.loads((self.folder / PUBLISHING).read_bytes())
        except (OSError, ValueError):
            return {"shards": [], "earlier": []}
        return {"shards": tree, "earlier": None} if isinstance(tree, list) else tree  # a list: of version 1

    @cached_property
    def published(self) -> dict[int, Path]:
        """Number and place of the shards that may have moved to OUT already; none before that began."""
        numbers: list[int] = self._publishing["shards"]
        return {
            number: self.out / name for number, name in zip(numbers, numbered_shard_names(len(numbers)), strict=True)
        }

    @property
    def earlier(self) -> list[str] | None:
        """The files in OUT that are to go before the shards move there; None: version 1 has not written them down."""
        return self._publishing["earlier"]

    def receipt(self, number: int) -> Receipt | None:
        """The receipt of a shard that is complete, here or in OUT; None for any other."""
        shard = self.shard(number)
        receipt = read_receipt(receipt_path(shard))
        if number in self.published and not shard.exists():
            shard = self.published[number]
        return receipt if receipt is not None and matches(receipt, shard) else None

    def is_worth_keeping(self) -> bool:
        """Whether there is anything that need not be done again."""
        return any(self.folder.glob("*/*.receipt")) or any(self.digests.glob("*.bin"))

    def remove(self) -> None:
        """Removes the plan's files; the plan first, without which nothing takes the rest for unfinished shards."""
        (self.folder / PLAN).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def locked(out: Path, shared: bool) -> Iterator[None]:
    """Keeps other commands out of OUT's unfinished shards, except others that share them.

    The system frees the lock of a killed process. Afterwards the folder is gone, unless something unfinished is in it,
    and so is OUT if it was made for nothing.
    Raises UserError when another command has the lock.
    """
    partial, problem = out / PARTIAL, "another command is writing shards there; wait for its end, or stop it"
    made = not out.exists()
    with _locked(partial, shared, f"{out}: {problem}") as held:
        try:
            yield
        finally:
            alone = _is_alone(partial / LOCK, held)
            if alone and not any(path.name == COPIES or OWN.match(path.name) for path in partial.iterdir()):
                (partial / LOCK).unlink()
                with suppress(OSError):  # there are other files in it
                    partial.rmdir()
                    if made:
                        out.rmdir()


def _is_alone(path: Path, held: int) -> bool:
    """Whether nobody else has the lock, which was shared until now, or will get it."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # see NO_LOCKS
        pass
    return is_at(path, held)


@contextmanager
def _locked(folder: Path, shared: bool, problem: str) -> Iterator[int]:
    """Holds the lock in a folder, which is made. Raises UserError with the problem when another has the lock."""
    descriptor = None
    while descriptor is None:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # whoever had the lock has removed the folder since
            descriptor = _lock(folder / LOCK, shared, problem)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(path: Path, shared: bool, problem: str) -> int:
    try:
        return lock(path, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(problem) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return os.open(path, os.O_RDONLY)


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
    with _locked(staging.folder, shared=True, problem=f"{out}: another command removes what is there; try again"):
        for path in (out / PARTIAL).iterdir():
            if path.name != identity and OWN.fullmatch(path.name):
                _remove_other(out, path)
        if others:
            say(f"{out}: holds unfinished shards of other images, options or versions; they are removed")
        yield staging


def remove_copies(out: Path) -> None:
    """Removes the copies of what a source could not be read at random from, and their folder if it holds no more."""
    with suppress(OSError):
        for path in (out / PARTIAL / COPIES).iterdir():
            if OWN.match(path.name):
                path.unlink()
        (out / PARTIAL / COPIES).rmdir()


def _remove_other(out: Path, folder: Path) -> None:
    """Removes the folder of another plan. Raises UserError while a part of it is being written."""
    try:
        what = "shards of other images or options are being written there"
        held = _lock(folder / LOCK, shared=False, problem=f"{out}: {what}; stop that command, or choose another folder")
    except FileNotFoundError:  # another part has removed it
        return
    shutil.rmtree(folder, ignore_errors=True)
    os.close(held)
