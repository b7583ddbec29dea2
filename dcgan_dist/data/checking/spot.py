"""A look at some samples of a shard, instead of all that `verify` reads: a second each, local or remote."""

import io
from collections.abc import Callable

from dcgan_dist.data.checking.access import Job, Passage, opened
from dcgan_dist.data.checking.indexed import IndexedSample, find_index
from dcgan_dist.data.checking.verify import Problem
from dcgan_dist.errors import UserError

BUFFER = 2**16  # bytes, of what lies between two samples


def spot_check(job: Job, count: int) -> tuple[int, list[Problem]]:
    """Checks up to `count` samples, the first, the last and some between them; how many, and what is wrong.

    Shards without an index carry no checksums: nothing of them is read.
    """
    problems: list[Problem] = []

    def note(kind: str, what: str, key: str | None = None, byte: int | None = None) -> None:
        problems.append(Problem(shard=job.shown, kind=kind, what=what, key=key, byte=byte))

    nothing: Callable[[int], None] = lambda _: None  # noqa: E731
    try:
        with opened(job) as (read, size):
            found = find_index(job.shown, size, read)
            if found is None:
                return 0, problems
            index = found[1]
            seen = min(count, len(index))
            numbers = [round((len(index) - 1) * place / max(seen - 1, 1)) for place in range(seen)]
            with io.BufferedReader(Passage(read, size, nothing), BUFFER) as file:
                for number in numbers:
                    sample = IndexedSample(file, index, number)
                    if not sample.intact:
                        note("checksum", sample.damage, index.keys[number], sample.damaged_at)
            return len(numbers), problems
    except UserError as error:
        note("unreadable", str(error).removeprefix(f"{job.shown}: "))
        return 0, problems
