"""Messages: what prints one, and the numbers and lists in them."""

from collections.abc import Callable, Mapping, Sequence

Say = Callable[[str], None]  # prints a line
KINDS_LISTED = 8


def counted(count: int, noun: str, plural: str = "") -> str:
    """'1 shard', '1,024 shards', '2 classes'; `plural`: other than the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def listed(items: Sequence[object], most: int) -> str:
    """'a, b and 3 more'."""
    text = ", ".join(map(str, items[:most]))
    return text if len(items) <= most else f"{text} and {len(items) - most:,} more"


def count_text(counts: Mapping[str, int], noun: str, plural: str = "") -> str:
    """'12 other files (10 .txt, 2 hidden)'; the most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kinds = [f"{count:,} {kind[:80]}" for kind, count in ranked[:KINDS_LISTED]]
    if rest := sum(count for _, count in ranked[KINDS_LISTED:]):
        kinds.append(counted(rest, "other"))
    return f"{counted(sum(counts.values()), noun, plural)} ({', '.join(kinds)})"
