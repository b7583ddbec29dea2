"""Whatever is asked of a cache in whatever order: the bound holds, pinned shards stay, and bytes are the right ones."""

import os
import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dcgan_dist.data.remote.cache import CachedShard, EntryRequest, ShardCache, entry_name
from dcgan_dist.data.remote.client import Remote, RemoteStat

DATA = [random.Random(number).randbytes(100 + 150 * number) for number in range(6)]
LIMIT = 1200


class FromMemory(Remote):
    """Gives the bytes of DATA, and fails where the test says so."""

    def download(self, stat):
        number, fails = stat.version.split()
        yield DATA[int(number)][:100]
        if fails == "True":
            raise KeyboardInterrupt
        yield DATA[int(number)][100:]


def source(number, fails=False):
    url = f"http://host/{number}{'!' * fails}.tar"
    return RemoteStat(url=url, size=len(DATA[number]), version=f"{number} {fails}")


class Caches(RuleBasedStateMachine):
    """Two processes' caches in one folder."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.caches = [ShardCache(self.folder, LIMIT, FromMemory()) for _ in range(2)]
        self.held: list[tuple[int, CachedShard]] = []

    numbers = st.integers(0, len(DATA) - 1)
    uses = st.lists(st.none() | st.integers(0, 9), min_size=len(DATA), max_size=len(DATA))

    def size(self, number):
        """Bytes that entry takes now."""
        path = self.folder / entry_name(source(number))
        return path.stat().st_size if path.exists() else 0

    @rule(cache=st.integers(0, 1), number=numbers, uses=uses, keep=st.booleans())
    def acquire(self, cache, number, uses, keep):
        by_name = {entry_name(source(other)): use for other, use in enumerate(uses)}
        pinned = {held for held, _ in self.held}
        sooner = {
            other
            for other, use in enumerate(uses)
            if use is not None and (uses[number] is None or use <= uses[number]) and self.size(other)
        }
        fixed = sum(self.size(other) for other in (pinned | sooner) - {number})
        there = self.size(number) > 0
        shard = self.caches[cache].acquire(source(number), EntryRequest(next_use=by_name.get))
        assert (shard is not None) == (there or fixed + len(DATA[number]) <= LIMIT)
        assert all(self.size(other) for other in sooner - {number}), "what is needed sooner stays"
        if shard is not None:
            assert os.pread(shard.fileno(), 10_000, 0) == DATA[number]
            if keep:
                self.held.append((number, shard))
            else:
                shard.close()

    @rule(cache=st.integers(0, 1), number=numbers)
    def fail(self, cache, number):
        try:
            shard = self.caches[cache].acquire(source(number, fails=True))
        except KeyboardInterrupt:
            return
        assert shard is None

    @rule(data=st.data())
    def release(self, data):
        if self.held:
            self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))[1].close()

    @invariant()
    def bounded(self):
        files = [path for path in self.folder.iterdir() if path.name != ".lock"]
        assert not [path for path in files if path.name.startswith(".")]
        assert sum(path.stat().st_size for path in files) <= LIMIT
        for number, shard in self.held:
            assert shard.path.read_bytes() == DATA[number]

    def teardown(self):
        for _, shard in self.held:
            shard.close()
        shutil.rmtree(self.folder)


TestCaches = Caches.TestCase
TestCaches.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
