"""How launched ranks report what they found, also where one of them, or the store, is gone."""

import signal
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from support.waiting import LIMIT

from dcgan_dist.commands.doctor import ranks
from dcgan_dist.commands.doctor.finding import Line
from dcgan_dist.errors import UserError


def gather(rank: int, size: int, what: str, lines: list[Line], seconds: float) -> list[Line]:
    world: Any = SimpleNamespace(rank=rank, size=size)
    return ranks.gather(world, what, lines, seconds)


def line(found: str) -> Line:
    return Line(mark="warn", check="disk", found=found, advice="a\nb", node="node7", seconds=1.5)


def test_all_ranks_have_the_lines_of_all(store):
    def act(rank: int) -> list[Line]:
        first = gather(rank, 3, "nodes", [line(f"of {rank}")] * rank, LIMIT)
        assert gather(rank, 3, "ranks", [], LIMIT) == []
        return first

    with ThreadPoolExecutor(3) as pool:
        heard = list(pool.map(act, range(3)))
    assert heard == [[line("of 1"), line("of 2"), line("of 2")]] * 3


def test_a_rank_that_does_not_report_is_named(store):
    ours, nothing = gather(0, 2, "nodes", [line("ours")], 0.3)
    assert ours == line("ours")
    assert (nothing.mark, nothing.check, nothing.hung) == ("FAIL", "ranks", True)
    assert nothing.found == "rank 1 did not report within 0 s"


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_store_that_does_not_answer_holds_up_no_rank(store, monkeypatch, number):
    monkeypatch.setattr(ranks, "ANSWER", 1.0)
    connect = ranks.connect

    def and_then_gone(purpose: str, seconds: float) -> Any:
        connection = connect(purpose, seconds)
        store.send_signal(number)
        return connection

    monkeypatch.setattr(ranks, "connect", and_then_gone)
    with pytest.raises(UserError, match=r"^the launcher's store is gone: .* has ended or hangs \("):
        gather(0, 2, "nodes", [], 10 * LIMIT)
    monkeypatch.setattr(ranks, "connect", connect)
    with pytest.raises(UserError, match=r"^the launcher's store is gone: "):
        gather(1, 2, "nodes", [], 10 * LIMIT)
