"""The doctor on a machine that is busy with other things."""

from dataclasses import replace

import pytest
from support.waiting import LIMIT

from dcgan_dist.commands.doctor import command, exchange, ranks, spawn


def take_time(patch: pytest.MonkeyPatch) -> None:
    """No check and no answer of a rank is too late, and no rank too slow."""
    for name, check in command.CHECKS.items():
        patch.setitem(command.CHECKS, name, replace(check, seconds=LIMIT))
    patch.setattr(command, "MARGIN", LIMIT)
    patch.setattr(command, "GROUP_TIMEOUT", LIMIT)
    patch.setattr(exchange, "ANSWER", LIMIT)
    patch.setattr(exchange, "LINGER", LIMIT)
    patch.setattr(ranks, "SLOW", LIMIT)
    patch.setattr(ranks, "LATE", LIMIT)
    patch.setattr(spawn, "SECONDS", LIMIT)
