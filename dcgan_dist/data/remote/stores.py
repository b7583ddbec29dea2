"""The servers behind URLs: web servers, the Hugging Face Hub (web pages as well) and object stores.

Every store gives the size and version of a file, reads a range of it, and names the errors that are `transient`, unless
they are `lasting`. Nothing here retries or waits: that is `client` and `retry`. Threads may share a store.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urljoin, urlsplit

from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.location import Location

PIECE = 2**20  # bytes that are taken from a connection at once, at most
IN_FLIGHT = 32  # requests of one process
REDIRECTS = 10
UNCACHED: Any = {"skip_instance_cache": True, "use_listings_cache": False}
IDENTITY = {"Accept-Encoding": "identity"}  # some servers call a .tar.gz a compressed transfer


@dataclass(frozen=True, kw_only=True)
class RemoteStat:
    """One version of a remote file."""

    url: str
    size: int  # bytes
    version: str  # ETag, generation or date of the last change, whatever the server reports; never empty
    ranges: bool = True  # the server gives parts of the file


@dataclass(frozen=True)
class Span:
    """A part of a remote file."""

    url: str
    start: int
    length: int
    version: str | None = None
    """Only this version's bytes will do; None: whatever is there. Object stores do not look at it."""
    ranges: bool = True  # False: the server sends the complete file, and this part is cut out of it


class FileChangedError(Exception):
    """The server holds another version than the one that was asked for."""


@dataclass(eq=False)
class StatusError(Exception):
    """A web server answers with an error."""

    status: int


class Web:
    """Servers of http:// and https://, by urllib3, with the environment's proxies, ~/.netrc and fsspec's headers."""

    def __init__(self, timeout: float) -> None:
        import requests.adapters
        import urllib3
        from fsspec.config import conf

        # requests finds proxies and credentials; its sessions take twice the time of urllib3 itself
        self._http, self._utils, self._adapter = urllib3, requests.utils, requests.adapters.HTTPAdapter
        self._options: dict[str, Any] = {"timeout": timeout, "retries": False, "redirect": False}
        self._options |= {"preload_content": False, "enforce_content_length": False}
        self.transient: tuple[type[Exception], ...] = (urllib3.exceptions.HTTPError,)
        self.lasting: tuple[type[Exception], ...] = (urllib3.exceptions.SSLError, urllib3.exceptions.LocationValueError)
        settings = conf.get("http", {}) | conf.get("https", {})
        headers = settings.pop("client_kwargs", {}).get("headers", {}) | settings.pop("headers", {})
        if settings:
            raise ValueError(f"FSSPEC_HTTP sets {', '.join(sorted(settings))}, but only headers are supported")
        self._headers: dict[str, str] = headers
        self._origins: dict[tuple[str, str], tuple[Any, dict[str, str]]] = {}

    def locate(self, url: str) -> tuple[str, dict[str, str]]:
        """The web page of a URL, and the headers that it needs."""
        return Location(url).reveal(), {}

    def _origin(self, address: str) -> tuple[Any, dict[str, str]]:
        """The connections to a server, and its credentials as headers."""
        key = urlsplit(address)[:2]
        if key not in self._origins:
            adapter = self._adapter(pool_maxsize=IN_FLIGHT)
            proxy = self._utils.select_proxy(address, self._utils.get_environ_proxies(address))
            user, password = self._utils.get_auth_from_url(address)
            if not (user or password):
                user, password = self._utils.get_netrc_auth(address) or ("", "")
            credentials = self._http.make_headers(basic_auth=f"{user}:{password}") if user or password else {}
            self._origins[key] = adapter.proxy_manager_for(proxy) if proxy else adapter.poolmanager, credentials
        return self._origins[key]

    def _get(self, url: str, span: str | None) -> tuple[Any, str, str]:
        """The answer to a request, behind all redirections, with the size and the version of the file."""
        address, more = self.locate(url)
        headers, version, redirections = self._headers | more, None, 0
        while True:
            connections, credentials = self._origin(address)
            plain = self._utils.urldefragauth(address)
            wanted = IDENTITY | credentials | headers | ({"Range": f"bytes={span}"} if span else {})
            answer = connections.request("GET", plain, headers=wanted, **self._options)
            version = version or answer.headers.get("X-Linked-ETag")  # the Hub's; its storage may have another
            following, redirections = answer.get_redirect_location(), redirections + 1
            if not following or redirections > REDIRECTS:
                break
            answer.close()
            address = urljoin(address, following)
            if urlsplit(self._utils.urldefragauth(address))[:2] != urlsplit(plain)[:2]:
                headers = {}  # another server gets no credentials
        if answer.status >= 300 and answer.status != 416:
            answer.close()
            raise StatusError(answer.status)
        size = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get("Content-Length", "")
        version = version or answer.headers.get("ETag") or answer.headers.get("Last-Modified") or f"{size} bytes"
        return answer, size, version

    def stat(self, url: str) -> RemoteStat:
        """Asks for the first byte instead of the head alone, for signed URLs allow nothing else."""
        answer, size, version = self._get(url, "0-0")
        with closing(answer):
            if answer.status == 416:  # the first byte is one too many
                size = "0"
            if not size.isdecimal():
                advice = "copy it to another server or to a disk"
                raise UserError(f"{Location(url)}: the server does not report how long the file is; {advice}")
            if answer.status == 206:
                answer.drain_conn()  # so that it can be used again
            return RemoteStat(url=url, size=int(size), version=version, ranges=answer.status != 200)

    def read(self, span: Span) -> Iterator[bytes]:
        """The bytes in pieces, or some of them before it raises. Raises FileChangedError for another version."""
        end = span.start + span.length
        answer, size, version = self._get(span.url, f"{span.start}-{end - 1}" if span.ranges else None)
        with closing(answer):
            if answer.status == 416:
                raise StatusError(answer.status)
            part = answer.headers.get("Content-Range", "").startswith(f"bytes {span.start}-")
            if not (part or not span.ranges or (span.start == 0 and size == str(span.length))):
                raise _no_ranges(span)
            if span.version not in (None, version):
                raise FileChangedError
            position = span.start if part else 0
            while piece := answer.read1(PIECE, decode_content=False):
                yield piece[max(0, span.start - position) : max(0, end - position)]
                position += len(piece)
            if position < end:
                raise EOFError(f"{end - position} bytes are missing")

    def glob(self, pattern: str) -> list[str]:
        """The URL itself, whose query may look like a pattern: a web server has no listing."""
        if re.search(r"[*\[]", str(Location(pattern)).partition("://")[2].partition("/")[2]):
            raise UsageError(f"{Location(pattern)}: a web server has no listing; use a brace list as in {{0..9}}")
        return [pattern]


