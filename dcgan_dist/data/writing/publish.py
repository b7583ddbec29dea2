"""All shards of a plan take their places in OUT together; the manifest, written last, says that they are complete."""

import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcgan_dist.data import manifest as manifest_file
from dcgan_dist.data.index import corpus_fingerprint
from dcgan_dist.data.manifest import ClassEntry, Manifest, ShardEntry, commonest, shard_names
from dcgan_dist.data.statistics import PixelCounts
from dcgan_dist.data.storage import write_atomically
from dcgan_dist.data.writing.duplicates import Duplicates, describe, find_duplicates
from dcgan_dist.data.writing.receipt import Receipt, read_receipt, receipt_path
from dcgan_dist.data.writing.staging import PARTIAL, Plan, Staging
from dcgan_dist.errors import UsageError, UserError

BAD, DUPLICATES, SIZES, INFO = "bad.txt", "duplicates.txt", "sizes.json", "_info.json"
SIDE_FILES = (BAD, DUPLICATES, SIZES, INFO, manifest_file.NAME)  # in the order in which they appear
MISSING_LISTED = 5


@dataclass(kw_only=True)
class Totals:
    """What some shards hold together."""

    entries: dict[int, ShardEntry] = field(default_factory=dict)
    """The shards that hold images, by their numbers in the plan; not yet under their names."""
    pixels: PixelCounts
    labels: Counter[int] = field(default_factory=Counter)
    stored_sizes: Counter[str] = field(default_factory=Counter)
    source_sizes: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[int, str]] = field(default_factory=list)
    numbers: list[NDArray[np.int64]] = field(default_factory=list)
    digests: list[NDArray[np.uint64]] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """Images in all shards."""
        return sum(entry.samples for entry in self.entries.values())

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(entry.bytes for entry in self.entries.values())

    @property
    def skipped(self) -> tuple[str, ...]:
        """A message for each image that could not be read, in the source's order."""
        return tuple(message for _, message in sorted(self.bad))

    def add(self, number: int, receipt: Receipt) -> None:
        """Counts one shard."""
        self.bad += receipt.bad
        if not receipt.samples:  # a shard without any image has no use
            return
        self.entries[number] = ShardEntry(
            name="",
            bytes=receipt.bytes,
            samples=receipt.samples,
            xxh128=receipt.checksum,
            fingerprint=f"{receipt.fingerprint:016x}",
        )
        self.pixels.merge(receipt.pixels)
        self.labels.update(receipt.labels)
        self.stored_sizes.update(receipt.stored_sizes)
        self.source_sizes.update(receipt.source_sizes)
        self.numbers.append(receipt.numbers)
        self.digests.append(receipt.digests)

    def duplicates(self) -> Duplicates:
        """Images that repeat one with a smaller number."""
        return find_duplicates(np.concatenate(self.digests), np.concatenate(self.numbers))


def add_up(staging: Staging, plan: Plan, shards: Iterable[int]) -> Totals:
    """What some shards hold. Raises UserError when one of them is not complete."""
    totals, missing = Totals(pixels=PixelCounts(plan.options["channels"])), []
    for number in shards:
        receipt = staging.receipt(number)
        if receipt is None:
            missing.append(number)
        else:
            totals.add(number, receipt)
    if missing:
        raise UserError(_missing(staging, plan, missing))
    return totals


def _missing(staging: Staging, plan: Plan, missing: list[int]) -> str:
    parts = staging.read_parts()
    late = sorted({number % parts + 1 for number in missing})
    who = f"part {', '.join(f'{part}/{parts}' for part in late)}" if parts > 1 else "the command that writes them"
    listed = ", ".join(map(str, missing[:MISSING_LISTED])) + (", .." if len(missing) > MISSING_LISTED else "")
    have = f"{len(missing):,} of {plan.shards:,} shards are missing or damaged ({listed})"
    return f"{staging.out}: {have}; run {who} again, then merge"


def refuse_old(out: Path, overwrite: bool, ours: Iterable[Path]) -> None:
    """Raises UsageError when OUT holds shards that nobody has allowed to replace; `ours` may be there."""
    old = set(out.glob("*.tar")) - set(ours)
    if old and not overwrite:
        raise UsageError(f"{out}: holds {len(old)} .tar files already; choose another folder or add --overwrite")


