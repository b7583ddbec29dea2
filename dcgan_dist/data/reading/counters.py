"""What the loader counts."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class Counters:
    """What was read; adds up over threads, processes and ranks."""

    images: int = 0
    bytes: int = 0  # size of the images in the shards
    substituted: int = 0  # positions that got another image, because theirs is damaged
    from_cache: int = 0  # images of remote shards that came from the node's cache
    from_remote: int = 0  # images of remote shards that were read by range requests

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(**{name: value + getattr(other, name) for name, value in vars(self).items()})
