"""Remote files: byte ranges and complete downloads, retried through every transient fault.

    s3://bucket/key     AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL and all else that the AWS tools read;
                        FSSPEC_S3_ENDPOINT_URL for another server, FSSPEC_S3_ANON=true for a public bucket
    gs://bucket/key     GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth`; FSSPEC_GS_TOKEN=anon for a public bucket
    http(s)://host/path FSSPEC_HTTP='{"headers": {...}}'; http://user:password@host; signed URLs
    hf://datasets/USER/NAME@REVISION/PATH   HF_TOKEN; HF_ENDPOINT for a mirror

Other settings of s3fs, gcsfs and HfFileSystem are read from FSSPEC_* variables or ~/.config/fsspec, proxies from the
environment (https_proxy). Threads may share a Remote; a process made by fork or spawn opens its own connections.
"""

import os
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from dcgan_dist.data.remote.faults import failure, is_transient
from dcgan_dist.data.remote.stores import IN_FLIGHT, STORES, FileChangedError, RemoteStat, Span, Store, protocol_of
from dcgan_dist.data.system.workers import DaemonThreads
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.location import Location

PART = 8 * 2**20  # bytes of one request of a download
PARTS = 4  # of a download in flight; together they bound its memory
ENOUGH = 64 * 2**10  # bytes after which an attempt counts as progress: a server that cuts every answer gives the file
LONGEST_PAUSE = 30.0  # seconds

_lock = threading.Lock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@cache
def _open_store(protocol: str, timeout: float, _process: int) -> Store:
    """A process opens its own, and never closes those of its parent: that would end the parent's requests."""
    try:
        return STORES[protocol](timeout)
    except ImportError as error:
        package = f" ({error.name})" if error.name else ""
        problem = f"{protocol}:// needs a package that is missing{package}"
        raise UsageError(f"{problem}: pip install 'dcgan_dist[remote]'") from error
    except Exception as error:  # a setting that the package cannot read
        raise UserError(f"{protocol}:// cannot be used ({type(error).__name__}: {error})") from None


@cache
def _threads(_process: int) -> DaemonThreads:
    return DaemonThreads(IN_FLIGHT, "remote")


def is_remote(name: str) -> bool:
    """The name is a URL (`scheme://`), not a path and not a `pipe:` command."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) is not None


def base_name(name: str) -> str:
    """The name of a file without its folder, from a path or URL."""
    if is_remote(name):
        name = re.split("[?#]", Location(name).reveal().partition("://")[2], maxsplit=1)[0].partition("/")[2]
    return Path(name).name


@dataclass(frozen=True, kw_only=True)
class Remote:
    """How remote files are read.

    Errors are UserError: one line that names the URL (see Location), the fault, the number of attempts, and what to do.
    Transient faults (5xx, 429, 408, cut or refused connections, no answer, too few bytes) are retried after a growing
    pause; others (404, 403, no credentials) end at once. A missing package is a UsageError.
    """

    timeout: float = 60
    """Seconds without an answer, or without the next byte, after which an attempt has failed; gs:// gets no more for a
    complete part of 8 MiB."""
    retries: int = 5  # further attempts after the first failed one; an attempt that received some bytes is not counted
    pause: float = 0.5
    """Seconds before the first further attempt; doubled each time up to 30, and drawn from its upper half."""

    def expand(self, url: str) -> list[str]:
        """The files of a pattern, sorted, as Locations; a URL without pattern as it is.

        Raises UsageError for a pattern that matches nothing, and for one on a web server, which has no listing.
        """
        url = Location(url)
        store = self._store(url)
        if not re.search(r"[*\[]|\?(?!versionId=)", url.reveal()):
            return [url]
        found = self._retried(store.glob, url)
        if not found:
            raise UsageError(f"{url}: no such files")
        return sorted(map(Location, found))

    def stat(self, url: str) -> RemoteStat:
        """Size and version of a file."""
        return self._retried(self._store(url).stat, Location(url))

    def read(self, url: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from the byte `start`."""
        return self._fetch(Span(url, start, length))

    def read_spans(self, spans: Sequence[Span]) -> list[bytes]:
        """The bytes of many ranges, read at the same time. Raises UserError for a file that was replaced meanwhile."""
        if len(spans) == 1:
            return [self._fetch(spans[0])]
        return list(self._together(spans, len(spans)))

    def download(self, stat: RemoteStat) -> Iterator[bytes]:
        """The bytes of exactly this version of a complete file, part after part."""
        if stat.ranges:
            starts = range(0, stat.size, PART)
            parts = (Span(stat.url, start, min(PART, stat.size - start), stat.version) for start in starts)
            yield from self._together(parts, PARTS)
        else:
            yield from self._pieces(Span(stat.url, 0, stat.size, stat.version, ranges=False))
        now = self.stat(stat.url)
        if (now.size, now.version) != (stat.size, stat.version):
            raise failure(FileChangedError(), stat.url, self.timeout)

    def _together(self, spans: Iterable[Span], most: int) -> Iterator[bytes]:
        """The bytes of ranges in their order, at most so many of them in flight."""
        pending: deque[Future[bytes]] = deque()
        with _lock:
            threads = _threads(os.getpid())
        try:
            for span in spans:
                pending.append(threads.submit(partial(self._fetch, span)))
                if len(pending) == most:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def _fetch(self, span: Span) -> bytes:
        return b"".join(self._pieces(span))

    def _pieces(self, span: Span) -> Iterator[bytes]:
        """The bytes in order; after a fault from the first one that is missing."""
        store, done, failed = self._store(span.url), 0, 0
        while (before := done) < span.length:
            try:
                for piece in store.read(replace(span, start=span.start + done, length=span.length - done)):
                    done += len(piece)
                    yield piece
            except Exception as error:
                failed = 1 if done - before >= ENOUGH else failed + 1
                self._pause_after(error, span.url, failed)

    def _retried(self, act: Callable[[Location], Any], url: Location) -> Any:
        failed = 0
        while True:
            try:
                return act(url)
            except Exception as error:
                failed += 1
                self._pause_after(error, url, failed)

    def _pause_after(self, error: Exception, url: str, failed: int) -> None:
        """Before the next attempt; raises UserError when the error is permanent, or was the last of too many."""
        retries = min(1, self.retries) if isinstance(error, FileChangedError) else self.retries
        if failed > retries or not is_transient(error, self._store(url)):
            raise failure(error, url, self.timeout, failed) from None  # the text of its cause may hold a signed URL
        time.sleep(min(LONGEST_PAUSE, self.pause * 2 ** (failed - 1)) * random.uniform(0.5, 1))

    def _store(self, url: str) -> Store:
        protocol = protocol_of(url)
        if protocol not in STORES:
            raise UsageError(f"{Location(url)}: '{protocol}' is none of {', '.join(STORES)}")
        with _lock:
            return _open_store(protocol, self.timeout, os.getpid())
