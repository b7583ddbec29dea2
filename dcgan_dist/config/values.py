"""Parsing of values; most functions raise ValueError with a message."""

import re
from decimal import Decimal, InvalidOperation
from pathlib import Path

DIGITS = 20  # at most: 1e999999999 would take for ever
SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
UNITS = {"": 1} | {
    letter + ending: (1024 if ending == "ib" else 1000) ** power
    for power, letter in enumerate("kmgt", 1)
    for ending in ("", "b", "ib")
}


def whole_number(text: str) -> int:
    """3, 2_000_000, 1e6, 2.5e3."""
    return _whole(text, text, 1, "must be an integer")


def byte_count(text: str) -> int:
    """Bytes, or 5GB and 1.5TB (powers of 1,000), or 5GiB (of 1,024)."""
    bare = text.strip().lower()
    unit = re.search(r"[a-z]*$", bare)
    assert unit is not None
    digits = bare.removesuffix(unit[0])
    return _whole(text, digits, UNITS.get(unit[0], 0), "must be a number of bytes, as in 5000000000, 5GB or 5GiB")


def _whole(text: str, digits: str, unit: int, rule: str) -> int:
    try:
        value = Decimal(digits)
    except InvalidOperation:
        value = Decimal("nan")
    if value.is_finite() and value.adjusted() >= DIGITS:
        raise ValueError(f"{quoted(text)}: {rule}, of at most {DIGITS} digits")
    if not value.is_finite() or not unit or value * unit % 1:
        raise ValueError(f"{quoted(text)}: {rule}")
    return int(value * unit)


def number(text: str) -> float:
    """1e-4, 0.5, 3."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{quoted(text)}: must be a number") from None


def name(text: str) -> str:
    """Text that is not empty: an unset shell variable must not mean a default or this folder."""
    if not text.strip():
        raise ValueError(f"{quoted(text)}: is empty; give a value, or leave it out")
    if "\0" in text:
        raise ValueError(f"{quoted(text)}: holds a NUL")
    return text


def path(text: str) -> Path:
    """The path of a file or folder, with ~."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise ValueError(f"{text}: is a URL; name a path on a disk")
    try:
        return Path(name(text)).expanduser()
    except RuntimeError:  # no such user
        return Path(text)


def quoted(text: str) -> str:
    """A value in a message: '' if it is empty."""
    return text if text.strip() and text.isprintable() else repr(text)
