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
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from typing import Any

from dcgan_dist.data.remote.retry import Retry
from dcgan_dist.data.remote.stores import (
    IN_FLIGHT,
    FileChangedError,
    Hub,
    Objects,
    RemoteStat,
    Span,
    Store,
    Web,
    protocol_of,
)
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.location import Location

__all__ = ["Remote", "RemoteStat", "base_name", "is_remote"]

PART = 8 * 2**20  # bytes of one request of a download
PARTS = 4  # of a download in flight; together they bound its memory
PROTOCOLS = ("s3", "s3a", "gs", "gcs", "http", "https", "hf")


class _Connections:
    """The stores of this process, and daemon threads for many requests at once: they do not delay the exit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stores: dict[tuple[str, float], Store] = {}
        self._tasks: SimpleQueue[tuple[Future[bytes], Callable[[], bytes]]] | None = None

    def store(self, url: str, timeout: float) -> Store:
        protocol = protocol_of(url)
        if protocol not in PROTOCOLS:
            raise UsageError(f"{Location(url)}: '{protocol}' is none of {', '.join(PROTOCOLS)}")
        with self._lock:
            if (protocol, timeout) not in self._stores:
                self._stores[protocol, timeout] = self._open(protocol, timeout)
            return self._stores[protocol, timeout]

    def _open(self, protocol: str, timeout: float) -> Store:
        try:
            if protocol in ("http", "https"):
                return Web(timeout)
            return Hub(timeout) if protocol == "hf" else Objects(protocol, timeout)
        except ImportError as error:
            package = f" ({error.name})" if error.name else ""
            problem = f"{protocol}:// needs a package that is missing{package}"
            raise UsageError(f"{problem}: pip install 'dcgan_dist[remote]'") from error
        except Exception as error:  # a setting that the package cannot read
            raise UserError(f"{protocol}:// cannot be used ({type(error).__name__}: {error})") from None

    def submit(self, act: Callable[[], bytes]) -> Future[bytes]:
        with self._lock:
            if self._tasks is None:
                self._tasks = SimpleQueue()
                for _ in range(IN_FLIGHT):
                    threading.Thread(target=self._work, args=(self._tasks,), name="remote", daemon=True).start()
        future: Future[bytes] = Future()
        self._tasks.put((future, act))
        return future

    @staticmethod
    def _work(tasks: "SimpleQueue[tuple[Future[bytes], Callable[[], bytes]]]") -> None:
        while True:
            future, act = tasks.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(act())
                except BaseException as error:
                    future.set_exception(error)
            del future, act  # not kept until the next one


_connections = _Connections()
_of_the_parent: list[_Connections] = []  # never closed: that would end the parent's requests


def _forget_the_parents() -> None:
    global _connections
    _of_the_parent.append(_connections)
    _connections = _Connections()


os.register_at_fork(after_in_child=_forget_the_parents)


def is_remote(name: str) -> bool:
    """The name is a URL (`scheme://`), not a path and not a `pipe:` command."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) is not None


def base_name(name: str) -> str:
    """The name of a file without its folder, from a path or URL."""
    if not is_remote(name):
        return Path(name).name
    path = re.split("[?#]", Location(name).reveal().partition("://")[2], maxsplit=1)[0].partition("/")[2]
    return PurePosixPath(path).name


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
    retries: int = 5
    """Further attempts after the first failed one; an attempt that received some bytes is not counted."""
    pause: float = 0.5
    """Seconds before the first further attempt; doubled each time up to 30, and drawn from its upper half."""

    def expand(self, url: str) -> list[str]:
        """The files of a pattern, sorted, as Locations; a URL without pattern as it is.

        Raises UsageError for a pattern that matches nothing, and for one on a web server, which has no listing.
        """
        url = Location(url)
        store = _connections.store(url, self.timeout)
        if isinstance(store, Web) and not isinstance(store, Hub):
            if re.search(r"[*\[]", url.partition("://")[2].partition("/")[2]):
                raise UsageError(f"{url}: a web server has no listing; use a brace list as in {{0..9}}")
            return [url]
        if not re.search(r"[*\[]|\?(?!versionId=)", url.reveal()):
            return [url]
        found = self._retried(store.glob, url)
        if not found:
            raise UsageError(f"{url}: no such files")
        return [Location(name) for name in sorted(found)]

    def stat(self, url: str) -> RemoteStat:
        """Size and version of a file."""
        return self._retried(_connections.store(url, self.timeout).stat, Location(url))

    def read(self, url: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from the byte `start`."""
        return self._fetch(Span(url, start, length))

    def read_spans(self, spans: Sequence[Span]) -> list[bytes]:
        """The bytes of many ranges, read at the same time. Raises UserError for a file that was replaced meanwhile."""
        if len(spans) == 1:
            return [self._fetch(spans[0])]
        futures = [_connections.submit(partial(self._fetch, span)) for span in spans]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def download(self, stat: RemoteStat) -> Iterator[bytes]:
        """The bytes of exactly this version of a complete file, part after part."""
        yield from self._parts(stat)
        now = self.stat(stat.url)
        if (now.size, now.version) != (stat.size, stat.version):
            raise self._retry(stat.url).failure(FileChangedError())

    def _parts(self, stat: RemoteStat) -> Iterator[bytes]:
        if not stat.ranges:
            yield from self._pieces(Span(stat.url, 0, stat.size, stat.version, ranges=False))
            return
        pending: deque[Future[bytes]] = deque()
        try:
            for start in range(0, stat.size, PART):
                span = Span(stat.url, start, min(PART, stat.size - start), stat.version)
                pending.append(_connections.submit(partial(self._fetch, span)))
                if len(pending) == PARTS:
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
        store, retry = _connections.store(span.url, self.timeout), self._retry(span.url)
        done = 0
        while (before := done) < span.length:
            try:
                for piece in store.read(replace(span, start=span.start + done, length=span.length - done)):
                    done += len(piece)
                    yield piece
            except Exception as error:
                time.sleep(retry.after(error, done - before))

    def _retried(self, act: Callable[[Location], Any], url: Location) -> Any:
        retry = self._retry(url)
        while True:
            try:
                return act(url)
            except Exception as error:
                time.sleep(retry.after(error))

    def _retry(self, url: str) -> Retry:
        return Retry(_connections.store(url, self.timeout), url, self.timeout, retries=self.retries, pause=self.pause)
