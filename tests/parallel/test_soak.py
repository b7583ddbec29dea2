"""A run of 300 steps that is struck seven times: by the benchmark that measures what a fault costs."""

import json
import subprocess
import sys

import pytest
from support.launching import ROOT
from support.waiting import LIMIT

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(6 * LIMIT)]


def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_been(tmp_path):
    command = [sys.executable, "-m", "benchmarks.soak", "--seed", "1", "--faults", "7", "--out", str(tmp_path)]
    command += ["--watchdog", "30"]  # healthy iterations may take seconds here
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=6 * LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["different_tensors_or_numbers"] == []
    assert found["different_reports"] == 0
    assert (found["images_lost"], found["images_twice"], found["in_order"]) == (0, 0, True)
    assert found["left_over"] == {"files": [], "processes": [], "shared_memory": []}
    faults = [row["fault"] for row in found["faults"]]
    assert found["survived"] == len(faults) == 7
    assert faults.count("SIGKILL of a rank") >= 4
    assert {"SIGKILL of the launcher", "SIGSTOP of a rank", "SIGTERM of the launcher"} < set(faults)
    assert sum(row["injected"] for row in found["by_kind"]) == 7
    asked = next(row for row in found["faults"] if row["fault"] == "SIGTERM of the launcher")
    assert asked["images_again"] == 0  # it saved before it left
