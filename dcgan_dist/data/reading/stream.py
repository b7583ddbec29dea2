"""The stream reader: webdataset's samples and shuffle, for sources that cannot be indexed (pipes).

Same batches in shape and type as the indexed reader, and as many; but what a rank sees depends on the number of ranks,
an epoch is a pass over a rank's shards, and a resumed run starts the stream again.
"""

import hashlib
import re
import signal
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import chain, count, islice
from operator import setitem
from pathlib import Path
from random import Random
from typing import IO, Any

from webdataset.filters import shuffle
from webdataset.utils import enforce_security  # pyright: ignore[reportAttributeAccessIssue]

from dcgan_dist.data.images.codecs import decode_into
from dcgan_dist.data.order import flips
from dcgan_dist.data.reading.counters import Counters
from dcgan_dist.data.reading.prefetch_buffer import Batch, empty_batch, prefetch_batches
from dcgan_dist.data.reading.reader import Split
from dcgan_dist.data.remote.unpack import TAR_ENDINGS, packing
from dcgan_dist.data.shards.foreign import DEFAULT
from dcgan_dist.data.shards.index import NO_LABEL, SKIPPED, read_index
from dcgan_dist.data.shards.labels import is_number
from dcgan_dist.data.shards.notes import Notes, merge_notes
from dcgan_dist.data.shards.samples import MemberChoice, escape_newlines
from dcgan_dist.data.shards.tar_walker import NONE, TarWalker
from dcgan_dist.data.shards.tarfiles import CUT, Header, tar_members
from dcgan_dist.data.system.workers import end_programs, shielded_program
from dcgan_dist.errors import UsageError, UserError, to_stderr
from dcgan_dist.location import Location

SHUFFLE_BUFFER = 2_000  # samples
ENDINGS = "|".join(re.escape(ending) for ending in TAR_ENDINGS if ending.count(".") == 1)
TAR = re.compile(rf"[\w.%+-]+({ENDINGS})\b")  # in a command; of a.tar.gz it is a.tar
SUCCESS_CODES = (
    0,
    -signal.SIGPIPE,
    128 + signal.SIGPIPE,
)  # exit codes of a command whose output was read to the end mark

Sample = tuple[str, bytes, int, str]  # suffix, bytes and label of an image, and what it is called in messages


class StreamUrls(list[str]):
    """Tars to be streamed, by their paths and `pipe:` commands."""

    def __init__(self, urls: Iterable[str] = ()) -> None:
        super().__init__(urls)
        self.fingerprint = hashlib.sha256("\n".join(sorted(map(_known_by, self))).encode()).hexdigest()
        """Of the names of shards and the sizes of files; folders, hosts and signatures may change."""


def _known_by(url: str) -> str:
    if url.startswith("pipe:"):
        return " ".join(sorted({"pipe:", *(tar[0] for tar in TAR.finditer(Location(url).reveal()))}))
    return f"{Path(url).name} {Path(url).stat().st_size if Path(url).exists() else None}"


