"""The stream reader: a pipeline of (image, label) samples into batches, for sources that cannot be indexed (pipes).

The pipeline is webdataset's own, with stages that read tars as strictly as the indexed reader does, or the user's
(`user_pipeline`). Batches have the shape, the type and the number of the indexed reader's; but what a rank sees depends
on the number of ranks, an epoch is a pass over a rank's shards, and a resumed run starts the stream again.
"""

import atexit
import hashlib
import re
import signal
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from webdataset import filters
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import ResampledShards, SimpleShardList
from webdataset.utils import enforce_security  # pyright: ignore[reportAttributeAccessIssue]

from dcgan_dist.data.images.codecs import decode_into
from dcgan_dist.data.order import Split, flips
from dcgan_dist.data.reading.counters import Counters
from dcgan_dist.data.reading.prefetch_buffer import Batch, batches_in_turn, empty_batch, prefetch_batches
from dcgan_dist.data.remote.client import base_name, is_remote
from dcgan_dist.data.remote.unpack import TAR_ENDINGS, packing_of
from dcgan_dist.data.shards.foreign import DEFAULT
from dcgan_dist.data.shards.index import NO_LABEL, SKIPPED, read_index
from dcgan_dist.data.shards.labels import is_number
from dcgan_dist.data.shards.notes import Notes, merge_notes
from dcgan_dist.data.shards.samples import MemberChoice, escape_newlines
from dcgan_dist.data.shards.tar_walker import NONE, TarWalker
from dcgan_dist.data.shards.tarfiles import CUT, Header, tar_members
from dcgan_dist.data.system.workers import end_programs, shielded_program
from dcgan_dist.errors import UsageError, UserError, os_error_as_user_error, to_stderr
from dcgan_dist.location import Location

SHUFFLE_BUFFER = 2_000  # samples
RESAMPLED_PASS = 100  # times the number of shards, after which a resampled pass ends
ENDINGS = "|".join(re.escape(ending) for ending in TAR_ENDINGS if ending.count(".") == 1)
TAR = re.compile(rf"[\w.%+-]+({ENDINGS})\b")  # in a command; of a.tar.gz it is a.tar
SUCCESS_CODES = (0, -signal.SIGPIPE, 128 + signal.SIGPIPE)  # of a command whose output was read to the end mark


class EncodedImage(NamedTuple):
    """A sample as a file, which is decoded straight into the batch."""

    suffix: str
    data: bytes
    label: int  # -1: none
    where: str  # what it is called in messages


class DecodedImage(NamedTuple):
    """A sample that is only copied."""

    image: NDArray[np.uint8]  # (H, W, C)
    label: int  # -1: none


Sample = EncodedImage | DecodedImage


class Pipeline(Protocol):
    """Where samples come from."""

    name: str  # the option that names it, for messages
    threaded: bool  # whether a thread may read it ahead of the training

    def samples(self, seed: int, rank: int, world_size: int) -> Iterable[Sample]:
        """Those of one pass for one rank, or without end; `seed` differs between passes, and not between ranks."""
        ...


class StreamUrls(list[str]):
    """Tars to be streamed, by their paths, URLs and `pipe:` commands."""

    def __init__(self, urls: Iterable[str] = ()) -> None:
        super().__init__(urls)
        self.fingerprint = hashlib.sha256("\n".join(sorted(map(_known_by, self))).encode()).hexdigest()
        """Of the names of shards and the sizes of files; folders, hosts and signatures may change."""


def _known_by(url: str) -> str:
    if url.startswith("pipe:"):
        return " ".join(sorted({"pipe:", *(tar[0] for tar in TAR.finditer(Location(url).reveal()))}))
    if is_remote(url):
        return base_name(url)
    return f"{Path(url).name} {Path(url).stat().st_size if Path(url).exists() else None}"


