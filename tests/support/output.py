"""What a run prints where there is no terminal: lines with times."""

import re

STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", re.MULTILINE)


def unstamped(text: str) -> str:
    """The same without the times."""
    return STAMP.sub("", text)
