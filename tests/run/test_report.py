"""The page of a run, but for what a browser makes of it (tests/browser)."""

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from support.run_folders import EVERY, make_run, report, write_lines

from dcgan_dist.__main__ import main
from dcgan_dist.config import Config, flatten
from dcgan_dist.config.run_groups import LogConfig
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.grid import grid, save_png
from dcgan_dist.run.report import page, write_at_end
from dcgan_dist.run.report.facts import read_run, shown
from dcgan_dist.run.report.grids import collect, spread
from dcgan_dist.run.report.history import averaged, read_history, thinned

FOREVER = float("inf")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The library of the charts has 5 MB."""
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "Plotly")


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return make_run(tmp_path / "faces")


def data(file: Path) -> dict:
    """What the page's script shows."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', file.read_text(), re.DOTALL)
    assert text
    return json.loads(text[1])


# ---- numbers


@pytest.mark.parametrize("count", [1, 2, 50, 51, 999, 10_000])
def test_thinned_lines_keep_their_ends_and_every_extreme(count):
    values = np.random.default_rng(count).normal(size=count)
    values[count // 3] = 100  # a single report
    values[count // 2 : count // 2 + count // 9] = np.nan
    places = thinned(values, 50)
    assert len(places) <= 50
    assert list(places) == sorted({*places.tolist()})
    assert (places[0], places[-1]) == (0, count - 1)
    assert np.nanmax(values[places]) == np.nanmax(values)
    assert np.nanmin(values[places]) == np.nanmin(values)
    width = -(-count // 24)
    for start in range(0, count, width) if count > 50 else ():
        part = values[start : start + width]
        if np.isfinite(part).any():
            near = values[[place for place in places if start <= place < start + width]]
            assert {np.nanmin(part), np.nanmax(part)} <= {*near.tolist()}


def test_averages_of_neighbours_leave_out_what_is_missing():
    values = np.array([1.0, 3.0, np.nan, 5.0, np.nan, np.nan, 8.0])
    np.testing.assert_array_equal(averaged(values, 4), [2.0, 5.0, np.nan, 8.0])


def test_the_history_of_a_file_that_is_being_written_and_has_foreign_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [report(1), report(2, **{"loss/d": "NaN", "loss/g": "Infinity"})])
    with path.open("a") as file:
        file.write(f'[]\nno json\n{{"images": "x"}}\n{json.dumps(report(3, new=2))}\n{{"images": 400, "loss')
    history = read_history(path)
    assert history.images.tolist() == [100, 200, 300]
    assert history.unread == 3
    assert history.not_finite == {200: ["loss/d", "loss/g"]}
    np.testing.assert_array_equal(history.scalars["new"], [np.nan, np.nan, 2])
    assert np.isnan(history.scalars["loss/d"]).tolist() == [False, True, False]


# ---- grids


@pytest.mark.parametrize("count", [1, 2, 3, 10, 500])
def test_the_first_grids_are_spread_evenly_however_many_are_made(count):
    order = spread(list(range(count)))
    assert sorted(order) == list(range(count))
    assert order[:2] == [count - 1, 0][:count]
    for made in range(2, count + 1):
        gaps = np.diff(sorted(order[:made]))
        assert gaps.max() <= 4 * (count - 1) / made + 1


def test_grids_that_do_not_fit_are_left_out_evenly_and_the_page_says_so(tmp_path, monkeypatch):
    """Of noise, which no quality makes small."""
    folder = make_run(tmp_path / "run", grids=1)
    random = np.random.default_rng(0)
    for number in range(40):
        save_png(grid(random.integers(0, 256, (64, 3, 16, 16), dtype=np.uint8)), folder.sample(100 * (number + 1)))
    monkeypatch.setattr(page, "LIMIT", len(page.get_plotlyjs()) + 250_000)
    written = page.write_page([read_run(folder.root, {}, [])], folder.page)
    assert folder.page.stat().st_size == written.size <= page.LIMIT
    shown_at = list(map(int, data(folder.page)["grids"][0]))
    assert (len(shown_at), written.left_out) == (written.grids, 40 - written.grids)
    assert 3 < len(shown_at) < 40
    assert (shown_at[0], shown_at[-1]) == (100, 4000)
    assert np.diff(shown_at).max() <= 4 * 4000 / len(shown_at)
    assert f"{written.grids} of 40 grids of samples are shown, evenly spread" in folder.page.read_text()


def test_a_damaged_grid_is_left_out_and_counted(run):
    run.sample(EVERY).write_bytes(run.sample(500).read_bytes()[:200])
    run.sample(EVERY + 1).write_bytes(b"")
    page.write_page([read_run(run.root, {}, [])], run.page)
    assert list(data(run.page)["grids"][0]) == ["500", "1000", "1500", "2000"]
    assert "2 grids of samples cannot be read." in run.page.read_text()


def test_no_grid_is_begun_when_the_time_is_over(run):
    grids = collect(run.samples, run.real, 10**6, time.monotonic() - 1)
    assert (grids.pictures, grids.left_out, grids.unread) == ({}, 4, 0)


# ---- the state of a run


def unended(run):
    run.done.unlink()
    lines = run.attempts.read_text().splitlines(keepends=True)
    run.attempts.write_text("".join(lines[:-1]))
    (run.root / "owner.json").write_text("{}")


def killed(run):
    unended(run)
    before = time.time() - 7200
    os.utime(run.root / "owner.json", (before, before))


def failed(run):
    unended(run)
    end = {"attempt": 2, "end": "2026-01-01T13:00:00+00:00", "images": 1500, "reason": "loss/d is NaN"}
    run.attempts.write_text(run.attempts.read_text() + json.dumps(end) + "\n")


def stopped(run):
    run.done.rename(run.preempted)
    run.preempted.write_text("2000\nSIGTERM\n")


STATES = {
    "complete": (lambda run: None, ""),
    "stopped": (stopped, "SIGTERM; the same command resumes it"),
    "failed": (failed, "loss/d is NaN"),
    "running": (unended, "last heartbeat 0 s before this page was written"),
    "killed": (killed, "the last heartbeat was 2 h 00 min before this page was written"),
}


@pytest.mark.parametrize(("state", "make", "detail"), [(name, *both) for name, both in STATES.items()])
def test_the_state_of_the_run_is_said(run, state, make, detail):
    make(run)
    assert main(["report", str(run.root)]) == 0
    assert re.search(rf'class="state {state}">{state}</span>.*{re.escape(detail)}', run.page.read_text())


def test_restarts_rollbacks_and_faults_are_told_with_their_times(run):
    with run.metrics.open("a") as file:
        file.write(json.dumps(report(21, **{"loss/d": "NaN", "data/substituted": 3})) + "\n")
    found = read_run(run.root, {}, []).events()
    assert [(event.kind, event.images) for event in found] == [
        ("restart", 1000),
        ("end", 2000),
        ("rollback", 500),
        ("fault", 2100),
        ("fault", 2100),
    ]
    assert [event.text for event in found] == [
        "attempt 2 began at 1,000 images; attempt 1 was killed, and 300 images are trained again",
        "attempt 2 ended at 2,000 images: done",
        "rolled back from 700 to 500 images: loss/d is NaN",
        "loss/d not finite in the report at 2,100 images",
        "3 damaged images were replaced by others",
    ]
    page.write_page([read_run(run.root, {}, [])], run.page)
    shown_there = data(run.page)
    bars = [(bar["begin"][11:16], bar["end"][11:16], bar["killed"]) for bar in shown_there["bars"]]
    assert bars == [("10:00", "11:00", True), ("12:00", "13:00", False)]
    text = run.page.read_text()
    assert all(event.text in text for event in found)
    assert "2026-01-01 10:20:00" in text


# ---- options


def test_an_option_has_the_same_text_from_the_schema_and_from_the_file():
    options = flatten(Config())
    assert shown(0.0002) == shown("0.0002") == shown("2.0e-04")
    assert shown(2**60) == shown(str(2**60)) == str(2**60)
    assert shown(options["log.page"]) == shown("true") == "true"
    assert shown(("a", "b")) == shown(["a", "b"]) == "a, b"
    assert shown("pipe:curl -H 'Bearer xyzzy' host") == "pipe:curl ..."
    assert shown(["https://me:secret@host/a.tar?sig=1"]) == "https://host/a.tar"


def test_options_that_are_not_the_default_come_first(run):
    assert main(["report", str(run.root)]) == 0
    note = re.search(r"(\d+) of (\d+) options are not the defaults", run.page.read_text())
    assert note
    assert note.groups() == ("3", "4")  # images, batch_size, model.image_size; the seed is


# ---- the command

REFUSED = {
    "report": "RUN is missing",
    "report none": "none: is no folder; name a run's folder, such as runs/dcgan",
    "report file": "file: is no folder",
    "report empty": "empty: holds no run (no config.yaml, no metrics.jsonl); name a run's folder",
    "report run empty": "empty: holds no run",
    "report run --out file": "--out file: exists; name another file, or add --overwrite",
    "report run --out empty": "--out empty: is a folder; name a file",
}


@pytest.mark.parametrize(("line", "problem"), REFUSED.items())
def test_what_is_no_run_is_refused_in_one_line(tmp_path, monkeypatch, capsys, line, problem):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert problem in err
    assert not (tmp_path / "run" / "report.html").exists()


def test_the_page_is_written_again_but_no_other_file_is_replaced(run, capsys):
    for _ in range(2):
        assert main(["report", str(run.root)]) == 0
    assert re.fullmatch(
        r"faces \(complete\): 4 of 4 grids, \d\.\d MB in .*/report.html\n",
        capsys.readouterr().out[:200].splitlines(keepends=True)[0],
    )
    run.page.write_text("mine")
    assert main(["report", str(run.root)]) == 2
    assert main(["report", str(run.root), "--overwrite"]) == 0
    assert page.is_page(run.page)


@pytest.mark.parametrize("left", ["config.yaml", "metrics.jsonl", "environment.json", "attempts.jsonl"])
def test_a_run_of_which_little_is_there_has_a_page(run, left):
    """For example in its first seconds, or made by an older version."""
    for path in sorted(run.root.rglob("*"), reverse=True):
        if path.name != left:
            path.rmdir() if path.is_dir() else path.unlink()
    assert main(["report", str(run.root)]) == 0
    text = run.page.read_text()
    assert "There is no grid of samples yet" in text
    assert (left == "metrics.jsonl") != ("There is no report yet" in text)


DAMAGES = {  # file, what its last line becomes, what is said of it
    "cut": ("metrics.jsonl", b'{"images": 2000, "loss/d', ""),
    "zeros of a crash": ("metrics.jsonl", b"\0" * 99 + b"\n", "1 lines of metrics.jsonl are no reports"),
    "no image count": ("metrics.jsonl", b'{"images": 1e99}\n', "1 lines of metrics.jsonl are no reports"),
    "a number without end": ("metrics.jsonl", b'{"images": 9, "loss/d": 1' + b"0" * 400 + b"}\n", ""),
    "nested": ("metrics.jsonl", b"[" * 99_999 + b"\n", "1 lines of metrics.jsonl are no reports"),
    "rollback": ("metrics.jsonl", b'{"images": 9, "rollback_from": null}\n', "1 lines of metrics.jsonl are no reports"),
    "attempts": (
        "attempts.jsonl",
        b'{"attempt": 3, "begin": null, "images": 5}\n{"attempt": 3, "begin": "", "images": []}',
        "",
    ),
    "environment": ("environment.json", b"5", "environment.json cannot be read (not what training writes)"),
    "options": ("config.yaml", b"data:\n  faces: x\ncollapse:\n  ms_ssim: x\n", ""),
}


@pytest.mark.parametrize(("name", "content", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_leaves_the_rest_of_the_page(run, capsys, name, content, said):
    before = run.metrics.read_bytes().rpartition(b"{")[0] if name == "metrics.jsonl" else b""
    (run.root / name).write_bytes(before + content)
    assert main(["report", str(run.root)]) == 0
    err = capsys.readouterr().err
    assert (said in err, err.count("\n")) == (True, bool(said))
    assert said in run.page.read_text()
    assert data(run.page)["charts"][0]["lines"][0]["x"][:2] == [100, 200]


@pytest.mark.parametrize("problem", ["Read-only file system", "No space left on device"])
def test_a_page_that_cannot_be_written_is_one_line(run, monkeypatch, capsys, problem):
    """Such as in a folder of someone else, of which the page can be written elsewhere."""

    def refuse(path, *_, **__):
        raise OSError(0, problem, str(path))

    with monkeypatch.context() as patched:
        patched.setattr("dcgan_dist.data.system.storage.atomic_file", refuse)
        assert main(["report", str(run.root)]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {run.page}: cannot be written ({problem}); --out names another file\n")
    assert not run.page.exists()
    assert main(["report", str(run.root), "--out", str(run.root.parent / "new" / "page.html")]) == 0


def test_what_cannot_be_read_is_said_on_the_page(run, monkeypatch):
    for path in (run.config, run.metrics, run.environment):
        path.unlink()
        path.mkdir()
    run.attempts.write_text('{"attempt": 1}\nnothing')
    assert main(["report", str(run.root)]) == 0
    text = run.page.read_text()
    for name in ("config.yaml", "metrics.jsonl", "environment.json"):
        assert re.search(rf"{name}: cannot be read|{name} cannot be read", text)


# ---- at the end of a run


def test_a_page_that_cannot_be_written_costs_one_line(run, monkeypatch):
    lines: list[str] = []
    config = Config(run_dir=run.root)
    run.page.mkdir()
    write_at_end(config, lines.append, 60)
    monkeypatch.setattr(page, "get_plotlyjs", lambda: 1 / 0)
    write_at_end(config, lines.append, 60)
    write_at_end(config, lines.append, -1)
    assert [re.sub(r"\(.*\)", "(..)", line) for line in lines] == 3 * [
        f"WARNING: {run.page} was not written (..); dcgan-dist report {run.root} writes it"
    ]
    assert "division by zero" in lines[1]
    assert "metrics.jsonl has 21 lines" in lines[2]
    write_at_end(Config(run_dir=run.root, log=LogConfig(page=False)), lines.append, 60)
    assert len(lines) == 3
