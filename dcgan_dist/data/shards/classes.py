"""Classes of images: their labels, and the names that the manifest.json beside some shards gives them."""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from dcgan_dist.data.remote.client import base_name
from dcgan_dist.data.shards.labels import is_number
from dcgan_dist.data.shards.manifest import Manifest
from dcgan_dist.errors import UsageError

LISTED = 20  # classes in a line
LONGEST = 40  # characters of a name in a line
LABEL = "label:"  # in front of a number that is also the name of another class


def names_in(manifest: Manifest | None, shards: Sequence[str]) -> dict[int, str]:
    """The names of labels by a manifest; none if it is not that of these shards."""
    if manifest is None or not {base_name(name) for name in shards} <= {shard.name for shard in manifest.shards}:
        return {}
    return {entry.label: entry.name for entry in manifest.classes if entry.name is not None}


def classes_text(classes: Mapping[int, str], labels: Sequence[int] | None = None) -> str:
    """Labels, all or some, with the names of those that have one, for a line: '0 = cat, 1 = dog .. (1,000 classes)'."""
    shown = list(classes) if labels is None else labels
    text = ", ".join(_text(label, classes.get(label, "")) for label in shown[:LISTED])
    return text if len(shown) <= LISTED else f"{text} .. ({len(shown):,} classes)"


def numbering(classes: Mapping[int, str]) -> str:
    """End of a line: which names got a number that is not their own, and which are easy to confuse; or nothing."""
    words, text = [label for label, name in classes.items() if not is_number(name)], ""
    if 0 < len(words) < len(classes):
        text = "; numbers keep their number, and names that are none get the ones above "
        text += f"({len(words):,} of {len(classes):,}): {classes_text(classes, words)}"
    forms = Counter(_spelled(name).casefold() for name in classes.values())
    alike = [label for label, name in classes.items() if forms[_spelled(name).casefold()] > 1]
    text += f"; classes apart, though written alike: {classes_text(classes, alike)}" if alike else ""
    return text


def _text(label: int, name: str) -> str:
    plain = " ".join(name.split())
    short = plain if len(plain) <= LONGEST else f"{plain[:LONGEST]}.."
    return str(label) if short in ("", str(label)) else f"{label} = {short}"


def find_labels(texts: Sequence[str], classes: Mapping[int, str]) -> list[int]:
    """The labels that --data.classes names by numbers and names, separated by commas or by spaces.

    Raises UsageError for a name that is not known, and for what can mean several labels.
    """
    named: dict[str, list[int]] = {}
    for label, name in classes.items():
        named.setdefault(_spelled(name), []).append(label)
    words = [
        word for text in texts for word in ([text] if _spelled(text) in named else text.split(",")) if word.strip()
    ]
    return sorted({_find_label(_spelled(word), named, classes) for word in words})


def _spelled(name: str) -> str:
    """Letters with accents can be written in two ways, of which file systems and keyboards have their own."""
    return unicodedata.normalize("NFC", name.strip())


def _find_label(word: str, named: Mapping[str, list[int]], classes: Mapping[int, str]) -> int:
    found = set(named.get(word, ()))
    number = word if found else word.removeprefix(LABEL)
    if is_number(number):
        found.add(int(number))
    if len(found) == 1:
        return found.pop()
    have = f"there are {classes_text(classes)}" if classes else "no manifest.json beside the shards has names"
    problem = f"no class has this name; {have}"
    if found:
        problem = f"can mean several labels; write {' or '.join(f'{LABEL}{label}' for label in sorted(found))}; {have}"
    raise UsageError(f"--data.classes {word}: {problem}")
