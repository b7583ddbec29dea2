"""Moves all shards of a plan to OUT; the manifest, written last, marks them as complete."""

import filecmp
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcgan_dist.data.images.statistics import PixelCounts
from dcgan_dist.data.shards import manifest as manifest_file
from dcgan_dist.data.shards.index import corpus_fingerprint
from dcgan_dist.data.shards.manifest import BAD, DUPLICATES, INFO, SIDE_FILES, SIZES, ClassEntry, Manifest, ShardEntry
from dcgan_dist.data.system.storage import move_to_free, sync_folder, write_atomically
from dcgan_dist.data.writing.duplicates import describe, find_duplicates
from dcgan_dist.data.writing.staging import Plan, Receipt, Staging, read_receipt, remove_copies
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.text import listed

SHARD = re.compile(r"shard-\d{5,}\.tar", re.ASCII)  # see numbered_shard_names


@dataclass(kw_only=True)
class Summary(Receipt):
    """What shards hold together, and how many of their images this call has written."""

    out: Path
    plan: Plan
    levels: PixelCounts  # of the stored images
    shards: dict[int, Receipt] = field(default_factory=dict)  # that hold images, by number in the plan; without files
    numbers: list[NDArray[np.int64]] = field(default_factory=list)  # of the files of each shard
    digests: bytearray = field(default_factory=bytearray)  # checksums of all files
    duplicates: int | None = None  # None: not known, or not yet
    published: bool = False  # otherwise there are other parts to come
    others: int = 0  # .tar files in OUT that are not among these shards
    written: int = 0
    processes: int = 1

    @property
    def skipped(self) -> tuple[str, ...]:
        """A message for each image that could not be read, in the source's order."""
        return tuple(message for _, message in sorted(self.bad))

    def add(self, number: int, receipt: Receipt) -> None:
        """Counts one shard."""
        self.bad += receipt.bad
        if receipt.samples:  # a shard without any image has no use
            self.shards[number] = replace(receipt, files=[], pixels=[])
            self.samples += receipt.samples
            self.bytes += receipt.bytes
            self.several += receipt.several
            self.labels.update(receipt.labels)
            self.stored_sizes.update(receipt.stored_sizes)
            self.source_sizes.update(receipt.source_sizes)
            self.levels.counts += np.array(receipt.pixels)
            self.numbers.append(np.array([number for number, _, _ in receipt.files], dtype=np.int64))
            self.digests += bytes.fromhex("".join(digest for _, digest, _ in receipt.files))


def add_up(staging: Staging, plan: Plan, shards: Iterable[int]) -> Summary:
    """What some shards hold. Raises UserError when one of them is not complete."""
    summary, missing = Summary(out=staging.out, plan=plan, levels=PixelCounts(plan.options["channels"])), list[int]()
    for number in shards:
        if receipt := staging.receipt(number):
            summary.add(number, receipt)
        else:
            missing.append(number)
    if missing:
        names = ", ".join(f"{part}/{plan.parts}" for part in sorted({number % plan.parts + 1 for number in missing}))
        run = f"part {names}" if plan.parts > 1 else "the command that writes them"
        have = f"{len(missing):,} of {plan.shards:,} shards are missing or damaged ({listed(missing, 5)})"
        raise UserError(f"{staging.out}: {have}; run {run} again, then merge")
    if plan.options["duplicates"] == "drop":
        summary.duplicates = plan.dropped
    return summary


def refuse_others(out: Path, overwrite: bool, ours: Iterable[Path]) -> None:
    """Raises UsageError when OUT holds other shards, or files that would have to go; `ours` may be there.

    With `overwrite`, what an earlier manifest names may be there too, and .tar files of other names.
    """
    there = (*out.glob("*.tar"), *(out / name for name in SIDE_FILES if os.path.lexists(out / name)))
    others = sorted(path.name for path in set(there) - set(ours))
    if overwrite:
        known, problem = earlier_files(out)
        taken = [name for name in set(others) - set(known) if name in SIDE_FILES or SHARD.fullmatch(name)]
        if manifest_file.NAME in taken:
            what = f"{manifest_file.NAME}, which does not say what may be replaced ({problem})"
            raise UsageError(f"{out}: holds {what}; move it and the shards beside it away, or choose another folder")
        if taken:
            what = f"{min(taken)}, which no manifest.json of earlier shards names, so that it is not replaced"
            raise UsageError(f"{out}: holds {what}; move it away, or choose another folder")
    elif others:
        tars = sum(name.endswith(".tar") for name in others)
        what = f"{tars} .tar files" if tars else others[0]
        raise UsageError(f"{out}: holds {what} already; choose another folder or add --overwrite")


def earlier_files(out: Path) -> tuple[list[str], str]:
    """The names of the files of an earlier set of shards in OUT, by its manifest, which comes first; or why none."""
    try:
        manifest = manifest_file.load_manifest(out / manifest_file.NAME)
    except UserError as error:  # there is none, or it is another program's
        return [], str(error)
    lists = [name for name, count in ((BAD, manifest.bad), (DUPLICATES, manifest.duplicates)) if count]
    return [manifest_file.NAME, SIZES, INFO, *lists, *(shard.name for shard in manifest.shards)], ""


def taken_places(staging: Staging) -> list[Path]:
    """The places in OUT that an interrupted call has taken, or was about to; none before the publishing began."""
    names = (*SIDE_FILES, *staging.earlier) if staging.published else ()
    return [*staging.published.values(), *(staging.out / name for name in names)]


