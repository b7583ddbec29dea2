"""How the ranks of a launched doctor tell each other what they found, also where one of them, or the store, is gone."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from support.waiting import LIMIT

from dcgan_dist.commands.doctor import exchange as module
from dcgan_dist.commands.doctor.exchange import Exchange
from dcgan_dist.commands.doctor.table import Line
from dcgan_dist.errors import UserError


def exchange(rank: int, size: int = 3) -> Exchange:
    world: Any = SimpleNamespace(rank=rank, size=size)
    return Exchange(world)


def line(found: str) -> Line:
    return Line(mark="warn", check="disk", found=found, advice="a\nb", node="node7", seconds=1.5, hung=False)


def test_all_ranks_hear_all_lines_and_the_main_one_is_the_first_that_has_said_everything(store):
    order: list[int] = []

    def act(rank: int) -> list[list[Line]]:
        each = exchange(rank)
        first = each.gather("nodes", [line(f"of {rank}")] * rank, LIMIT)
        assert each.gather("ranks", [], LIMIT) == [[], [], []]
        if rank == 0:
            time.sleep(0.5)  # it prints
            order.append(rank)
        each.end()
        order.append(rank)
        return first

    with ThreadPoolExecutor(3) as pool:
        heard = list(pool.map(act, range(3)))
    assert heard == [[[line(f"of {rank}")] * rank for rank in range(3)]] * 3
    assert order[0] == 0


def test_a_rank_that_says_nothing_is_named(store):
    (ours,), (nothing,) = exchange(0, 2).gather("nodes", [line("ours")], 0.3)
    assert ours == line("ours")
    assert (nothing.mark, nothing.check, nothing.hung) == ("FAIL", "ranks", True)
    assert nothing.found == "rank 1 has not said within 0 s what it found"


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_store_that_does_not_answer_keeps_nobody(store, monkeypatch, number):
    main = exchange(0, 2)
    monkeypatch.setattr(module, "ANSWER", 1.0)
    store.send_signal(number)
    with pytest.raises(UserError, match=r"^the launcher's store is gone: .* has ended or hangs \("):
        main.gather("nodes", [], 10 * LIMIT)
    main.end()
    with pytest.raises(UserError, match=r"^the launcher's store is gone: "):
        exchange(1, 2)
