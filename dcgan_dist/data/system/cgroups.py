"""Limits of this process's control groups (Linux), by which containers, SLURM and systemd divide CPUs and memory."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

OWN, MOUNTS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cpu_quotas() -> Iterator[float]:
    """CPU quotas in cores, of every group of this process that has one ("max" in version 2, -1 in version 1: none)."""
    for group in _groups("cpu"):
        with suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            yield int(quota) / int(period)
        with suppress(OSError, ValueError):
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:
                yield int(quota) / int(period)


def memory_limits() -> Iterator[tuple[float, float]]:
    """Limit and free memory in bytes, of every group of this process that has a limit."""
    for group in _groups("memory"):
        for limit, used in (("max", "current"), ("limit_in_bytes", "usage_in_bytes")):
            with suppress(OSError, ValueError):
                most = float((group / f"memory.{limit}").read_text())
                yield most, most - float((group / f"memory.{used}").read_text()) + _page_cache(group)


def _page_cache(group: Path) -> float:
    """Bytes of reclaimable page cache, which the group counts as used."""
    with suppress(OSError, ValueError):
        numbers = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return float(numbers.get("total_inactive_file", numbers.get("inactive_file", 0)))
    return 0.0


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the groups of this process, each followed by its parents."""
    with suppress(OSError):
        for line in OWN.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            root = MOUNTS / controllers  # version 2 has no controllers in this file, and no folder for them
            # a container may see its own group at the root of the mount
            inside = root / group.strip("/")
            yield from dict.fromkeys((inside, *inside.parents[: len(inside.parts) - len(root.parts)], root))
