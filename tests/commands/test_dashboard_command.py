"""`dcgan-dist dashboard` against the stand-in for W&B's server, with the real clients."""

import difflib
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.fake_wandb import Run
from support.training import TINY
from support.wandb_runs import isolate, serving

from dcgan_dist import __main__ as front
from dcgan_dist.commands import dashboard as command
from dcgan_dist.run import dashboard, wandb_views
from dcgan_dist.run import wandb as run_wandb
from dcgan_dist.train import main as train

GOLDEN = Path(__file__).parents[1] / "golden" / "dashboard.json"


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """No account and no settings of the person who runs the tests."""
    isolate(monkeypatch, tmp_path / "home")
    monkeypatch.setenv("WANDB_SILENT", "true")  # as the command sets it, for the time of the test
    monkeypatch.chdir(tmp_path)
    yield
    run_wandb._end_service()


@pytest.fixture
def server(alone, monkeypatch):
    with serving(monkeypatch) as server:
        for run_id, name in ("aaaa1111", "first"), ("bbbb2222", "second"):
            server.runs[run_id] = Run("tester", "gans", run_id, display_name=name)
        yield server


@pytest.fixture
def call(capsys):
    """Runs the command; its exit code and what it printed."""

    def act(*options: str) -> tuple[int, str]:
        code = front.main(["dashboard", *options])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return act


