"""What the benchmarks measure with."""

import subprocess
import sys

from benchmarks.measure import interleave, summary
from benchmarks.turns import Turn, cpu_seconds


def test_turns_rotate_and_medians_count():
    order = []

    def contender(name, seconds):
        lengths = iter(seconds)
        return lambda: order.append(name) or Turn(10, next(lengths), 1e-3)

    contenders = {name: contender(name, seconds) for name, seconds in {"a": (1, 2, 100), "b": (5, 5, 5)}.items()}
    turns = interleave(contenders, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    rows = {name: summary(turns[name], turns["b"]) for name in turns}
    assert [row["images_per_second"] for row in rows.values()] == [5, 2]
    assert [row["wall_ratio"] for row in rows.values()] == [2.5, 1]
    assert rows["a"]["cpu_us_per_image"] == 100


def test_cpu_time_of_children_counts_while_they_live_and_afterwards():
    work = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True); input()"
    before = cpu_seconds()
    child = subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout
        child.stdout.readline()
        alive = cpu_seconds() - before
        child.communicate("\n")
    assert alive > 0.45
    assert 0.45 < cpu_seconds() - before < 5
