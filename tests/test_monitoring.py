"""docs/monitoring.md shows what there is: the workspace as it is defined, and the curves of runs that were trained."""

import json
import shlex

import pytest
from support.launching import ROOT

from dcgan_dist import cli
from dcgan_dist.run.dashboard import SECTIONS, Differences, Importance, Panel

PAGE = (ROOT / "docs/monitoring.md").read_text()
RESULTS = json.loads((ROOT / "benchmarks/results/gan_curves.json").read_text())
PICTURE_BYTES = 150_000


def title(panel: Panel) -> str:
    if isinstance(panel, Importance):
        return f"Importance of each option for `{panel.scalars[0]}`"
    return "Options in which the runs differ" if isinstance(panel, Differences) else panel.title


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_the_table_of_the_workspace_is_its_definition(section):
    assert f"| {section.name} | {'; '.join(map(title, section.panels))} |\n" in PAGE


@pytest.mark.parametrize("run", RESULTS["results"], ids=lambda run: run["run"])
def test_the_curves_are_those_of_committed_runs(run):
    assert f"\n{run['command']}" in PAGE
    cli.load(shlex.split(run["command"])[2:])
    for message in run["messages"]:
        assert f"{message['images']:,} images: {message['text']}\n" in PAGE
    name = f"images/{run['run']}.png"
    assert f"({name})" in PAGE
    assert (ROOT / "docs" / name).stat().st_size < PICTURE_BYTES