class StreamReader:
    """Reads the samples of a pipeline, pass after pass."""

    exact = False

    def __init__(self, pipeline: Pipeline, *, shape: tuple[int, int], seed: int, prefetch: int, pinned: bool) -> None:
        """`shape`: height (and width), channels."""
        self.counters = Counters()
        self.damages: dict[int, str] = {}  # an image that cannot be read ends the run
        self._pipeline, self._shape, self._seed = pipeline, shape, seed
        self._prefetch, self._pinned = prefetch, pinned

    def batches(self, position: int, split: Split) -> Generator[Batch, None, None]:
        """This rank's batches without end; `position` chooses the shuffle and the flips, not a place in the stream."""
        count = split.per_rank_micro * split.micro_batches
        samples = self._samples(position, split)
        positions = iter(range(position, 2**62, split.batch))
        slots = [empty_batch(count, *self._shape, self._pinned) for _ in range(self._prefetch + 2)]

        def fill(batch: Batch) -> None:
            pixels, batch.read = batch.rows.pixels, Counters(images=count)
            batch.rows.flips[:] = flips(self._seed, next(positions) + split.rank * count, count)
            for row, sample in enumerate(islice(samples, count)):
                batch.rows.labels[row] = sample.label
                if isinstance(sample, EncodedImage):
                    decode_into(sample.data, sample.suffix, pixels[row], sample.where)
                    batch.read.bytes += len(sample.data)
                else:
                    pixels[row] = sample.image
                    batch.read.bytes += sample.image.nbytes

        batches = (prefetch_batches if self._pipeline.threaded else batches_in_turn)(fill, slots)

        def close() -> None:
            end_programs()  # or the thread would wait for what a command has yet to write
            batches.close()
            with suppress(ValueError):  # the thread hangs in it
                samples.close()

        atexit.register(close)  # processes of a user's pipeline, which nothing else may end
        try:
            for batch in batches:
                self.counters += batch.read
                yield batch
        finally:
            atexit.unregister(close)
            close()

    def _samples(self, position: int, split: Split) -> Generator[Sample, None, None]:
        """This rank's samples, pass after pass."""
        for number in count():
            seed = Random(f"{self._seed}/{position}/{number}").getrandbits(31)
            samples = iter(self._pipeline.samples(seed, split.rank, split.world_size))
            first = next(samples, None)
            if first is None:
                advice = "every rank needs some: give more shards, or fewer ranks"
                raise UserError(f"{self._pipeline.name}: no image for rank {split.rank}; {advice}")
            yield first
            yield from samples


class TarPipeline:
    """webdataset's pipeline: shards and samples shuffled by the seed, or shards drawn with replacement."""

    threaded = True

    def __init__(self, urls: Sequence[str], choice: MemberChoice = DEFAULT, *, resampled: bool = False) -> None:
        """Raises UsageError for a URL, UserError for a missing file."""
        for url in urls:
            if url.startswith("pipe:"):
                if enforce_security:
                    raise UsageError(f"--data.shards {url}: WDS_SECURE forbids commands; unset it")
            elif "://" in url:
                problem = "not a file; stream it with 'pipe:COMMAND' and --data.allow_pipe"
                raise UsageError(f"--data.shards {url}: {problem}")
            elif not Path(url).exists():
                raise UserError(f"{url}: no such file")
        self.name = f"--data.shards {', '.join(urls[:3])}"
        self._urls, self._choice, self._resampled = list(urls), choice, resampled
        self._notes: dict[str, Notes] = {}
        self._read = 0

    def samples(self, seed: int, rank: int, world_size: int) -> DataPipeline:
        """See Pipeline."""
        urls, divided = self._urls, len(self._urls) >= world_size and not self._resampled
        mine = filters.slice(rank, None, world_size)  # as split_by_node, which takes the rank from the environment
        wanted = len(urls[rank::world_size]) if divided else len(urls)
        if self._resampled:
            drawn = RESAMPLED_PASS * len(urls)
            source = ResampledShards(urls, drawn, seed, worker_seed=lambda: rank, deterministic=True)
        else:
            source = SimpleShardList(urls, seed=seed)
        return DataPipeline(
            source,
            mine if divided else None,
            partial(read_tars, choice=self._choice, on_notes=partial(self._note, wanted, divided or rank == 0)),
            # nothing leaves the buffer before it is full, so a set that fits into it is shuffled uniformly
            filters.shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER, rng=Random(seed)),
            # with fewer shards than ranks every rank reads all of them and keeps its share
            None if divided or self._resampled else mine,
        )

    def _note(self, wanted: int, reports: bool, url: str, notes: Notes) -> None:
        """What is not used of pipes and packed files is reported once, after as many shards as a pass has."""
        self._notes[url] = notes
        self._read += 1
        if reports and self._read == wanted:
            for line in merge_notes(notes for url, notes in self._notes.items() if not is_plain(url)).lines():
                to_stderr(f"data: {line} (pipes and packed files)")


