"""What stands behind a URL: web servers, the Hugging Face hub (web pages as well) and object stores.

Every store tells size and version of a file, reads a range of it, and knows which of its errors pass by themselves.
Nothing here retries, waits or speaks to the user: that is `remote`.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from netrc import NetrcParseError
from typing import Any, Protocol

from dcgan_dist.location import Location

PIECE = 2**20  # bytes that are taken at once from a server without ranges
IN_FLIGHT = 32  # requests of one process
FROM_ENVIRONMENT = {"trust_env": True}  # proxies and ~/.netrc, as other programs do


@dataclass(frozen=True, kw_only=True)
class RemoteStat:
    """One version of a remote file."""

    url: str
    size: int
    """Bytes."""
    version: str
    """ETag, generation or date of the last change, whatever the server tells; never empty."""
    ranges: bool = True
    """The server gives parts of the file."""


@dataclass(frozen=True)
class Span:
    """A part of a remote file."""

    url: str
    start: int
    length: int
    version: str | None = None
    """Only this version's bytes will do; None: whatever is there. Object stores do not look at it."""


class FileChangedError(Exception):
    """The server holds another version than the one that was asked for."""


class NoRangesError(Exception):
    """The server sends the whole file where a part was asked for."""


class NoSizeError(Exception):
    """The server does not say how long the file is."""


def _without_quotation(record: logging.LogRecord) -> bool:
    """Of a ~/.netrc that cannot be read aiohttp's warning quotes a word, which may be the password."""
    damaged = (error for error in record.args or () if isinstance(error, NetrcParseError))
    record.args = tuple(f"{error.filename}, line {error.lineno}" for error in damaged) or record.args
    return True


class Store(Protocol):
    """One kind of source. All methods run in fsspec's event loop."""

    async def stat(self, url: str) -> RemoteStat:
        """Size and version."""
        ...

    async def read(self, span: Span, into: bytearray) -> None:
        """Appends the bytes, or some of them before it raises. Raises FileChangedError for another version."""
        ...

    def pieces(self, stat: RemoteStat) -> AsyncGenerator[bytes, None]:
        """The whole file in order, from a server without ranges."""
        ...

    async def glob(self, pattern: str) -> list[str]:
        """The files that match, as URLs."""
        ...

    def passes(self, error: BaseException) -> bool:
        """The error may be gone at the next try."""
        ...

    async def close(self) -> None:
        """Ends all connections."""
        ...


class Web:
    """Servers of http:// and https://, by fsspec's session, so that its configuration (proxies, headers) holds."""

    def __init__(self, timeout: float) -> None:
        import aiohttp
        from fsspec.config import conf
        from fsspec.implementations.http import HTTPFileSystem

        logging.getLogger("aiohttp.client").addFilter(_without_quotation)
        self._errors = aiohttp.ClientError
        self._lasting = (aiohttp.InvalidURL, aiohttp.ClientSSLError, aiohttp.TooManyRedirects)
        client = FROM_ENVIRONMENT | conf.get("http", {}).get("client_kwargs", {})
        self._files: Any = HTTPFileSystem(asynchronous=True, skip_instance_cache=True, client_kwargs=client)
        self._options = {
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout),
            "auto_decompress": False,  # some servers call a .tar.gz a compressed transfer: the bytes stay as they are
        } | self._files.kwargs
        self._session: Any = None

    async def locate(self, url: str) -> tuple[str, dict[str, str]]:
        """The web page of a URL, and the headers that it needs."""
        return Location(url).reveal(), {}

    async def _get(self, url: str, span: str | None) -> Any:
        if self._session is None:
            self._session = await self._files.set_session()
        address, more = await self.locate(url)
        headers = {"Accept-Encoding": "identity"} | self._options.get("headers", {}) | more
        if span is not None:
            headers["Range"] = f"bytes={span}"
        return self._session.get(self._files.encode_url(address), **(self._options | {"headers": headers}))

    def _version(self, answer: Any, size: str) -> str:
        return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or f"{size} bytes"

    async def stat(self, url: str) -> RemoteStat:
        """Asks for the first byte instead of the head alone, for signed URLs allow nothing else."""
        async with await self._get(url, "0-0") as answer:
            if answer.status == 416:  # the first byte is one too many
                return RemoteStat(url=url, size=0, version=self._version(answer, "0"))
            answer.raise_for_status()
            span = answer.headers.get("Content-Range", "")
            size = span.rpartition("/")[2] if span else answer.headers.get("Content-Length", "")
            if not size.isdecimal():
                raise NoSizeError
            return RemoteStat(url=url, size=int(size), version=self._version(answer, size), ranges=answer.status != 200)

    async def read(self, span: Span, into: bytearray) -> None:
        """See Store."""
        async with await self._get(span.url, f"{span.start}-{span.start + span.length - 1}") as answer:
            answer.raise_for_status()
            given = answer.headers.get("Content-Range", "")
            part = answer.status == 206 and given.startswith(f"bytes {span.start}-")
            if not (part or (span.start == 0 and answer.headers.get("Content-Length") == str(span.length))):
                raise NoRangesError
            if span.version not in (None, self._version(answer, given.rpartition("/")[2] or str(span.length))):
                raise FileChangedError
            end = len(into) + span.length
            async for piece in answer.content.iter_any():
                into += piece[: end - len(into)]
            if len(into) < end:
                raise EOFError(f"{end - len(into)} bytes are missing")

    async def pieces(self, stat: RemoteStat) -> AsyncGenerator[bytes, None]:
        """See Store."""
        async with await self._get(stat.url, None) as answer:
            answer.raise_for_status()
            if self._version(answer, answer.headers.get("Content-Length", "")) != stat.version:
                raise FileChangedError
            async for piece in answer.content.iter_chunked(PIECE):
                yield piece

    async def glob(self, pattern: str) -> list[str]:
        """A web server has no listing."""
        raise NotImplementedError(pattern)

    def passes(self, error: BaseException) -> bool:
        """See Store."""
        return isinstance(error, self._errors) and not isinstance(error, self._lasting)

    async def close(self) -> None:
        """See Store."""
        if self._session is not None:
            await self._session.close()


