"""What a label is, in a .cls or .json member of a tar or in a table's cell: an integer, or the name of a class."""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcgan_dist.data.shards.index import NO_LABEL
from dcgan_dist.errors import UsageError

FIELDS = ("label", "labels", "class", "cls", "target", "fine_label")  # of JSON and of tables; the first one counts
DIGITS = 18  # a label has 64 bits
NUMBER = re.compile(r"[+-]?(\d+[.]?\d*|[.]\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)
LONGEST_NAME = 200  # characters; a longer text is a caption
CLASSES_LISTED, LONGEST_SHOWN = 20, 40  # classes in a line, characters of a name
PREFIX = "label:"  # of a number that is also the name of another class
ENCODING = ("utf-8", "surrogateescape")  # names of files that are not UTF-8 survive it


def read_label(data: bytes, suffix: str, fields: Sequence[str] = FIELDS) -> tuple[str, str]:
    """The label in a member of a tar, a number or a name, and '' or why it is unusable."""
    if suffix.rpartition(".")[2] != "json":
        return label_text(data.decode("utf-8-sig", errors="replace"))
    try:
        tree = json.loads(data, parse_int=str)  # int() refuses thousands of digits; label_text checks their number
    except (ValueError, RecursionError):
        return "", "no JSON"
    if isinstance(tree, dict):
        tree = next((tree[field] for field in fields if field in tree), None)
    return label_text(tree)


def label_text(value: Any) -> tuple[str, str]:
    """A value as a number or a name, and '' or why it is neither; two empty strings for None."""
    if value is None:
        return "", ""
    if isinstance(value, bool | int | float | np.number):
        return _number(value)
    if not isinstance(value, str):
        return "", f"a {type(value).__name__}"
    text = value.strip()
    if NUMBER.fullmatch(text):
        if not text.lstrip("+-").isdecimal():
            return _number(float(text))
        digits = text.lstrip("+-0")[: DIGITS + 1]  # int() takes at most 4,300 digits
        return _number(int(digits or 0) * (-1 if text[0] == "-" else 1))
    if len(text) > LONGEST_NAME or not text.isprintable():
        return "", "a long text" if len(text) > LONGEST_NAME else "no text"
    return text, ""


def is_number(text: str) -> bool:
    """Whether a label is a number."""
    return text.isascii() and text.isdecimal()


def _number(value: Any) -> tuple[str, str]:
    if not isinstance(value, int) and (not math.isfinite(value) or int(value) != value):  # a large int is no float
        return "", "no integer"
    if value < 0 or int(value) >= 10**DIGITS:
        return "", "a negative number" if value < 0 else f"a number of more than {DIGITS} digits"
    return str(int(value)), ""


def number_labels(texts: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels for the texts of one file ('': none), and the sorted texts that they are indices of if one is a word.

    common_numbering gives the words of all files their numbers.
    """
    found = sorted(set(texts) - {""})
    words = () if all(map(is_number, found)) else tuple(found)
    place = {text: number if words else int(text) for number, text in enumerate(found)} | {"": NO_LABEL}
    return np.array([place[text] for text in texts], dtype=np.int64), words


def number_names(names: Iterable[str], source: str) -> tuple[NDArray[np.int64], dict[int, str]]:
    """The label of every name, and the name of every label: see labels_of; names are numbered in sorted order.

    Raises UsageError, which names `source`, when two names are the same number.
    """
    seen: dict[str, int] = {}
    found = np.fromiter((seen.setdefault(name, len(seen)) for name in names), dtype=np.int64)
    ranked = sorted(seen, key=lambda name: name.encode(*ENCODING))
    classes: dict[int, str] = {}
    for label, name in zip(labels_of(ranked), ranked, strict=True):
        if (other := classes.setdefault(label, name)) != name:
            raise UsageError(f"{source}: the classes '{other}' and '{name}' are the same number; rename one of them")
    labels = {name: label for label, name in classes.items()}
    return np.array([labels[name] for name in seen], dtype=np.int64)[found], dict(sorted(classes.items()))


def labels_of(names: Sequence[str]) -> list[int]:
    """Numbers keep their number; words, and 01 beside 1 and words, get those above the largest, or the first free."""
    numbers = [int(name) if is_number(name) and len(name) <= DIGITS else None for name in names]
    known = Counter(numbers)
    if None in known:
        numbers = [None if known[n] > 1 and str(n) != name else n for n, name in zip(numbers, names, strict=True)]
    first = max((number for number in numbers if number is not None), default=-1) + 1
    start = first if first + numbers.count(None) <= 10**DIGITS else 0
    free = (number for number in count(start) if number not in known)
    return [next(free) if number is None else number for number in numbers]


def renumber(names: Sequence[str]) -> tuple[dict[int, int], dict[int, str]]:
    """The labels that a data set's labels 0, 1, .., of which it gives the names, get by labels_of, and their names.

    Where two names are the same number, all labels stay.
    """
    labels = labels_of(names)
    labels = labels if len(set(labels)) == len(names) else list(range(len(names)))
    return dict(enumerate(labels)), dict(sorted(zip(labels, names, strict=True)))


LabelMap = tuple[NDArray[np.int64], NDArray[np.int64]]
"""The labels that occur in a file, increasing, and their labels in the common numbering."""


def common_numbering(
    files: Sequence[tuple[NDArray[np.int64], Sequence[str]]], source: str
) -> tuple[list[LabelMap], dict[int, str]]:
    """One numbering, by number_names, for the labels of several files, and the name of every label.

    `files`: their labels, and the words that these are indices of, if they are words.
    """
    occurring = [np.unique(labels[labels != NO_LABEL]) for labels, _ in files]
    tables = zip(occurring, (words for _, words in files), strict=True)
    texts = [str(words[label]) if words else str(label) for own, words in tables for label in own.tolist()]
    found, classes = number_names(texts, source)
    ends = np.cumsum([len(own) for own in occurring])
    return list(zip(occurring, np.split(found, ends[:-1]), strict=True)), classes


def relabel(labels: NDArray[np.int64], table: LabelMap) -> NDArray[np.int64]:
    """The labels of a file in the common numbering."""
    given = labels != NO_LABEL
    found = np.full(len(labels), NO_LABEL, dtype=np.int64)
    found[given] = table[1][np.searchsorted(table[0], labels[given])]
    return found


def classes_text(classes: Mapping[int, str], labels: Sequence[int] | None = None) -> str:
    """Labels, all or some, with their names if they have one: '0 = cat, 1 = dog .. (1,000 classes)'."""
    shown = list(classes) if labels is None else labels
    text = ", ".join(_text(label, classes.get(label, "")) for label in shown[:CLASSES_LISTED])
    return text if len(shown) <= CLASSES_LISTED else f"{text} .. ({len(shown):,} classes)"


def numbering(classes: Mapping[int, str]) -> str:
    """Appended to a message: names that got a number that is not their own, and names that are easy to confuse."""
    words, text = [label for label, name in classes.items() if not is_number(name)], ""
    if 0 < len(words) < len(classes):
        share = f"{len(words):,} of {len(classes):,}"
        text = f"; numbers keep their number, other names get the next ones ({share}): {classes_text(classes, words)}"
    forms = Counter(_spelled(name).casefold() for name in classes.values())
    alike = [label for label, name in classes.items() if forms[_spelled(name).casefold()] > 1]
    text += f"; different classes with similar names: {classes_text(classes, alike)}" if alike else ""
    return text


def _text(label: int, name: str) -> str:
    plain = " ".join(name.split())
    short = plain if len(plain) <= LONGEST_SHOWN else f"{plain[:LONGEST_SHOWN]}.."
    return str(label) if short in ("", str(label)) else f"{label} = {short}"


def find_labels(texts: Sequence[str], classes: Mapping[int, str]) -> list[int]:
    """The labels of --data.classes, given as numbers or names, separated by commas or spaces.

    Raises UsageError for an unknown name, and for one that can mean several labels.
    """
    named: dict[str, list[int]] = {}
    for label, name in classes.items():
        named.setdefault(_spelled(name), []).append(label)
    words = [word for text in texts for word in ([text] if _spelled(text) in named else text.split(","))]
    return sorted({_find_label(_spelled(word), named, classes) for word in words if word.strip()})


def _spelled(name: str) -> str:
    """Normalised: file systems and keyboards encode letters with accents differently."""
    return unicodedata.normalize("NFC", name.strip())


def _find_label(word: str, named: Mapping[str, list[int]], classes: Mapping[int, str]) -> int:
    found = set(named.get(word, ()))
    number = word if found else word.removeprefix(PREFIX)
    if is_number(number):
        found.add(int(number))
    if len(found) == 1:
        return found.pop()
    have = f"there are {classes_text(classes)}" if classes else "no manifest.json beside the shards has names"
    problem = f"no class has this name; {have}"
    if found:
        problem = f"can mean several labels; write {' or '.join(f'{PREFIX}{label}' for label in sorted(found))}; {have}"
    raise UsageError(f"--data.classes {word}: {problem}")