def publish(staging: Staging, plan: Plan, overwrite: bool) -> Summary:
    """Moves all shards to OUT and removes the staging folder; with `overwrite`, the files of an earlier set go first.

    Nothing else that is in OUT is removed or replaced. Whenever it is interrupted, calling it again completes it.
    Raises UserError when a shard is missing, when there is no image at all, or when a place is taken by another file.
    """
    out, summary = staging.out, add_up(staging, plan, range(plan.shards))
    if not summary.shards:
        staging.remove()
        raise UserError(f"none of the {plan.images:,} images can be read; the first: {summary.skipped[0]}")
    names = manifest_file.numbered_shard_names(len(summary.shards))
    files = _describe(staging, plan, summary, names)
    for name, data in files.items():
        write_atomically(staging.folder / name, data)
    places = {out / name: staging.shard(number) for number, name in zip(summary.shards, names, strict=True)}
    places |= {out / name: staging.folder / name for name in files}
    if not staging.published:
        earlier = earlier_files(out)[0] if overwrite else []
        if taken := [path for path in places if path.name not in earlier and os.path.lexists(path)]:
            raise _is_taken(taken[0])
        staging.begin_publishing(list(summary.shards), earlier)
    _remove_earlier(staging)
    for path, staged in places.items():
        if path.name == manifest_file.NAME:
            sync_folder(out)  # all else survives a power cut that comes after the manifest
        _take_place(staged, path)
    sync_folder(out)
    staging.remove()
    remove_copies(out)
    summary.published, summary.others = True, len(list(out.glob("*.tar"))) - len(names)
    return summary


def _remove_earlier(staging: Staging) -> None:
    """Removes the files of an earlier set, once: what is at their places afterwards is not theirs."""
    for name in staging.earlier:
        (staging.out / name).unlink(missing_ok=True)
        if name == manifest_file.NAME:  # from now on OUT is incomplete, and says so
            sync_folder(staging.out)
    if staging.earlier:
        staging.begin_publishing(list(staging.published), [])


def _take_place(staged: Path, path: Path) -> None:
    """Moves a file to its place in OUT, unless an interrupted call has. Raises UserError when another file is there."""
    if not staged.exists():
        return
    try:
        move_to_free(staged, path)
    except FileExistsError as error:
        # it is empty if a call was killed in move_to_free
        if not (path.is_file() and (not path.stat().st_size or filecmp.cmp(staged, path, shallow=False))):
            raise _is_taken(path) from error
        staged.replace(path)  # of two links to one file both stay, until the staging is removed


def _is_taken(path: Path) -> UserError:
    problem = "is there by now, and was not when the packing began; it is not replaced"
    return UserError(f"{path}: {problem}; move it away, and run the same command again to continue")


def _describe(staging: Staging, plan: Plan, summary: Summary, names: Iterable[str]) -> dict[str, bytes]:
    """The files beside the shards, the manifest last. Sets the number of duplicates."""
    repeated = _duplicates(staging, plan, summary)
    shards = tuple(
        ShardEntry(name=name, bytes=r.bytes, samples=r.samples, xxh128=r.xxh128, fingerprint=r.fingerprint)
        for name, r in zip(names, summary.shards.values(), strict=True)
    )
    labels = sorted(plan.classes.keys() | {int(label) for label in summary.labels})
    manifest = Manifest(
        samples=summary.samples,
        bytes=summary.bytes,
        fingerprint=corpus_fingerprint(int(shard.fingerprint, 16) for shard in shards),
        **{name: plan.options[name] for name in ("size", "channels", "store")},
        mean=tuple(summary.levels.mean()),
        std=tuple(summary.levels.std()),
        stored_sizes=manifest_file.commonest(summary.stored_sizes),
        source_sizes=manifest_file.commonest(summary.source_sizes),
        classes=tuple(ClassEntry(label=n, name=plan.classes.get(n), samples=summary.labels[str(n)]) for n in labels),
        unlabelled=summary.samples - summary.labels.total(),
        duplicates=summary.duplicates,
        bad=len(summary.bad),
        options=plan.options,
        shards=shards,
    )
    lists = {BAD: summary.skipped, DUPLICATES: repeated}
    texts = {name: "".join(f"{line}\n" for line in lines) for name, lines in lists.items() if lines}
    files = {name: text.encode(errors="backslashreplace") for name, text in texts.items()}
    return files | manifest_file.set_files(manifest) | {manifest_file.NAME: manifest_file.manifest_json(manifest)}


def _duplicates(staging: Staging, plan: Plan, summary: Summary) -> list[str]:
    """The lines of duplicates.txt; sets the number of duplicates."""
    if plan.options["duplicates"] == "keep":
        return []
    if plan.options["duplicates"] == "drop":
        return staging.dropped.read_text(encoding="utf-8").splitlines()
    repeats = find_duplicates(summary.digests, np.concatenate(summary.numbers))
    summary.duplicates = len(repeats[0])
    wanted, names = set(np.concatenate(repeats).tolist()), dict[int, str]()
    for shard, numbers in zip(summary.shards, summary.numbers, strict=True):
        if not wanted.isdisjoint(numbers.tolist()):
            receipt = read_receipt(staging.shard(shard))
            assert receipt is not None  # it was read a moment ago
            names |= {number: name for number, _, name in receipt.files if number in wanted}
    return list(describe(repeats, names.__getitem__))
