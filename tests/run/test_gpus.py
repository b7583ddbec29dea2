"""The GPU of each rank in the reports, with a driver that gives known numbers; a gpu test asks the real one."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from dcgan_dist.run.dashboard import NAMED
from dcgan_dist.run.gpus import GpuReport

GB = 2**30


def report(world, say=print):
    return GpuReport(cast(Any, world), say)


class World:
    """Two ranks that see the same driver; `device` says cuda, its tables stay on the CPU."""

    device = SimpleNamespace(type="cuda")
    rank = 0

    def __init__(self, others):
        self.others = torch.tensor(others, dtype=torch.float64)
        self.size = len(others) + 1

    def sum_(self, table):
        table[1:] = self.others
        return table


@pytest.fixture
def driver(monkeypatch):
    load = [70]
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, dtype, device: zeros(*shape, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 * GB, 8 * GB))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 2 * GB)
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: load[0])
    return load


def test_most_memory_and_least_load_of_all_ranks_and_of_each(driver):
    assert report(World([[75, 30], [50, 100]])).values() == {
        "gpu/memory_percent": 75, "gpu/memory_percent/rank_0": 25, "gpu/memory_percent/rank_1": 75,
        "gpu/memory_percent/rank_2": 50,
        "gpu/utilization_percent": 30, "gpu/utilization_percent/rank_0": 70, "gpu/utilization_percent/rank_1": 30,
        "gpu/utilization_percent/rank_2": 100,
    }  # fmt: skip


def test_of_many_ranks_the_first_have_curves_of_their_own(driver):
    values = report(World([[75, 30]] * 99)).values()
    assert len(values) == 2 + 2 * NAMED
    assert values["gpu/utilization_percent"] == 30


def test_without_the_package_the_memory_is_left_and_one_line(driver, monkeypatch):
    def missing(_):
        raise ModuleNotFoundError("pynvml does not seem to be installed\nor it is broken")

    monkeypatch.setattr(torch.cuda, "utilization", missing)
    said = []
    gpus = report(World([[75, 30]]), said.append)
    for _ in range(2):
        assert set(gpus.values()) == {
            "gpu/memory_percent", "gpu/memory_percent/rank_0", "gpu/memory_percent/rank_1",
        }  # fmt: skip
    assert said == [
        "the load of the GPUs is not in the reports: pynvml does not seem to be installed (pip install nvidia-ml-py)"
    ]


def test_there_is_nothing_to_report_on_cpus():
    assert report(SimpleNamespace(device=torch.device("cpu"))).values() == {}
