"""Packs the images of a source into shards: the same bytes from the same images, by any number of processes.

A plan says which image goes into which shard; it follows from the source and the options alone. So the shards can be
written in any order, by several computers (a Part each, then merge_shards), and by a command that was killed and is run
again: what is complete is kept.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from dcgan_dist import keyed
from dcgan_dist.data.shards.labels import ENCODING, classes_text, numbering
from dcgan_dist.data.sources.base import Images, Source
from dcgan_dist.data.sources.tars import TarSource
from dcgan_dist.data.system.pool import run_jobs
from dcgan_dist.data.system.storage import write_atomically
from dcgan_dist.data.system.workers import available_cores
from dcgan_dist.data.writing.duplicates import describe, find_duplicates
from dcgan_dist.data.writing.pack import HashJob, PackJob, key_digits, one_line, opened_worker
from dcgan_dist.data.writing.packing import Packing, Part
from dcgan_dist.data.writing.publish import Summary, add_up, earlier_files, publish, refuse_others, taken_places
from dcgan_dist.data.writing.staging import COPIES, PARTIAL, VERSION, Plan, Staging, locked_out, open_staging, stagings
from dcgan_dist.errors import UsageError, UserError, os_error_as_user_error

HASHED_TOGETHER = 4_096  # files whose checksums are kept in one file


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Functions that are called during the work; `packed` and `hashed` get the images done so far, and all."""

    packed: Callable[[int, int], None] = lambda *_: None
    hashed: Callable[[int, int], None] = lambda *_: None
    say: Callable[[str], None] = lambda *_: None


