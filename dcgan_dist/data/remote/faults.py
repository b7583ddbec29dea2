"""Which faults of remote files pass by themselves, how long to wait for that, and what the user is told at the end."""

import random
import re
from http import HTTPStatus

from dcgan_dist.data.remote.stores import (
    FileChangedError,
    NoRangesError,
    NoSizeError,
    Store,
    protocol_of,
)
from dcgan_dist.errors import UserError
from dcgan_dist.location import Location

LONGEST_PAUSE = 30.0  # seconds
ENOUGH = 64 * 2**10  # bytes after which a try counts as progress
PASSING = (408, 425, 429)  # and 5xx
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, NoRangesError, NoSizeError)
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or FSSPEC_S3_ANON=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or FSSPEC_GS_TOKEN=anon for a public bucket",
    "hf": "set HF_TOKEN, and accept the data set's terms on its page",
}
CREDENTIALS |= {"s3a": CREDENTIALS["s3"], "gcs": CREDENTIALS["gs"]}
EXPLAINED: dict[type[Exception], tuple[str, str]] = {
    FileChangedError: ("another version than at the start of the run", "start the run again, or put the old file back"),
    NoRangesError: ("the server sends the whole file where a part was asked for", "let it go through the cache"),
    NoSizeError: ("the server does not say how long the file is", "copy it to another server or to a disk"),
    FileNotFoundError: ("no such file or bucket", "check the name"),
    IsADirectoryError: ("is a folder", "name the shards in it, as in '/*.tar'"),
}


class Patience:
    """The tries of one request: `after(error)` gives the seconds to wait before the next, or ends it."""

    def __init__(self, store: Store, url: str, timeout: float, *, retries: int, pause: float) -> None:
        self._store, self._url, self._timeout = store, Location(url), timeout
        self._retries, self._pause = retries, pause
        self._failed = 0

    def after(self, error: Exception, progress: int = 0) -> float:
        """Seconds to wait.

        Args:
            error: what ended the try.
            progress: bytes that it brought. A server that cuts every connection after a while gives the file too.

        Raises UserError when the fault lasts, or was met too often.
        """
        self._failed = 1 if progress >= ENOUGH else self._failed + 1
        if not self._passes(error) or self._failed > self._retries:
            what, advice = self._explain(error)
            tries = "" if self._failed == 1 else f"; tried {self._failed} times"
            # without the cause: its text may hold a signed URL
            raise UserError(f"{self._url}: {what}{tries}; {advice}") from None
        return min(LONGEST_PAUSE, self._pause * 2 ** (self._failed - 1)) * random.uniform(0.5, 1)

    def _passes(self, error: Exception) -> bool:
        if isinstance(error, LASTING):
            return False
        status = status_of(error)
        if status is not None:
            return status in PASSING or status >= 500
        if isinstance(error, (FileChangedError, TimeoutError, ConnectionError, EOFError)):
            return True
        return self._store.passes(error)

    def _explain(self, error: Exception) -> tuple[str, str]:
        """What happened, and what to do."""
        status, kind = status_of(error), type(error).__name__
        for known, texts in EXPLAINED.items():
            if isinstance(error, known):
                return texts
        if status in (404, 410):
            return EXPLAINED[FileNotFoundError]
        if status == 416:
            return "the file ends before the bytes that were asked for", "it was replaced: start the run again"
        if isinstance(error, PermissionError) or status in (401, 403) or "Credential" in kind:
            what = f"access denied ({status})" if status else "access denied, or no credentials"
            return what, CREDENTIALS.get(protocol_of(self._url), "check user, password or signature")
        if isinstance(error, TimeoutError) or "Timeout" in kind:
            return f"no answer within {self._timeout:g} s", "check the server and the network"
        if status is not None:
            return f"the server answers {status} ({_phrase(status)})", "try again later, or ask who runs the server"
        what = f"the answer ends early ({error})" if isinstance(error, EOFError) else self._text(error)
        return what, "check the server and the network"

    def _text(self, error: Exception) -> str:
        """One line of somebody else's error."""
        text = " ".join(self._url.hide_in(str(error)).split())[:200]
        return f"{type(error).__name__}: {text}" if text else type(error).__name__


def status_of(error: BaseException) -> int | None:
    """The HTTP status in an error of aiohttp, botocore (also as s3fs translates it), gcsfs or huggingface_hub."""
    for source in (error, error.__cause__):
        response = getattr(source, "response", None)
        if isinstance(response, dict):
            values = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
        else:
            own = getattr(source, "__dict__", {})
            values = [getattr(response, "status_code", None), own.get("status"), own.get("code")]
        for value in values:
            if re.fullmatch(r"[345]\d\d", str(value)):
                return int(str(value))
    return None


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown"
