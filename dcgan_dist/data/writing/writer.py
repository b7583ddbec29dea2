"""Packs the images of a source into shards: the same bytes from the same images, by any number of processes.

A plan says which image goes into which shard; it follows from the source and the options alone. So the shards can be
written in any order, by several computers (a Part each, then merge_shards), and by a command that was killed and is run
again: what is complete is kept.
"""

import json
import time
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
from dcgan_dist.data.shards.classes import classes_text, numbering
from dcgan_dist.data.sources import Images, Source, TarSource
from dcgan_dist.data.system.pool import run_jobs
from dcgan_dist.data.system.storage import write_atomically
from dcgan_dist.data.system.workers import available_cores
from dcgan_dist.data.writing.duplicates import as_array, describe, find_duplicates
from dcgan_dist.data.writing.keys import key_digits
from dcgan_dist.data.writing.pack import HashJob, Job, PackJob, one_line, opened_worker
from dcgan_dist.data.writing.packing import Packing, Part
from dcgan_dist.data.writing.publish import add_up, earlier_files, publish, refuse_others, taken_places
from dcgan_dist.data.writing.staging import COPIES, PARTIAL, VERSION, Plan, Staging, locked, open_staging, stagings
from dcgan_dist.errors import UsageError, UserError

HASHED_TOGETHER = 4_096  # files whose checksums are kept in one file

Progress = Callable[[int, int], None]
"""Images done and images in all; first called with what was done before."""


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who is told how the work goes on."""

    packed: Progress = _ignore
    hashed: Progress = _ignore
    say: Callable[[str], None] = _ignore


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What write_shards or merge_shards has done."""

    out: Path
    images: int
    shards: int
    bytes: int
    written: int  # of the images, in this call; the others were there
    skipped: tuple[str, ...]  # one message for each image that could not be read
    left_out: dict[str, int]  # other files in the source, by their endings
    several: int  # images made of files that hold several pictures
    duplicates: int | None  # None: not known, or not yet
    dropped: bool  # whether they were
    published: bool  # otherwise there are other parts to come
    others: int  # .tar files in OUT that are not among these shards
    processes: int
    seconds: float
    size: int | None  # of the stored images, pixels; None: they differ
    channels: int


