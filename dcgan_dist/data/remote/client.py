"""Files behind URLs: ranges and whole files, through every fault that passes by itself.

    s3://bucket/key     AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL and all else that the AWS tools read;
                        FSSPEC_S3_ENDPOINT_URL for another server, FSSPEC_S3_ANON=true for a public bucket
    gs://bucket/key     GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth`; FSSPEC_GS_TOKEN=anon for a public bucket
    http(s)://host/path FSSPEC_HTTP='{"headers": {...}}'; http://user:password@host; signed URLs
    hf://datasets/USER/NAME@REVISION/PATH   HF_TOKEN; HF_ENDPOINT for a mirror

Anything else that fsspec can be told stands in FSSPEC_* variables or ~/.config/fsspec; proxies are the environment's
(https_proxy). Threads may share a Remote; a process made by fork or spawn makes its own connections.
"""

import asyncio
import atexit
import os
import re
import threading
import time
from collections import deque
from collections.abc import Coroutine, Generator, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from dcgan_dist.data.remote.faults import Patience
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
from dcgan_dist.data.storage import Output
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.location import Location

__all__ = ["Remote", "RemoteStat", "base_name", "is_remote"]

PART = 8 * 2**20  # bytes of one request of a download
PARTS = 4  # of a download in flight; together they bound its memory
PROTOCOLS = ("s3", "s3a", "gs", "gcs", "http", "https", "hf")