def write_shards(
    source: Source, out: Path, packing: Packing, callbacks: Callbacks | None = None, part: Part | None = None
) -> Summary:
    """Packs all images of the source into OUT/shard-00000.tar, shard-00001.tar, ...; they appear when all are complete.

    With a part, writes its share of the shards only; merge_shards publishes them.

    Raises UsageError when OUT holds shards (without packing.overwrite) or other files in their places, UserError when
    an image cannot be read (without packing.skip_bad) or a shard cannot be written; both leave OUT's files as they
    were. What is complete by then stays in OUT/.partial, from where the same call continues.
    """
    callbacks, own = callbacks or Callbacks(), part or Part(1, 1)
    refuse_others(out, packing.overwrite, chain.from_iterable(map(taken_places, stagings(out))))
    with _errors_of(out), locked_out(out, shared=part is not None):
        source = source.prepared(out / PARTIAL / COPIES, callbacks.say)
        if packing.store != "keep":
            _refuse_source(out, source)
        images, left_out, classes, lines = source.items()
        for line in (*lines, *([f"classes: {classes_text(classes)}{numbering(classes)}"] if classes else [])):
            callbacks.say(line)
        with open_staging(out, _identity(source, images, packing), callbacks.say) as staging:
            try:
                work = _Work(source, images, packing, staging, callbacks)
                order = work.order(own)
                plan = Plan(
                    images=len(order),
                    shards=-(-len(order) // packing.shard_size),
                    parts=own.parts,
                    left_out=left_out,
                    dropped=len(images) - len(order),
                    classes=dict(classes),
                    options=packing.content(),
                )
                staging.write_plan(plan)
                shards = range(own.number - 1, plan.shards, own.parts)
                written, processes = work.pack(order, shards)
                summary = add_up(staging, plan, shards) if part else publish(staging, plan, packing.overwrite)
                summary.written, summary.processes = written, processes
                return summary
            finally:
                if part is None and not staging.is_worth_keeping():
                    staging.remove()


def merge_shards(out: Path, overwrite: bool) -> Summary:
    """Publishes what all parts have written.

    Raises UsageError when there is nothing to publish or OUT holds shards already, UserError that names missing parts.
    """
    with _errors_of(out), locked_out(out, shared=False):
        found = stagings(out)
        if len(found) != 1:
            what = "parts of different commands" if found else "no unfinished shards; run --part 1/N, 2/N, .. first"
            raise UsageError(f"{out}: holds {what}")
        refuse_others(out, overwrite, taken_places(found[0]))
        return publish(found[0], found[0].read_plan(), overwrite)


def _refuse_source(out: Path, source: Source) -> None:
    """Raises UsageError when the source is among the shards in OUT that are replaced, and its images with them."""
    replaced = {(out / name).resolve() for name in earlier_files(out)[0]}
    tars = source.tars if isinstance(source, TarSource) else ()
    if names := [tar.file.name for tar in tars if tar.file.resolve() in replaced]:
        problem = f"holds {names[0]}, whose images would be replaced"
        raise UsageError(f"{out}: {problem}; choose another folder, or --store keep")


@contextmanager
def _errors_of(out: Path) -> Iterator[None]:
    """Turns the errors of the disk into one line that names OUT, not a file in it that the user does not know."""
    try:
        with os_error_as_user_error(out, "cannot be written"):
            yield
    except UserError as error:
        file, colon, problem = str(error).rpartition(": cannot be written")
        if type(error) is UserError and file.startswith(f"{out / PARTIAL}/"):
            raise UserError(f"{out}{colon}{problem}") from error
        raise


def _identity(source: Source, images: Images, packing: Packing) -> str:
    """A fingerprint of all that decides the bytes of the shards, but the content of the files."""
    about = {"version": VERSION, "options": packing.content(), "first": source.where(images[0])}
    hasher = xxhash.xxh3_128(json.dumps(about, sort_keys=True).encode())
    for name in images.names():
        hasher.update(f"{name}\n".encode(*ENCODING))
    hasher.update(images.labels.tobytes())
    return hasher.hexdigest()


@dataclass(frozen=True)
class _Work:
    source: Source
    images: Images
    packing: Packing
    staging: Staging
    callbacks: Callbacks

    def order(self, part: Part) -> NDArray[np.int64]:
        """Numbers of the images as they follow one another in the shards; writes the list of those that are dropped."""
        order = np.arange(len(self.images))
        if self.packing.duplicates == "drop":
            repeats = find_duplicates(self._digests(part), order)
            lines = describe(repeats, lambda number: one_line(self.source.where(self.images[number])))
            text = "".join(f"{line}\n" for line in lines)
            write_atomically(self.staging.dropped, text.encode(errors="backslashreplace"))
            order = np.delete(order, repeats[0])
        if self.packing.shuffle:
            order = order[keyed.permutation(keyed.key(self.packing.seed, "shard"), len(order))]
        return order

    def _digests(self, part: Part) -> bytes:
        """Checksums of all files. Parts that run at the same time begin at different places and share their results."""
        total = len(self.images)
        together = (range(total)[first : first + HASHED_TOGETHER] for first in range(0, total, HASHED_TOGETHER))
        chunks = {self.staging.digests / f"{number:07}.bin": places for number, places in enumerate(together)}

        def is_missing(path: Path) -> bool:
            return not path.is_file() or path.stat().st_size != 16 * len(chunks[path])

        begin = (part.number - 1) * len(chunks) // part.parts
        paths = [*chunks][begin:] + [*chunks][:begin]
        todo = [len(chunks[path]) for path in paths if is_missing(path)]
        jobs = (HashJob(path, self.images.take(chunks[path])) for path in paths if is_missing(path))
        self._run(jobs, len(todo), lambda done: self.callbacks.hashed(total - sum(todo) + done, total))
        return b"".join(path.read_bytes() for path in chunks)

    def pack(self, order: NDArray[np.int64], shards: range) -> tuple[int, int]:
        """Writes those of the shards that are not complete; how many images, and by how many processes."""
        size, digits = self.packing.shard_size, key_digits(self.images)
        if digits:
            self.callbacks.say("keys: some names do not differ in letters and digits, so every key ends with a number")
        numbers = {shard: order[shard * size : (shard + 1) * size] for shard in shards}
        receipts = ((shard, self.staging.receipt(shard)) for shard in shards)
        todo = [n for n, receipt in receipts if receipt is None or (receipt.bad and not self.packing.skip_bad)]
        written, total = sum(len(numbers[shard]) for shard in todo), sum(map(len, numbers.values()))
        if len(todo) < len(shards):
            self.callbacks.say(f"resuming: {len(shards) - len(todo):,} of {len(shards):,} shards are complete")
        jobs = (PackJob(self.staging.shard(n), numbers[n], self.images.take(numbers[n]), digits) for n in todo)
        processes = self._run(jobs, len(todo), lambda done: self.callbacks.packed(total - written + done, total))
        return written, processes

    def _run(self, jobs: Iterator[PackJob | HashJob], count: int, report: Callable[[int], None]) -> int:
        """Does some jobs; the number of processes."""
        processes = max(1, min(self.packing.processes or available_cores(), count))
        report(0)
        if count:
            list(run_jobs(partial(opened_worker, self.source, self.packing), jobs, processes, report))
        return processes