def publish(staging: Staging, plan: Plan) -> tuple[Manifest, Totals]:
    """Moves all shards to OUT, replaces what was there, and removes the staging folder.

    Whenever it is interrupted, calling it again completes it. Raises UserError when a shard is missing, or when there
    is no image at all.
    """
    out, totals = staging.out, add_up(staging, plan, range(plan.shards))
    if not totals.entries:
        staging.remove()
        raise UserError(f"none of the {plan.images:,} images can be read; the first: {totals.skipped[0]}")
    manifest, files = _describe(staging, plan, totals)
    for name, data in files.items():
        write_atomically(staging.folder / name, data)
    staging.begin_publishing(list(totals.entries))
    for name in reversed(SIDE_FILES):  # the old manifest first: from now on OUT is incomplete, and says so
        (out / name).unlink(missing_ok=True)
    shards = {out / entry.name: staging.shard(n) for n, entry in zip(totals.entries, manifest.shards, strict=True)}
    for path, staged in shards.items():
        if staged.exists():  # otherwise an interrupted call has moved it
            staged.replace(path)
    for path in set(out.glob("*.tar")) - shards.keys():
        path.unlink()
    for name in SIDE_FILES:
        if name == manifest_file.NAME:
            _sync_folder(out)  # all else survives a power cut that comes after the manifest
        if name in files:
            (staging.folder / name).replace(out / name)
    _sync_folder(out)
    staging.remove()
    shutil.rmtree(out / PARTIAL, ignore_errors=True)
    return manifest, totals


def _sync_folder(folder: Path) -> None:
    """Sees to it that the names in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _describe(staging: Staging, plan: Plan, totals: Totals) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest, and all files that lie beside the shards."""
    names = shard_names(len(totals.entries))
    shards = tuple(replace(entry, name=name) for entry, name in zip(totals.entries.values(), names, strict=True))
    repeated, found = _duplicates(staging, plan, totals)
    manifest = Manifest(
        samples=totals.samples,
        bytes=totals.bytes,
        fingerprint=corpus_fingerprint(int(shard.fingerprint, 16) for shard in shards),
        size=plan.options["size"],
        channels=plan.options["channels"],
        store=plan.options["store"],
        mean=tuple(totals.pixels.mean()),
        std=tuple(totals.pixels.std()),
        stored_sizes=commonest(totals.stored_sizes),
        source_sizes=commonest(totals.source_sizes),
        classes=_classes(plan, totals),
        unlabelled=totals.samples - totals.labels.total(),
        duplicates=found,
        bad=len(totals.bad),
        options=plan.options,
        shards=shards,
    )
    lists = {BAD: totals.skipped, DUPLICATES: repeated}
    texts = {name: "".join(f"{line}\n" for line in lines) for name, lines in lists.items() if lines}
    return manifest, {name: text.encode(errors="backslashreplace") for name, text in texts.items()} | {
        SIZES: manifest_file.sizes_json(manifest),
        INFO: manifest_file.info_json(manifest),
        manifest_file.NAME: manifest_file.manifest_json(manifest),
    }


def _classes(plan: Plan, totals: Totals) -> tuple[ClassEntry, ...]:
    labels = sorted(plan.classes.keys() | totals.labels.keys())
    return tuple(ClassEntry(label=n, name=plan.classes.get(n), samples=totals.labels[n]) for n in labels)


def _duplicates(staging: Staging, plan: Plan, totals: Totals) -> tuple[list[str], int | None]:
    """The lines of duplicates.txt, and how many duplicates there are; None when nobody looked."""
    if plan.options["duplicates"] == "keep":
        return [], None
    if plan.options["duplicates"] == "drop":
        return staging.dropped.read_text(encoding="utf-8").splitlines(), plan.dropped
    found = totals.duplicates()
    return list(describe(found, _names(staging, totals, found).__getitem__)), len(found.later)


def _names(staging: Staging, totals: Totals, found: Duplicates) -> dict[int, str]:
    """Where the files lie that have equals, by their numbers, from the receipts of the shards that hold them."""
    wanted = np.union1d(found.later, found.first)
    names: dict[int, str] = {}
    if not len(wanted):
        return names
    for number, held in zip(totals.entries, totals.numbers, strict=True):
        nearest = np.searchsorted(wanted, held).clip(max=len(wanted) - 1)  # np.isin would go through all of `wanted`
        places = np.flatnonzero(wanted[nearest] == held)
        if len(places):
            receipt = read_receipt(receipt_path(staging.shard(number)))
            assert receipt is not None  # it was read a moment ago
            names |= {int(held[place]): receipt.names[place] for place in places}
    return names