class _Connections:
    """The stores of this process and the event loop that they live in."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stores: dict[tuple[str, float], Store] = {}
        self.loop: Any = None
        self.free: asyncio.Semaphore
        self.ended = False

    def store(self, url: str, timeout: float) -> Store:
        protocol = protocol_of(url)
        if protocol not in PROTOCOLS:
            raise UsageError(f"{Location(url)}: '{protocol}' is none of {', '.join(PROTOCOLS)}")
        with self.lock:
            if (protocol, timeout) not in self.stores:
                self.stores[protocol, timeout] = self._open(protocol, timeout)
            return self.stores[protocol, timeout]

    def _open(self, protocol: str, timeout: float) -> Store:
        try:
            import fsspec.asyn

            if self.loop is None:
                self.loop = fsspec.asyn.get_loop()
                self.free = asyncio.Semaphore(IN_FLIGHT)
            if protocol in ("http", "https"):
                return Web(timeout)
            return Hub(timeout) if protocol == "hf" else Objects(protocol, timeout)
        except ImportError as error:
            package = f" ({error.name})" if error.name else ""
            problem = f"{protocol}:// needs a package that is missing{package}"
            raise UsageError(f"{problem}: pip install 'dcgan_dist[remote]'") from error
        except Exception as error:  # a setting that the package cannot read
            raise UserError(f"{protocol}:// cannot be used ({type(error).__name__}: {error})") from None

    def start(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.result(self.start(work))

    def result(self, future: Future[Any]) -> Any:
        try:
            return future.result()
        finally:
            future.cancel()  # an interrupted wait ends the request too
            if self.ended and threading.current_thread().daemon:  # the process is over: nobody is to hear of it
                threading.Event().wait()

    def close(self) -> None:
        self.ended = True
        for store in self.stores.values():
            with suppress(Exception):
                self.start(store.close()).result(1)


_connections = _Connections()
_of_the_parent: list[_Connections] = []  # kept for ever: to close them here would take sockets out of the parent's loop


def _forget_the_parents() -> None:
    global _connections
    _of_the_parent.append(_connections)
    _connections = _Connections()


os.register_at_fork(after_in_child=_forget_the_parents)
atexit.register(lambda: _connections.close())


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

    Errors are UserError: one line that names the URL (see Location), the fault, how often it
    was tried, and what to do. Faults that pass (5xx, 429, 408, cut or refused connections, no answer, too few bytes)
    are tried again after a growing pause; others (404, 403, no credentials) end at once. A missing package is a
    UsageError.
    """

    timeout: float = 60
    """Seconds without an answer, or without the next byte, after which a try has failed; gs:// gets no more for a
    whole part of 8 MiB."""
    retries: int = 5
    """Further tries after the first failed one; a try that brought some bytes is not counted."""
    pause: float = 0.5
    """Seconds before the first further try; doubled each time up to 30, and drawn from its upper half."""

    def expand(self, url: str) -> list[str]:
        """The files of a pattern, sorted, as Locations; a URL without pattern as it is.

        Raises UsageError for a pattern that nothing matches, and for one on a web server, which has no listing.
        """
        url = Location(url)
        store = _connections.store(url, self.timeout)
        if isinstance(store, Web) and not isinstance(store, Hub):
            if re.search(r"[*\[]", url.partition("://")[2].partition("/")[2]):
                raise UsageError(f"{url}: a web server has no listing; use a brace list as in {{0..9}}")
            return [url]
        if not re.search(r"[*\[]|\?(?!versionId=)", url.reveal()):
            return [url]
        found = _connections.run(self._again(url, lambda: store.glob(url)))
        if not found:
            raise UsageError(f"{url}: no such files")
        return [Location(name) for name in sorted(found)]

    def stat(self, url: str) -> RemoteStat:
        """Size and version of a file."""
        url = Location(url)
        store = _connections.store(url, self.timeout)
        return _connections.run(self._again(url, lambda: store.stat(url)))

    def read(self, url: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from the byte `start`."""
        return self.read_many([(url, start, length)])[0]

    def read_many(self, requests: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """The bytes of many ranges (url, start, length), read at the same time."""
        return self.read_spans([Span(*request) for request in requests])

    def read_spans(self, spans: Sequence[Span]) -> list[bytes]:
        """The same of versions that are known; raises UserError for a file that was replaced since."""
        for url in {protocol_of(span.url): span.url for span in spans}.values():  # opened here, not in the event loop
            _connections.store(url, self.timeout)

        async def together() -> list[bytes]:
            tasks = [asyncio.ensure_future(self._fetch(span)) for span in spans]
            try:
                return [bytes(part) for part in await asyncio.gather(*tasks)]
            finally:
                for task in tasks:
                    task.cancel()

        try:
            return _connections.run(together()) if spans else []
        except FileChangedError as error:
            shown = ", ".join(sorted({Location(span.url) for span in spans})[:3])
            raise UserError(f"{shown}: a file was replaced by another after it was looked at; start again") from error

    def download(self, stat: RemoteStat, file: Output) -> None:
        """Writes this very version of a whole file, part after part.

        A version that the server does not hold any more is looked for once again, and then is an error. What `file`
        raises is let through.
        """
        store = _connections.store(stat.url, self.timeout)
        patience = Patience(store, stat.url, self.timeout, retries=min(1, self.retries), pause=self.pause)
        while True:
            file.seek(0)
            file.truncate()
            try:
                with closing(self._parts(stat) if stat.ranges else self._stream(store, stat)) as parts:
                    for part in parts:
                        file.write(part)
                now = self.stat(stat.url)
                if (now.size, now.version) == (stat.size, stat.version):
                    return
                raise FileChangedError
            except FileChangedError as error:
                time.sleep(patience.after(error))

    def _parts(self, stat: RemoteStat) -> Generator[bytearray, None, None]:
        pending: deque[Future[bytearray]] = deque()
        try:
            for start in range(0, stat.size, PART):
                length = min(PART, stat.size - start)
                pending.append(_connections.start(self._fetch(Span(stat.url, start, length, stat.version))))
                if len(pending) == PARTS:
                    yield _connections.result(pending.popleft())
            while pending:
                yield _connections.result(pending.popleft())
        finally:
            for future in pending:
                future.cancel()

    def _stream(self, store: Store, stat: RemoteStat) -> Generator[bytes, None, None]:
        """The whole file from a server without ranges; after a cut, what is known already is passed over."""
        patience = self._patience(store, stat.url)
        done = 0
        while done < stat.size:
            pieces, position = store.pieces(stat), 0

            async def following(pieces: Any = pieces) -> bytes | None:
                return await anext(pieces, None)

            before = done
            try:
                while (piece := _connections.run(following())) is not None:
                    new = piece[max(0, done - position) :]
                    position += len(piece)
                    done += len(new)
                    if done > stat.size:
                        raise FileChangedError
                    yield new
                if done < stat.size:
                    raise EOFError(f"{stat.size - done} bytes are missing")
            except FileChangedError:
                raise
            except Exception as error:
                time.sleep(patience.after(error, done - before))
            finally:
                _connections.run(pieces.aclose())

    def _patience(self, store: Store, url: str) -> Patience:
        return Patience(store, url, self.timeout, retries=self.retries, pause=self.pause)

    async def _fetch(self, span: Span) -> bytearray:
        store = _connections.store(span.url, self.timeout)
        patience = self._patience(store, span.url)
        got = bytearray()
        while (before := len(got)) < span.length:
            rest = replace(span, start=span.start + before, length=span.length - before)
            try:
                async with _connections.free:
                    await store.read(rest, got)
            except FileChangedError:
                raise
            except Exception as error:
                await asyncio.sleep(patience.after(error, len(got) - before))
        return got

    async def _again(self, url: str, act: Any) -> Any:
        patience = self._patience(_connections.store(url, self.timeout), url)
        while True:
            try:
                async with _connections.free:
                    return await act()
            except Exception as error:
                await asyncio.sleep(patience.after(error))
