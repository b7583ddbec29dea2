"""Which errors of remote files are transient, how long to wait for the next attempt, and the message at the end."""

import random
import re
from http.client import responses

from dcgan_dist.data.remote.stores import FileChangedError, Store, protocol_of
from dcgan_dist.errors import UserError
from dcgan_dist.location import Location

LONGEST_PAUSE = 30.0  # seconds
ENOUGH = 64 * 2**10  # bytes after which an attempt counts as progress
TRANSIENT = (408, 425, 429)  # and 5xx
PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError)
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or FSSPEC_S3_ANON=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or FSSPEC_GS_TOKEN=anon for a public bucket",
    "hf": "set HF_TOKEN, and accept the data set's terms on its page",
}
CREDENTIALS |= {"s3a": CREDENTIALS["s3"], "gcs": CREDENTIALS["gs"]}
EXPLAINED: dict[type[Exception], tuple[str, str]] = {
    FileChangedError: ("was replaced by another version after the start", "start again, or put the old file back"),
    FileNotFoundError: ("no such file or bucket", "check the name"),
    IsADirectoryError: ("is a folder", "name the shards in it, as in '/*.tar'"),
}


class Retry:
    """The attempts of one request: `after(error)` gives the seconds to wait before the next, or ends it."""

    def __init__(self, store: Store, url: str, timeout: float, *, retries: int, pause: float) -> None:
        self._store, self._url, self._timeout = store, Location(url), timeout
        self._retries, self._pause = retries, pause
        self._failed = 0

    def after(self, error: Exception, progress: int = 0) -> float:
        """Seconds to wait.

        Args:
            error: what ended the attempt.
            progress: bytes that it received, so that a server that cuts every connection still gives the file.

        Raises UserError when the error is permanent, or occurred too often.
        """
        self._failed = 1 if progress >= ENOUGH else self._failed + 1
        retries = min(1, self._retries) if isinstance(error, FileChangedError) else self._retries
        if not self._transient(error) or self._failed > retries:
            raise self.failure(error) from None  # the text of its cause may hold a signed URL
        return min(LONGEST_PAUSE, self._pause * 2 ** (self._failed - 1)) * random.uniform(0.5, 1)

    def failure(self, error: Exception) -> UserError:
        """The error for the user."""
        if isinstance(error, UserError):
            return error
        what, advice = self._explain(error)
        attempts = f"; tried {self._failed} times" if self._failed > 1 else ""
        return UserError(f"{self._url}: {what}{attempts}; {advice}")

    def _transient(self, error: Exception) -> bool:
        if isinstance(error, PERMANENT):
            return False
        if status := status_of(error):
            return status in TRANSIENT or status >= 500
        known = (FileChangedError, TimeoutError, ConnectionError, EOFError)
        return isinstance(error, known) or self._store.transient(error)

    def _explain(self, error: Exception) -> tuple[str, str]:
        """What happened, and what to do."""
        status, kind = status_of(error), type(error).__name__
        if texts := next((texts for known, texts in EXPLAINED.items() if isinstance(error, known)), None):
            return texts
        if status in (404, 410):
            return EXPLAINED[FileNotFoundError]
        if status == 416:
            return "the file ends before the bytes that were asked for", "it was replaced: start the run again"
        if isinstance(error, PermissionError) or status in (401, 403) or "Credential" in kind:
            what = f"access denied ({status})" if status else "access denied, or no credentials"
            return what, CREDENTIALS.get(protocol_of(self._url), "check user, password (and ~/.netrc) or signature")
        if isinstance(error, TimeoutError) or "Timeout" in kind:
            return f"no answer within {self._timeout:g} s", "check the server and the network"
        if status is not None:
            phrase = responses.get(status, "unknown")
            return f"the server answers {status} ({phrase})", "try again later, or ask who runs the server"
        what = f"the answer ends early ({error})" if isinstance(error, EOFError) else self._text(error)
        return what, "check the server and the network"

    def _text(self, error: Exception) -> str:
        """One line of somebody else's error."""
        text = " ".join(self._url.hide_in(str(error)).split())[:200]
        return f"{type(error).__name__}: {text}" if text else type(error).__name__


def status_of(error: BaseException) -> int | None:
    """The HTTP status in an error of Web, botocore (also as s3fs translates it), gcsfs or huggingface_hub."""
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
