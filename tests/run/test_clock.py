import pytest
import torch

from dcgan_dist.run import clock as module
from dcgan_dist.run.clock import Clock


@pytest.fixture
def time(monkeypatch):
    """A clock's time, moved by hand."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_the_time_of_an_iteration_is_split_and_adds_up(time):
    clock = Clock(torch.device("cpu"))
    for _ in range(4):
        for name, seconds in (("data", 1.0), ("g", 2.0), ("d", 3.0), ("g", 0.5)):
            with clock.section(name, on_device=name != "data"):
                time[0] += seconds
        time[0] += 0.25
        clock.tick()
    values = clock.read()
    assert values.pop("time/data_percent") == pytest.approx(100 / 6.75)
    assert values == {"time/data": 1.0, "time/g": 2.5, "time/d": 3.0, "time/other": 0.25}


def test_a_reading_starts_at_0(time):
    clock = Clock(torch.device("cpu"))
    with clock.section("data"):
        time[0] += 5
    clock.tick()
    clock.read()
    time[0] += 3
    clock.tick()
    assert clock.read() == {"time/other": 3.0, "time/data_percent": 0.0}
    assert clock.read() == {"time/other": 0.0, "time/data_percent": 0.0}