class StreamReader:
    """Reads tars from the first byte to the last with webdataset, shards and samples shuffled by the seed."""

    exact = False

    def __init__(
        self,
        urls: list[str],
        *,
        shape: tuple[int, int],
        seed: int,
        prefetch: int,
        pinned: bool,
        choice: MemberChoice = DEFAULT,
    ) -> None:
        """`shape`: height (and width), channels. Raises UsageError for a URL, UserError for a missing file."""
        for url in urls:
            if url.startswith("pipe:"):
                if enforce_security:
                    raise UsageError(f"--data.shards {url}: WDS_SECURE forbids commands; unset it")
                continue
            if "://" in url:
                problem = "not a file; stream it with 'pipe:COMMAND' and --data.allow_pipe"
                raise UsageError(f"--data.shards {url}: {problem}")
            if not Path(url).exists():
                raise UserError(f"{url}: no such file")
        self.counters = Counters()
        self.damages: dict[int, str] = {}  # an image that cannot be read ends the run
        self._urls, self._seed, self._choice = urls, seed, choice
        self._shape = shape
        self._prefetch, self._pinned = prefetch, pinned

    def batches(self, position: int, split: Split) -> Generator[Batch, None, None]:
        """This rank's batches without end; `position` chooses the shuffle and the flips, not a place in the stream."""
        count = split.per_rank_micro * split.micro_batches
        samples = self._samples(position, split)
        positions = iter(range(position, 2**62, split.batch))
        slots = [empty_batch(count, *self._shape, self._pinned) for _ in range(self._prefetch + 2)]

        def fill(batch: Batch) -> None:
            pixels, batch.read = batch.pixels, Counters(images=count)
            batch.rows.flips[:] = flips(self._seed, next(positions) + split.rank * count, count)
            for row, (suffix, data, label, where) in enumerate(islice(samples, count)):
                decode_into(data, suffix, pixels[row], where)
                batch.rows.labels[row] = label
                batch.read.bytes += len(data)

        with closing(prefetch_batches(fill, slots)) as batches:
            try:
                for batch in batches:
                    self.counters.add(batch.read)
                    yield batch
            finally:
                end_programs()  # or the thread would wait for what a command has yet to write

    def _samples(self, position: int, split: Split) -> Iterator[Sample]:
        """This rank's images, epoch after epoch."""
        divided = len(self._urls) >= split.world_size
        notes: dict[str, Notes] = {}  # of pipes and packed files, as the first pass found them
        for epoch in count():
            random = Random(f"{self._seed}/{position}/{epoch}")
            urls = random.sample(self._urls, len(self._urls))
            if divided:
                urls = urls[split.rank :: split.world_size]
            images = chain.from_iterable(tar_images(url, self._choice, partial(setitem, notes, url)) for url in urls)
            # nothing leaves the buffer before it is full, so a set that fits into it is shuffled uniformly
            images = shuffle(SHUFFLE_BUFFER, SHUFFLE_BUFFER, rng=random)(images)
            # with fewer shards than ranks every rank reads all of them and keeps its share
            mine = images if divided else islice(images, split.rank, None, split.world_size)
            first = next(mine, None)
            if first is None:
                raise UserError(f"--data.shards {', '.join(urls[:3])}: no image for rank {split.rank}")
            yield first
            yield from mine
            found = merge_notes(note for url, note in notes.items() if not is_plain(url))
            if not epoch and (divided or not split.rank):
                for line in found.lines():
                    to_stderr(f"data: {line} (pipes and packed files)")


def is_plain(url: str) -> bool:
    """Whether a source is a file whose headers can be walked before it is streamed."""
    return url.endswith(".tar") and "://" not in url and not url.startswith("pipe:")


def tar_images(
    url: str, choice: MemberChoice = DEFAULT, on_notes: Callable[[Notes], None] = lambda _: None
) -> Iterator[Sample]:
    """The images of one tar; `on_notes` gets what of it is not used. Raises UserError when it cannot be read."""
    try:
        if url.startswith("pipe:"):
            # a signal for all processes must not cut the tar, and so the iteration that ends in a checkpoint
            shell = Location(url).reveal().removeprefix("pipe:")
            with shielded_program(shell, shell=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
                assert command.stdout is not None
                says = threading.Thread(target=_pass_on, args=(command.stderr, Location(url)), daemon=True)
                says.start()
                with command.stdout as stream:
                    yield from _in_tar(url, stream, choice, on_notes)
                code = command.wait()
                says.join(1)  # its last words come before ours
                if code not in SUCCESS_CODES:
                    raise UserError(f"{url}: cannot be read (the command failed)")
        else:
            ours = packing(url) is None and read_index(Path(url)) is not None
            with Path(url).open("rb") as file:
                yield from _in_tar(url, file, DEFAULT if ours else choice, on_notes)
    except OSError as error:
        raise UserError(f"{url}: cannot be read ({error.strerror})") from error


def _pass_on(said: IO[bytes], place: Location) -> None:
    """What the command says on standard error, where its shell may quote it."""
    with said:
        for line in said:
            sys.stderr.write(place.hide_in(line.decode(errors="replace")))


def _in_tar(url: str, stream: Any, choice: MemberChoice, on_notes: Callable[[Notes], None]) -> Iterator[Sample]:
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
        yield suffix, data, label, f"{url}: {escape_newlines(name)}.{suffix}"
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
                info.cut = True  # the last one, as tar_members will say
        yield info
