"""What commands say alike."""


def counted(count: int, noun: str) -> str:
    """A number of things: `1 shard`, `1,024 shards`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
