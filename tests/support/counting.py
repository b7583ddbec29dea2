"""A cache that counts what it is asked for and what it makes."""

import os
import threading

from dcgan_dist.data.remote.cache import ShardCache


class CountedCache(ShardCache):
    """Hits and misses are of `get` and `acquire`; `made` is the bytes of the entries that were made."""

    def __init__(self, *args):
        super().__init__(*args)
        self.hits = self.misses = self.made = 0
        self._counting = threading.Lock()

    def get(self, source):
        shard = super().get(source)
        with self._counting:
            self.hits += shard is not None
            self.misses += shard is None
        return shard

    def _make(self, source, wanted, reservation, request):
        shard = super()._make(source, wanted, reservation, request)
        if shard is not None:
            with self._counting:
                self.made += os.fstat(shard.descriptor).st_size
        return shard
