"""Which errors of remote files are transient, and the error for the user."""

import re
from http.client import responses

from dcgan_dist.data.remote.stores import FileChangedError, Store, protocol_of
from dcgan_dist.errors import UserError
from dcgan_dist.location import Location

TRANSIENT = (408, 425, 429)  # and 5xx
PERMANENT = (UserError, FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError)
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or FSSPEC_S3_ANON=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or FSSPEC_GS_TOKEN=anon for a public bucket",
    "hf": "set HF_TOKEN, and accept the data set's terms on its page",
}
CREDENTIALS |= {"s3a": CREDENTIALS["s3"], "gcs": CREDENTIALS["gs"]}
EXPLAINED: tuple[tuple[type[Exception] | tuple[()], tuple[int, ...], str, str], ...] = (
    (FileChangedError, (), "was replaced by another version after the start", "start again, or put the old file back"),
    (FileNotFoundError, (404, 410), "no such file or bucket", "check the name"),
    (IsADirectoryError, (), "is a folder", "name the shards in it, as in '/*.tar'"),
    ((), (416,), "the file ends before the bytes that were asked for", "it was replaced: start the run again"),
)
"""Errors, HTTP statuses, what happened, and what to do."""
NETWORK = "check the server and the network"


def is_transient(error: Exception, store: Store) -> bool:
    """Whether the next attempt may succeed."""
    if isinstance(error, PERMANENT):
        return False
    if status := status_of(error):
        return status in TRANSIENT or status >= 500
    of_store = isinstance(error, store.transient) and not isinstance(error, store.lasting)
    return of_store or isinstance(error, (FileChangedError, TimeoutError, ConnectionError, EOFError))


def failure(error: Exception, url: str, timeout: float, attempts: int = 1) -> UserError:
    """The error for the user."""
    if isinstance(error, UserError):
        return error
    what, advice = _explain(error, Location(url), timeout)
    tried = f"; tried {attempts} times" if attempts > 1 else ""
    return UserError(f"{Location(url)}: {what}{tried}; {advice}")


def _explain(error: Exception, url: Location, timeout: float) -> tuple[str, str]:
    """What happened, and what to do."""
    status, kind = status_of(error), type(error).__name__
    for kinds, statuses, what, advice in EXPLAINED:
        if isinstance(error, kinds) or status in statuses:
            return what, advice
    if isinstance(error, PermissionError) or status in (401, 403) or "Credential" in kind:
        what = f"access denied ({status})" if status else "access denied, or no credentials"
        return what, CREDENTIALS.get(protocol_of(url), "check user, password (and ~/.netrc) or signature")
    if isinstance(error, TimeoutError) or "Timeout" in kind:
        return f"no answer within {timeout:g} s", NETWORK
    if status is not None:
        phrase = responses.get(status, "unknown")
        return f"the server answers {status} ({phrase})", "try again later, or ask who runs the server"
    if isinstance(error, EOFError):
        return f"the answer ends early ({error})", NETWORK
    text = " ".join(url.hide_in(str(error)).split())[:200]
    return f"{kind}: {text}" if text else kind, NETWORK


def status_of(error: BaseException) -> int | None:
    """The HTTP status in an error of Web, botocore (also as s3fs translates it), gcsfs or huggingface_hub."""
    for source in filter(None, (error, error.__cause__)):
        response, own = getattr(source, "response", None), vars(source)
        botocore = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        for value in (botocore, getattr(response, "status_code", None), own.get("status"), own.get("code")):
            if re.fullmatch(r"[345]\d\d", str(value)):
                return int(str(value))
    return None
