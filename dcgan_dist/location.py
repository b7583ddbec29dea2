"""Places of data: paths, URLs and commands, as text without secrets."""

import os
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*:/+"  # pathlib makes one slash of two
_USER = re.compile(r"^(?:[^/?#]*|[^/?#@]*:(?!\d*/).*)@", re.DOTALL)  # a password may hold a / that should be encoded
_PIPE = re.compile(r"((?:^|[={,])\s*['\"]?pipe:)(?:([\w./+-]+)(?!\S))?\s*(.*)", re.DOTALL)
_BETWEEN_WORDS = re.compile(r"""[\s'"`=?&#@/:;,(){}<>|]+""")
_SECRET_NAME = re.compile("TOKEN|SECRET|PASSW|KEY(_ID)?$")  # of environment variables
_ADDRESS_NAME = re.compile("(PROXY|URL|ENDPOINT)$", re.IGNORECASE)
_LONG = 6  # minimum characters of a token, key or password


class Location(str):
    """A path, a URL or a `pipe:` command.

    The str is what may be shown: a URL without user, password, query and fragment, and of a command only the name of
    the program. So output and files hold no secret; code that opens the place calls `reveal`. Equality and hash are
    those of the revealed text.
    """

    __slots__ = ("_text",)
    _text: str

    def __new__(cls, text: str) -> "Location":
        """`text`: from the user, or a Location."""
        if isinstance(text, cls):
            return text
        self = super().__new__(cls, _shown(text))
        self._text = text
        return self

    def reveal(self) -> str:
        """The text from the user."""
        return self._text

    @property
    def secret(self) -> bool:
        """Whether it has parts that are not shown."""
        return self._text != str(self)

    def hide_in(self, text: str) -> str:
        """A message of another program, without the words of this place that are not shown."""
        words = _words(f"{self._text} {unquote(self._text)}") - _words(self)
        return redacted(_without(words, text))

    def __eq__(self, other: object) -> bool:
        return self._text == (other._text if isinstance(other, Location) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._text)

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self._text,)


def redacted(text: str, *given: str) -> str:
    """Any text without secrets of URLs, and without tokens and keys in the environment.

    `given`: words of the command line, which the text may quote, also broken into lines or as paths. Commands are found
    only through these.
    """
    words = (part for word in given for part in (word, word.partition("=")[2]))
    for place in filter(lambda place: place.secret, map(Location, words)):
        letters = re.sub("/+", "/", "".join(place.reveal().split()))
        quoted = r"\s*".join("/+" if letter == "/" else re.escape(letter) for letter in letters)
        text = re.sub(quoted, str(place).replace("\\", r"\\"), text)
    hidden: set[str] = set()
    for name, value in os.environ.items():
        if value[:1] != "/" and _SECRET_NAME.search(name):
            hidden.add(value.strip())
        elif name.startswith("FSSPEC_") and value[:1] == "{":  # for example headers; words of letters are their names
            hidden |= {word for word in _words(value) if not word.replace("_", "").replace("-", "").isalpha()}
        elif "@" in value and _ADDRESS_NAME.search(name):
            hidden |= _words(value.rpartition("@")[0]) - {"http", "https"}
    text = _without((word for word in hidden if len(word) >= _LONG), text)
    return re.sub(rf"{_SCHEME}[^\s'\"<>]+", lambda match: _shown(match[0]), text)


def _words(text: str) -> set[str]:
    return set(_BETWEEN_WORDS.split(text))


def _without(words: Iterable[str], text: str) -> str:
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, "***") if len(word) > 3 else text
    return text


def _shown(text: str) -> str:
    if "pipe:" in text:
        text = _PIPE.sub(lambda match: match[1] + " ".join(filter(None, (match[2], match[3] and "..."))), text)
    match = re.search(_SCHEME, text) if ":/" in text else None
    if match is None:
        return text
    shown = text[: match.end()]
    for part in re.split(r"((?<=[{,])\w+://)", text[match.end() :]):  # a brace list may hold several URLs
        path, *query = re.split("[?#]", _USER.sub("", part), maxsplit=1)
        shown += path
        if query:
            break
    return shown
