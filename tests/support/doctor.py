"""The doctor on a machine that is busy with other things."""

import pytest
from support.waiting import LIMIT

from dcgan_dist.commands.doctor import command, ranks


def take_time(patch: pytest.MonkeyPatch) -> None:
    """No check and no answer of a rank is too late, and no rank too slow."""
    patch.setattr(command, "SECONDS", LIMIT)
    patch.setattr(command, "MARGIN", LIMIT)
    patch.setattr(command, "GROUP_TIMEOUT", LIMIT)
    patch.setattr(ranks, "ANSWER", LIMIT)
    patch.setattr(ranks, "SLOW", LIMIT)
    patch.setattr(ranks, "SECONDS", LIMIT)
