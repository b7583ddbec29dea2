"""The limits of this process's control groups (Linux): how containers, SLURM and systemd divide CPUs and memory."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

OWN, MOUNTS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cpu_quotas() -> Iterator[float]:
    """In cores, of every group of this process that has one. No limit is "max" in version 2, and -1 in version 1."""
    for group in _groups("cpu"):
        with suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            yield int(quota) / int(period)
        with suppress(OSError, ValueError):
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:
                yield int(quota) / int(period)


def memory_limits() -> Iterator[tuple[float, float]]:
    """Bytes: the limit of every group of this process that has one, and what is left of it."""
    for group in _groups("memory"):
        for limit, used in (("max", "current"), ("limit_in_bytes", "usage_in_bytes")):
            with suppress(OSError, ValueError):
                most = float((group / f"memory.{limit}").read_text())
                yield most, most - float((group / f"memory.{used}").read_text()) + _page_cache(group)


def _page_cache(group: Path) -> float:
    """Bytes of files that are held in memory while nobody else wants it; they count as used."""
    with suppress(OSError, ValueError):
        numbers = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return float(numbers.get("total_inactive_file", numbers.get("inactive_file", 0)))
    return 0.0


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the groups that this process is in, each followed by those above it."""
    with suppress(OSError):
        for line in OWN.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            root = MOUNTS / controllers  # version 2 has no controllers in this file, and no folder for them
            # a container may see itself at the root of the mount, whatever its group is called outside
            inside = root / group.strip("/")
            yield from dict.fromkeys((inside, *inside.parents[: len(inside.parts) - len(root.parts)], root))