def write_shards(
    source: Source, out: Path, packing: Packing, watch: Watch | None = None, part: Part | None = None
) -> Summary:
    """Packs all images of the source into OUT/shard-00000.tar, shard-00001.tar, ...; they appear when all are complete.

    With a part, writes its share of the shards only; merge_shards publishes them.

    Raises UsageError when OUT holds shards (without packing.overwrite) or other files in their places, UserError when
    an image cannot be read (without packing.skip_bad) or a shard cannot be written; both leave OUT's files as they
    were. What is complete by then stays in OUT/.partial, from where the same call goes on.
    """
    started, watch = time.monotonic(), watch or Watch()
    refuse_others(out, packing.overwrite, chain.from_iterable(map(taken_places, stagings(out))))
    with _inside(out), locked(out, shared=part is not None):
        source = source.prepared(out / PARTIAL / COPIES, watch.say)
        if packing.store != "keep":
            _refuse_source(out, source)
        images, left_out, classes, lines = source.items()
        for line in lines:
            watch.say(line)
        if classes:
            watch.say(f"classes: {classes_text(classes)}{numbering(classes)}")
        identity = _identity(source, images, packing)
        with open_staging(out, identity, watch.say) as staging:
            try:
                work = _Work(source, images, packing, staging, watch)
                dropped = work.dropped(part)
                plan = Plan(
                    images=len(images) - len(dropped),
                    shards=-(-(len(images) - len(dropped)) // packing.shard_size),
                    left_out=left_out,
                    dropped=len(dropped),
                    classes=dict(classes),
                    options=packing.content(),
                )
                staging.write_plan(plan)
                if part:
                    staging.write_parts(part.parts)
                shards = [number for number in range(plan.shards) if part is None or part.owns(number)]
                done = work.pack(work.order(dropped), shards)
                return _summary(staging, plan, packing.overwrite, shards if part else None, (*done, started))
            finally:
                if part is None and not staging.is_worth_keeping():
                    staging.remove()


def _refuse_source(out: Path, source: Source) -> None:
    """Raises UsageError when the source is among the shards in OUT that are replaced, and its images with them."""
    going = {(out / name).resolve() for name in earlier_files(out)}
    for tar in source.tars if isinstance(source, TarSource) else ():
        if tar.file.resolve() in going:
            raise UsageError(
                f"{out}: holds {tar.file.name}, whose images would be replaced; choose another folder, or --store keep"
            )


def merge_shards(out: Path, overwrite: bool) -> Summary:
    """Publishes what all parts have written.

    Raises UsageError when there is nothing to publish or OUT holds shards already, UserError when a part is missing,
    which the message names.
    """
    started, found = time.monotonic(), stagings(out)
    if len(found) != 1:
        what = "parts of different commands" if found else "no unfinished shards; run --part 1/N, 2/N, .. first"
        raise UsageError(f"{out}: holds {what}")
    with _inside(out), locked(out, shared=False):
        refuse_others(out, overwrite, taken_places(found[0]))
        return _summary(found[0], found[0].read_plan(), overwrite, None, (0, 1, started))


def _summary(
    staging: Staging, plan: Plan, overwrite: bool, shards: list[int] | None, done: tuple[int, int, float]
) -> Summary:
    """Publishes, or adds up the shards of a part."""
    written, processes, started = done
    drops = plan.options["duplicates"] == "drop"
    if shards is None:
        manifest, totals = publish(staging, plan, overwrite)
        duplicates = manifest.duplicates
    else:
        totals = add_up(staging, plan, shards)
        duplicates = plan.dropped if drops else None
    return Summary(
        out=staging.out,
        images=totals.samples,
        shards=len(totals.entries),
        bytes=totals.bytes,
        written=written,
        skipped=totals.skipped,
        left_out=plan.left_out,
        several=totals.several,
        duplicates=duplicates,
        dropped=drops,
        published=shards is None,
        others=len(list(staging.out.glob("*.tar"))) - len(totals.entries) if shards is None else 0,
        processes=processes,
        seconds=time.monotonic() - started,
        size=plan.options["size"],
        channels=plan.options["channels"],
    )


@contextmanager
def _inside(out: Path) -> Iterator[None]:
    """Turns the errors of the disk into one line that names OUT, not a file in it that the user has not heard of."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error
    except UserError as error:
        file, colon, problem = str(error).rpartition(": cannot be written")
        if type(error) is UserError and colon and file.startswith(f"{out / PARTIAL}/"):
            raise UserError(f"{out}{colon}{problem}") from error
        raise


def _identity(source: Source, images: Images, packing: Packing) -> str:
    """A fingerprint of all that decides the bytes of the shards, but the content of the files."""
    about = {"version": VERSION, "options": packing.content(), "first": source.where(images[0])}
    hasher = xxhash.xxh3_128(json.dumps(about, sort_keys=True).encode())
    for name in images.names():
        hasher.update(f"{name}\n".encode(errors="surrogatepass"))
    hasher.update(images.labels.tobytes())
    return hasher.hexdigest()


@dataclass(frozen=True)
class _Work:
    source: Source
    images: Images
    packing: Packing
    staging: Staging
    watch: Watch

    def dropped(self, part: Part | None) -> NDArray[np.int64]:
        """Numbers of the duplicates that are not packed; the list of them is written."""
        if self.packing.duplicates != "drop":
            return np.empty(0, dtype=np.int64)
        found = find_duplicates(self._digests(part))
        lines = describe(found, lambda number: one_line(self.source.where(self.images[number])))
        text = "".join(f"{line}\n" for line in lines)
        write_atomically(self.staging.dropped, text.encode(errors="backslashreplace"))
        return found.later

    def order(self, dropped: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the images, but for the dropped ones, as they follow one another in the shards."""
        count = len(self.images) - len(dropped)
        order = np.arange(count)
        if self.packing.shuffle:
            order = keyed.permutation(keyed.key(self.packing.seed, "shard"), count)
        return np.delete(np.arange(len(self.images)), dropped)[order] if len(dropped) else order

    def _digests(self, part: Part | None) -> NDArray[np.uint64]:
        """Checksums of all files. Parts that run at the same time begin at different places and share their results."""
        images, chunks = self.images, -(-len(self.images) // HASHED_TOGETHER)
        begin = (part.number - 1) * chunks // part.parts if part else 0
        paths = [self.staging.digests / f"{chunk:07}.bin" for chunk in range(chunks)]
        lengths = [min(HASHED_TOGETHER, len(images) - chunk * HASHED_TOGETHER) for chunk in range(chunks)]

        def is_missing(chunk: int) -> bool:
            return not paths[chunk].is_file() or paths[chunk].stat().st_size != 16 * lengths[chunk]

        def jobs() -> Iterator[Job]:
            for chunk in (*range(begin, chunks), *range(begin)):
                if is_missing(chunk):
                    first = chunk * HASHED_TOGETHER
                    yield HashJob(paths[chunk], images[first : first + lengths[chunk]])

        todo = [chunk for chunk in range(chunks) if is_missing(chunk)]
        before = len(images) - sum(lengths[chunk] for chunk in todo)
        self._run(jobs(), len(todo), lambda done: self.watch.hashed(before + done, len(images)))
        return as_array(b"".join(path.read_bytes() for path in paths))

    def pack(self, order: NDArray[np.int64], shards: list[int]) -> tuple[int, int]:
        """Writes those of the shards that are not complete; how many images, and by how many processes."""
        size, staging, digits = self.packing.shard_size, self.staging, key_digits(self.images)
        if digits:
            self.watch.say("keys: some names do not differ in letters and digits, so every key ends with a number")

        def images_of(shard: int) -> NDArray[np.int64]:
            return order[shard * size : (shard + 1) * size]

        def jobs() -> Iterator[Job]:
            for shard in todo:
                chosen = images_of(shard)
                staging.shard(shard).parent.mkdir(exist_ok=True)
                yield PackJob(staging.shard(shard), chosen, self.images.take(chosen), digits)

        todo = [shard for shard in shards if not self._is_complete(shard)]
        written = sum(len(images_of(shard)) for shard in todo)
        total = sum(len(images_of(shard)) for shard in shards)
        if len(todo) < len(shards):
            self.watch.say(f"going on: {len(shards) - len(todo):,} of {len(shards):,} shards are complete")
        return written, self._run(jobs(), len(todo), lambda done: self.watch.packed(total - written + done, total))

    def _is_complete(self, shard: int) -> bool:
        receipt = self.staging.receipt(shard)
        return receipt is not None and (self.packing.skip_bad or not receipt.bad)

    def _run(self, jobs: Iterator[Job], count: int, report: Callable[[int], None]) -> int:
        """Does some jobs; the number of processes."""
        processes = max(1, min(self.packing.processes or available_cores(), count))
        report(0)
        if count:
            run_jobs(partial(opened_worker, self.source, self.packing), jobs, processes, report)
        return processes