class Hub(Web):
    """hf://datasets/USER/NAME@REVISION/PATH. The files are web pages; the hub's own package finds and lists them."""

    def __init__(self, timeout: float) -> None:
        super().__init__(timeout)
        import huggingface_hub
        import huggingface_hub.utils

        self._hub: Any = huggingface_hub.HfFileSystem(skip_instance_cache=True)
        self._headers = huggingface_hub.utils.build_hf_headers
        self._pages: dict[str, str] = {}

    async def locate(self, url: str) -> tuple[str, dict[str, str]]:
        """See Web."""
        if url not in self._pages:
            self._pages[url] = await asyncio.to_thread(self._hub.url, Location(url).reveal())
        return self._pages[url], self._headers(token=self._hub.token)

    def _version(self, answer: Any, size: str) -> str:
        """The hub's own hash, for the servers that it sends to need not agree on theirs."""
        told = (before.headers.get("X-Linked-ETag") for before in answer.history)
        return next((etag for etag in told if etag), None) or super()._version(answer, size)

    async def glob(self, pattern: str) -> list[str]:
        """See Store."""
        return [f"hf://{name}" for name in await asyncio.to_thread(self._hub.glob, Location(pattern).reveal())]

    def passes(self, error: BaseException) -> bool:
        """The hub's package has errors of its own for what lasts; all others come from the network."""
        return super().passes(error) or not isinstance(error, (ValueError, self._errors, OSError))


class Objects:
    """s3:// and gs://, by s3fs and gcsfs. These have retries of their own, which are switched off or cut short."""

    def __init__(self, protocol: str, timeout: float) -> None:
        import aiohttp

        self._protocol = protocol
        self._limit: float | None = None  # seconds of a whole call
        options: dict[str, Any] = {"asynchronous": True, "skip_instance_cache": True, "use_listings_cache": False}
        if protocol in ("s3", "s3a"):
            import botocore.exceptions
            import s3fs.core
            from fsspec.config import conf

            given = conf.get("s3", {}).get("config_kwargs", {})
            ours = {
                "connect_timeout": timeout,
                "read_timeout": timeout,
                "retries": {"total_max_attempts": 1},
                "max_pool_connections": IN_FLIGHT,
            }
            self._files: Any = s3fs.core.S3FileSystem(config_kwargs=ours | given, **options)
            self._files.retries = 1
            more = (botocore.exceptions.ConnectionError, *s3fs.core.S3_RETRYABLE_ERRORS)
        else:
            import gcsfs.core
            import gcsfs.retry

            logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints the traceback of every error
            self._files = gcsfs.core.GCSFileSystem(session_kwargs=FROM_ENVIRONMENT, **options)
            self._limit = timeout  # in which it retries by itself
            more = gcsfs.retry.RETRIABLE_EXCEPTIONS
        self._passing: tuple[type[BaseException], ...] = (aiohttp.ClientError, *more)
        self._session: Any = None

    async def _connect(self) -> Any:
        if self._session is None:
            connect = self._files.set_session if hasattr(self._files, "set_session") else self._files._set_session
            self._session = await connect()
        return self._files

    async def stat(self, url: str) -> RemoteStat:
        """See Store."""
        info = await asyncio.wait_for((await self._connect())._info(Location(url).reveal()), self._limit)
        if info["type"] != "file":
            raise IsADirectoryError(url)
        told = (info.get(name) for name in ("generation", "ETag", "etag", "LastModified", "updated"))
        version = next((str(value) for value in told if value), f"{info['size']} bytes")
        return RemoteStat(url=url, size=int(info["size"]), version=version)

    async def read(self, span: Span, into: bytearray) -> None:
        """See Store."""
        part = (await self._connect())._cat_file(
            Location(span.url).reveal(), start=span.start, end=span.start + span.length
        )
        data = await asyncio.wait_for(part, self._limit)
        if len(data) > span.length:
            raise NoRangesError
        into += data
        if len(data) < span.length:
            raise EOFError(f"{span.length - len(data)} bytes are missing")

    async def pieces(self, stat: RemoteStat) -> AsyncGenerator[bytes, None]:
        """Object stores have ranges."""
        raise NotImplementedError(stat.url)
        yield b""

    async def glob(self, pattern: str) -> list[str]:
        """See Store."""
        names = await asyncio.wait_for((await self._connect())._glob(Location(pattern).reveal()), self._limit)
        return [f"{self._protocol}://{name}" for name in names]

    def passes(self, error: BaseException) -> bool:
        """See Store."""
        return isinstance(error, self._passing)

    async def close(self) -> None:
        """See Store."""
        if self._session is not None:
            await self._session.close()


def protocol_of(url: str) -> str:
    """'s3' of 's3://bucket/key'."""
    return url.partition("://")[0].lower()
