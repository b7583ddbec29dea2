"""benchmarks/gpu.sh must not waste the day on which there is a GPU: here it runs on the CPU, with tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"
PARTS = ["doctor", "tests", "step", "saving", "faces"]
RESULTS = {f"{name}.txt" for name in PARTS} | {"doctor.json", "step.json", "saving.json", "faces.jsonl", "faces.png"}


def run(out: Path, python: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, "--smoke"],
        env=os.environ | {"OUT": str(out), "PYTHON": python},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_all_parts_leave_their_results(tmp_path):
    done = run(tmp_path / "out", sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == RESULTS | {"summary.json"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {name: summary[name] for name in PARTS} == dict.fromkeys(PARTS, 0)
    assert json.loads((tmp_path / "out" / "doctor.json").read_text())["ok"] is True
    assert json.loads((tmp_path / "out" / "saving.json").read_text())["results"]["medians"]["beside"]["loop"] > 0
    rows = json.loads((tmp_path / "out" / "step.json").read_text())["results"]
    assert [row["contender"] for row in rows] == ["plain", "fp32", "bf16"]
    assert all(row["images_per_second"] > 0 and row["wall_ratio"] > 0 for row in rows)
    with Image.open(tmp_path / "out" / "faces.png") as grid:
        assert grid.size == (8 * 34 + 2, 8 * 34 + 2)
    records = [json.loads(line) for line in (tmp_path / "out" / "faces.jsonl").read_text().splitlines()]
    assert records[-1]["images"] == 640


def test_a_part_that_fails_stops_no_other_and_shows_in_the_exit_code(tmp_path):
    done = run(tmp_path, "false")
    assert done.returncode == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {name: summary[name] for name in PARTS} == dict.fromkeys(PARTS, 1)