def sent(view):
    """What a view shows, without the random names of its parts."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items() if key not in ("__id__", "id")}
        return [plain(each) for each in value] if isinstance(value, list) else value

    spec = plain(json.loads(view["spec"]))
    return {name: view[name] for name in ("type", "displayName", "entityName", "projectName")} | {"spec": spec}


def test_what_is_sent_is_what_the_golden_file_holds(server, call):
    """After a wanted change: UPDATE_GOLDEN=1 pytest -k golden_file_holds, and read the difference."""
    assert call("--project", "gans") == (0, f"workspace: {server.url}/tester/gans?nw={key('tester', 'gans')}\n")
    assert call("--project", "gans", "--report", "aaaa1111")[0] == 0
    code, printed = call("--project", "gans", "--entity", "tester", "--report", "aaaa1111", "bbbb2222")
    assert (code, printed) == (0, f"report: {server.url}/tester/gans/reports/dcgan_dist:-first,-second--view3\n")
    views = dict(zip(("workspace", "report of one", "report of two"), map(sent, server.views.values()), strict=True))
    now = json.dumps(views, indent=1) + "\n"
    for _ in range(3):  # small parts on one line
        now = re.sub(
            r"([\[{])\s+([^\[\]{}]{1,300}?)\s+([\]}])", lambda part: " ".join("".join(part.groups()).split()), now
        )
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(now, encoding="utf-8")
    then = GOLDEN.read_text(encoding="utf-8")
    assert now == then, "\n".join(difflib.unified_diff(then.splitlines(), now.splitlines(), lineterm=""))
    assert "0" * 40 not in now


def key(entity, project, name="dcgan_dist"):
    return hashlib.sha256(f"{entity}\n{project}\n{name}".encode()).hexdigest()[:11]


def test_a_second_call_updates_the_view_and_keeps_its_runs(server, call, monkeypatch):
    first = call("--project", "gans")
    (view,) = server.views.values()
    spec = json.loads(view["spec"])
    spec["section"]["runSets"][0]["search"] = {"query": "nightly"}  # as a person may have typed it there
    spec["section"]["panelBankConfig"]["sections"] = []
    view["spec"], view["displayName"] = json.dumps(spec), "ours"
    assert call("--project", "gans") == first
    ((view_id, view),) = server.views.items()
    again = json.loads(view["spec"])["section"]
    assert (view_id, view["displayName"]) == ("view1", "ours")
    assert again["runSets"][0]["search"]["query"] == "nightly"
    assert [section["name"] for section in again["panelBankConfig"]["sections"]] == [s.name for s in dashboard.SECTIONS]
    monkeypatch.setenv("WANDB_PROJECT", "gans")
    assert call("--name", "mine")[1].endswith(f"?nw={key('tester', 'gans', 'mine')}\n")
    assert [view["displayName"] for view in server.views.values()] == ["ours", "mine"]


def test_a_report_of_run_folders_is_in_their_project(server, call, tmp_path):
    for name, run_id in ("one", "aaaa1111"), ("two", "bbbb2222"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "wandb_id").write_text(f"{run_id}\n")
        (tmp_path / name / "wandb_folder.json").write_text('{"entity": "tester", "project": "gans"}')
    assert call("--report", "one", "two")[0] == 0
    (view,) = server.views.values()
    assert (view["projectName"], view["displayName"]) == ("gans", "dcgan_dist: first, second")
    (tmp_path / "two" / "wandb_folder.json").write_text('{"entity": "tester", "project": "cats"}')
    code, line = call("--report", "one", "two")
    assert (code, line) == (2, "error: --report: the runs are in cats and gans; a report is of one project\n")
    (tmp_path / "two" / "wandb_id").unlink()
    code, line = call("--report", "two")
    assert code == 2
    assert line.startswith("error: --report two: no run on W&B belongs to this folder")


LOGIN = "; `wandb login` stores a key, and WANDB_BASE_URL names another server\n"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--project", "cats"], "tester/cats: W&B has no such project, or this key has no rights to see it"),
        (["--project", "gans", "--entity", "others"], "others/gans: W&B has no such project, or this key has no rig"),
        (["--project", "gans", "--report", "cccc3333"], "tester/gans/cccc3333: W&B has no such run there"),
    ],
)
def test_what_is_not_there_is_one_line(options, problem, server, call):
    code, line = call(*options)
    assert (code, line.count("\n")) == (1, 1)
    assert line.startswith(f"error: {problem}")
    assert server.views == {}


@pytest.mark.parametrize("options", [[], ["--report", "aaaa1111"]])
def test_a_project_without_rights_is_one_line(options, server, call):
    server.read_only = True
    code, line = call("--project", "gans", *options)
    assert (code, line.count("\n")) == (1, 1)
    assert line.startswith("error: W&B did not take it: ")
    assert "permission denied" in line


def test_a_name_that_w_and_b_refuses_is_one_line(server, call):
    code, line = call("--project", "gans", "--name", "a+b")
    assert (code, line.count("\n")) == (2, 1)
    assert line.startswith("error: --name a+b: is no name of a view (")


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("down", r"127\.0\.0\.1:\d+ cannot be reached \(.+\)"),
        ("500", r"127\.0\.0\.1:\d+ answers with error 500"),
        ("401", r"127\.0\.0\.1:\d+ refuses the key"),
        ("slow", r"127\.0\.0\.1:\d+ does not answer within 0\.2 s"),
    ],
)
def test_a_server_that_does_not_answer_is_one_line(fault, problem, server, call, monkeypatch):
    monkeypatch.setattr(command, "TIMEOUT", 0.2)
    server.fault = fault
    code, line = call("--project", "gans")
    assert code == 1
    assert re.fullmatch(f"error: W&B: {problem}{re.escape(LOGIN)}", line)


def test_a_server_that_goes_down_meanwhile_is_one_line_after_a_bounded_wait(server, call, monkeypatch):
    monkeypatch.setattr("wandb.Api._HTTP_TIMEOUT", 1)  # of its 19 seconds
    answer = server.answer

    def answer_until_the_project(method: str, path: str, body: bytes):
        reply = answer(method, path, body)
        server.fault = "down" if b"GetProject" in body else None
        return reply

    monkeypatch.setattr(server, "answer", answer_until_the_project)
    code, line = call("--project", "gans")
    assert code == 1
    assert re.fullmatch(r"error: W&B did not take it: 127\.0\.0\.1:\d+ cannot be reached \(.+\)\n", line)


def test_without_a_key_or_the_extra_there_is_one_line(alone, call, monkeypatch):
    assert call() == (1, f"error: W&B: there is no API key{LOGIN}")
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    problem = "dcgan-dist dashboard needs wandb-workspaces: pip install 'dcgan_dist[dashboard]'"
    assert call() == (2, f"error: {problem}\n")


def test_help_imports_neither_wandb_nor_wandb_workspaces():
    code = "import sys; from dcgan_dist.__main__ import main\ntry: main(['dashboard', '--help'])\n"
    code += "except SystemExit: pass\n"
    code += "print(sorted({'torch', 'wandb', 'wandb_workspaces', 'pydantic'} & {*sys.modules}), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr == "[]\n"


# ---- the definition

OPTIONAL = {  # logged with several ranks, in fp16, from remote shards, after a rollback, when a save has ended, on GPUs
    "rank/slowest", "rank/slowest_factor", "scale/d", "scale/g", "data/cache_percent", "health/rollbacks",
    "save/write_seconds", "gpu/memory_percent", "gpu/utilization_percent",
}  # fmt: skip
OF_RANKS = {f"{name}/rank_{n}" for name in OPTIONAL if name.startswith("gpu/") for n in range(dashboard.NAMED)}


def scalars(kinds=dashboard.Panel):
    panels = [panel for section in dashboard.SECTIONS for panel in section.panels if isinstance(panel, kinds)]
    return {name for panel in panels for name in panel.scalars}


@pytest.mark.usefixtures("as_before")
def test_every_scalar_that_is_logged_is_on_a_panel_and_no_other(server, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_X_STATS_SAMPLING_INTERVAL", "0.1")
    options = shlex.split(
        "--images 32 --data.faces 64 --loss.r1_gamma 1 --loss.gp_weight 1 --model.d_norm none --run_dir run "
        "--checkpoint.every 16"
    )
    assert train([*TINY, *options, "--wandb.mode", "online", "--wandb.project", "gans"]) == 0
    run = next(run for run in server.runs.values() if run.lines("wandb-history.jsonl"))
    sent = {name for row in run.history for name in row if not name.startswith("_") and name != "images"}
    shown = {name for name in scalars() if not name.startswith("system/")}
    assert sent <= shown | dashboard.LEFT_OUT.keys()
    assert shown <= sent | OPTIONAL | OF_RANKS
    assert dashboard.LEFT_OUT.keys() <= sent
    source = "\n".join(
        path.read_text() for path in Path(dashboard.__file__).parents[1].rglob("*.py") if path.name != "dashboard.py"
    )
    prefixes = "|".join({name.split("/")[0] for name in sent | OPTIONAL if "/" in name})
    written = {*re.findall(rf'"((?:{prefixes})/[a-z0-9_]+)"', source)}
    assert OPTIONAL <= written <= shown
    events = {name for line in run.lines("wandb-events.jsonl") for name in json.loads(line)}
    system = {name.removeprefix("system/") for name in scalars() if name.startswith("system/")}
    assert {name for name in system if not name.startswith("gpu.")} <= {name.removeprefix("system.") for name in events}


def test_every_kind_of_panel_is_used_and_can_be_made():
    used = {type(panel) for section in dashboard.SECTIONS for panel in section.panels}
    assert used == set(wandb_views.PANELS) == set(dashboard.Panel.__args__)


def test_images_are_the_x_axis_of_all_that_the_trainer_logs():
    for section in dashboard.SECTIONS:
        for panel in section.panels:
            if isinstance(panel, dashboard.Lines):
                system = all(name.startswith("system/") for name in panel.scalars)
                assert panel.x == (dashboard.TIME if system else "images")