class Hub(Web):
    """hf://datasets/USER/NAME@REVISION/PATH. The files are web pages; the Hub's own package finds and lists them."""

    def __init__(self, timeout: float) -> None:
        super().__init__(timeout)
        import huggingface_hub
        import huggingface_hub.utils

        self._hub: Any = huggingface_hub.HfFileSystem(skip_instance_cache=True)
        self._build_headers = huggingface_hub.utils.build_hf_headers
        self._page = cache(self._hub.url)
        self.transient = (Exception,)
        self.lasting = (*self.lasting, OSError, ValueError)  # the Hub's package raises these

    def locate(self, url: str) -> tuple[str, dict[str, str]]:
        """See Web."""
        return self._page(Location(url).reveal()), self._build_headers(token=self._hub.token)

    def glob(self, pattern: str) -> list[str]:
        """The files that match, as URLs."""
        return [f"hf://{name}" for name in self._hub.glob(Location(pattern).reveal())]


class Objects:
    """Object stores, by a package that has retries of its own, which are switched off or cut short."""

    lasting = ()
    limit: float | None = None  # seconds of a complete call
    transient: tuple[type[Exception], ...]

    def __init__(self, files: Any) -> None:
        """`files`: the package's file system."""
        from fsspec.asyn import sync

        self._files, self._sync = files, sync

    def _call(self, method: Any, url: str, **options: Any) -> Any:
        return self._sync(self._files.loop, method, Location(url).reveal(), timeout=self.limit, **options)

    def stat(self, url: str) -> RemoteStat:
        """Size and version."""
        info = self._call(self._files._info, url)
        if info["type"] != "file":
            raise IsADirectoryError(url)
        reported = (info.get(name) for name in ("generation", "ETag", "etag", "LastModified", "updated"))
        version = next((str(value) for value in reported if value), f"{info['size']} bytes")
        return RemoteStat(url=url, size=int(info["size"]), version=version)

    def read(self, span: Span) -> Iterator[bytes]:
        """See Web; it does not look at the version."""
        data = self._call(self._files._cat_file, span.url, start=span.start, end=span.start + span.length)
        if len(data) > span.length:
            raise _no_ranges(span)
        yield data
        if len(data) < span.length:
            raise EOFError(f"{span.length - len(data)} bytes are missing")

    def glob(self, pattern: str) -> list[str]:
        """The files that match, as URLs."""
        return [f"{protocol_of(pattern)}://{name}" for name in self._call(self._files._glob, pattern)]


class S3(Objects):
    """s3://, by s3fs."""

    def __init__(self, timeout: float) -> None:
        import botocore.exceptions
        import s3fs.core
        from fsspec.config import conf

        config = {"connect_timeout": timeout, "read_timeout": timeout, "max_pool_connections": IN_FLIGHT}
        config |= {"retries": {"total_max_attempts": 1}} | conf.get("s3", {}).get("config_kwargs", {})
        super().__init__(s3fs.core.S3FileSystem(config_kwargs=config, **UNCACHED))
        self._files.retries = 1
        self.transient = (botocore.exceptions.ConnectionError, *s3fs.core.S3_RETRYABLE_ERRORS)


class GoogleStorage(Objects):
    """gs://, by gcsfs."""

    def __init__(self, timeout: float) -> None:
        import gcsfs.core
        import gcsfs.retry

        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints the traceback of every error
        # proxies of the environment, as other programs do
        super().__init__(gcsfs.core.GCSFileSystem(session_kwargs={"trust_env": True}, **UNCACHED))
        self.limit = timeout  # in which it retries by itself
        self.transient = gcsfs.retry.RETRIABLE_EXCEPTIONS


def protocol_of(url: str) -> str:
    """'s3' of 's3://bucket/key'."""
    return url.partition("://")[0].lower()


def _no_ranges(span: Span) -> UserError:
    problem = "the server sends the complete file where a part was asked for"
    return UserError(f"{Location(span.url)}: {problem}; let it go through the cache")


Store = Web | Objects
STORES: dict[str, Callable[[float], Store]] = {"http": Web, "https": Web, "hf": Hub}
STORES |= {"s3": S3, "s3a": S3, "gs": GoogleStorage, "gcs": GoogleStorage}
"""By the scheme of a URL; given the seconds after which an attempt has failed."""
