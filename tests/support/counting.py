"""A cache that counts what it is asked for and what it makes."""

import os
import threading

from dcgan_dist.data.remote.cache import ANY, ShardCache


class CountedCache(ShardCache):
    """Hits and misses are of `get` and of `acquire` that waits; `made` is the bytes of the entries that were made."""

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

    def acquire(self, source, request=ANY):
        shard = self.get(source) if request.wait else None
        return super().acquire(source, request) if shard is None else shard

    def _make(self, source, wanted, made, request):
        shard = super()._make(source, wanted, made, request)
        if shard is not None:
            with self._counting:
                self.made += os.fstat(shard.fileno()).st_size
        return shard
