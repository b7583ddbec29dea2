"""How many CPU cores a process may use."""

import os

import pytest

from dcgan_dist.data.system import cgroups
from dcgan_dist.data.system.workers import available_cores

CORES = 16


@pytest.fixture
def cores(tmp_path, monkeypatch):
    """What is found for the lines of /proc/self/cgroup, with files under /sys/fs/cgroup."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)), raising=False)
    monkeypatch.setattr(cgroups, "OWN", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "MOUNTS", tmp_path / "fs")

    def cores(lines: str, files: dict[str, str]) -> int:
        for name, text in files.items():
            (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "fs" / name).write_text(f"{text}\n")
        (tmp_path / "cgroup").write_text(lines)
        return available_cores()

    return cores


V1 = "4:memory:/job\n3:cpu,cpuacct:/job/step\n2:cpuset:/\n0::/init.scope\n"


@pytest.mark.parametrize(
    ("lines", "files", "found"),
    [
        ("0::/\n", {}, CORES),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "max 100000"}, CORES),
        ("0::/a/b\n", {"a/b/cpu.max": "200000 100000"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "500000 100000", "a/cpu.max": "max 100000", "cpu.max": "400000 100000"}, 4),
        ("0::/a\n", {"a/cpu.max": "150000 100000"}, 2),
        ("0::/a\n", {"a/cpu.max": "10000 100000"}, 1),
        ("0::/a\n", {"a/cpu.max": "9900000 100000"}, CORES),
        # a container that has its own view of the files, and not of the names
        ("0::/docker/4f\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/../../x\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/a\n", {"a/cpu.max": "nonsense"}, CORES),
        (
            V1,
            {"cpu,cpuacct/job/step/cpu.cfs_quota_us": "-1", "cpu,cpuacct/job/step/cpu.cfs_period_us": "100000"},
            CORES,
        ),
        (V1, {"cpu,cpuacct/job/step/cpu.cfs_quota_us": "250000", "cpu,cpuacct/job/step/cpu.cfs_period_us": "50000"}, 5),
        (V1, {"cpu,cpuacct/job/cpu.cfs_quota_us": "600000", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"}, 6),
        (V1, {"memory/job/cpu.max": "100000 100000", "cpuset/cpu.max": "100000 100000"}, CORES),
    ],
)
def test_quotas_of_control_groups_are_seen(cores, lines, files, found):
    assert cores(lines, files) == found


def test_fewer_cores_than_the_quota_stay_as_few(cores, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert cores("0::/a\n", {"a/cpu.max": "400000 100000"}) == 1


def test_a_system_without_groups_has_its_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "OWN", tmp_path / "none")
    assert available_cores() == len(os.sched_getaffinity(0))