def is_plain(url: str) -> bool:
    """Whether a source is a file whose headers can be walked before it is streamed."""
    return url.endswith(".tar") and "://" not in url and not url.startswith("pipe:") and packing_of(url) is None


def read_tars(
    shards: Iterable[dict[str, Any]],
    choice: MemberChoice = DEFAULT,
    on_notes: Callable[[str, Notes], None] = lambda *_: None,
) -> Iterator[EncodedImage]:
    """A stage of a webdataset pipeline: from {"url": ..} to the images of these tars.

    `on_notes` gets of each tar what is not used. Raises UserError for a tar that cannot be read.
    """
    for shard in shards:
        yield from tar_images(shard["url"], choice, partial(on_notes, shard["url"]))


def tar_images(
    url: str, choice: MemberChoice = DEFAULT, on_notes: Callable[[Notes], None] = lambda _: None
) -> Iterator[EncodedImage]:
    """The images of one tar; `on_notes` gets what of it is not used. Raises UserError when it cannot be read."""
    with os_error_as_user_error(url, "cannot be read"):
        if url.startswith("pipe:"):
            # a signal for all processes must not cut the tar, and so the iteration that ends in a checkpoint
            shell = Location(url).reveal().removeprefix("pipe:")
            with shielded_program(shell, shell=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
                assert command.stdout is not None
                errors = threading.Thread(target=_pass_on, args=(command.stderr, Location(url)), daemon=True)
                errors.start()
                with command.stdout as stream:
                    yield from _in_tar(url, stream, choice, on_notes)
                code = command.wait()
                errors.join(1)  # its last lines come before ours
                if code not in SUCCESS_CODES:
                    raise UserError(f"{url}: cannot be read (the command failed)")
        else:
            ours = packing_of(url) is None and read_index(Path(url)) is not None
            with Path(url).open("rb") as file:
                yield from _in_tar(url, file, DEFAULT if ours else choice, on_notes)


def _pass_on(errors: IO[bytes], place: Location) -> None:
    """The command's standard error, where its shell may quote it."""
    with errors:
        for line in errors:
            sys.stderr.write(place.hide_in(line.decode(errors="replace")))


def _in_tar(url: str, stream: Any, choice: MemberChoice, on_notes: Callable[[Notes], None]) -> Iterator[EncodedImage]:
    """Labels that are words have no numbers here, where not all of them are known."""
    walk = TarWalker(url, _members(stream), lambda info: info.data, choice)
    images = labelled = 0
    for _, name, suffix, _, _, data, text in walk.images():
        if choice.skip_bad and not data:
            walk.passed["empty"] += 1
            continue
        label = int(text) if is_number(text) else NO_LABEL
        walk.unlabelled["a word, which a stream cannot number"] += text not in ("", NONE) and label == NO_LABEL
        images, labelled = images + 1, labelled + (label != NO_LABEL)
        yield EncodedImage(suffix, data, label, f"{url}: {escape_newlines(name)}.{suffix}")
    apart = min(len(walk.separate_labels), images - labelled - walk.unlabelled.total())
    walk.unlabelled += Counter({"apart from its image": apart})  # which drops what is 0
    on_notes(walk.notes(images, labelled))


def _members(stream: Any) -> Iterator[Header]:
    for tar, info in tar_members(stream, "r|*"):
        if info.isreg() and not info.issparse() and not SKIPPED.match(info.name):
            file = tar.extractfile(info)
            assert file is not None
            try:
                info.data = file.read()
            except tarfile.ReadError as error:
                if str(error) != CUT:
                    raise
                info.cut = True  # the last one, as tar_members will report
        yield info
