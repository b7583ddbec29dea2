"""One run, or several beside each other, as one HTML file that needs no network."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from plotly.offline import get_plotlyjs

from dcgan_dist.data.system.storage import write_atomically
from dcgan_dist.errors import os_error_as_user_error
from dcgan_dist.run.attempts import now
from dcgan_dist.run.report.charts import POINTS, charts
from dcgan_dist.run.report.facts import Run
from dcgan_dist.run.report.grids import MOST, Grids, collect
from dcgan_dist.run.report.summary import CARDS, FACTS, environments, facts, notable, options, utc
from dcgan_dist.text import counted

LIMIT = 14_900_000  # bytes of a page
GENERATOR = '<meta name="generator" content="dcgan-dist report">'
# the browser refuses what the page never asks for: any request
POLICY = "default-src 'none'; img-src data: blob:; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
EVENTS_LISTED = 200
Rows = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Written:
    """A page that was written."""

    path: Path
    size: int  # bytes
    grids: int  # on the page
    left_out: int  # grids that were too many


def is_page(path: Path) -> bool:
    """Whether a file is a page that this module wrote. Raises OSError."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(1_000)


def write_page(runs: Sequence[Run], path: Path, until: float = math.inf) -> Written:
    """Writes the page of one or more runs, complete or not at all.

    Grids that cannot be made before `until`, a time.monotonic(), are left out. Raises UserError.
    """
    drawn = charts(runs)
    parts = _Parts(runs, drawn)
    script = f"<script>{get_plotlyjs()}</script>"
    fixed = len(script.encode()) + len(parts.html([]).encode()) + len(parts.json([]))
    with os_error_as_user_error("", "cannot be read"):
        budget = (LIMIT - fixed) // len(runs)
        grids = [collect(run.folder.samples, run.folder.real, budget, until) for run in runs]
    text = parts.html(grids).replace("<!--plotly-->", script).replace("<!--data-->", parts.json(grids))
    write_atomically(path, text.encode())
    shown, left_out = (sum(counts) for counts in zip(*((len(g.pictures), g.left_out) for g in grids), strict=True))
    return Written(path=path, size=len(text.encode()), grids=shown, left_out=left_out)


class _Parts:
    """The text of a page; charts are made once, and grids come last, for they take what place is left."""

    def __init__(self, runs: Sequence[Run], drawn: Mapping[str, list[dict[str, Any]]]) -> None:
        self.runs, self.drawn = runs, drawn
        self.charts = [chart for section in drawn.values() for chart in section]
        self.bars = [bar for run in runs for bar in _bars(run)] if any(len(run.attempts) > 1 for run in runs) else []

    def json(self, grids: Sequence[Grids]) -> str:
        """What the script shows; never markup, whatever the names in it are."""
        events = [
            {"run": number, "kind": event.kind, "images": event.images, "text": event.text}
            for number, run in enumerate(self.runs)
            for event in run.events()
            if event.kind != "end"
        ]
        data = {
            "runs": [{"name": run.name} | _hours(run) for run in self.runs],
            "charts": self.charts,
            "events": events,
            "bars": self.bars,
            "grids": [each.pictures for each in grids],
        }
        return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")

    def html(self, grids: Sequence[Grids]) -> str:
        """All but the data and Plotly."""
        runs, folder = self.runs, resources.files("dcgan_dist.run.report")
        title = " and ".join(run.name for run in runs)
        sections = {
            "Summary": self._summary(),
            "Images": self._grids(grids),
            "Curves": self._charts("curves") or "<p>There is no report yet: see <code>--log.every</code>.</p>",
            "Quality": self._charts("metrics"),
            "Speed": self._charts("speed"),
            "Attempts and faults": self._events(),
            "Options": self._options(),
            "More curves": self._charts("more"),
            "Environment": _table(environments(runs), [run.name for run in runs], "Environment"),
        }
        sections = {name: body for name, body in sections.items() if body}
        links = " ".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in sections)
        body = "".join(
            f'<section id="{_anchor(name)}" aria-label="{name}"><h2>{name}</h2>{body}</section>'
            for name, body in sections.items()
        )
        return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">{GENERATOR}
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{(folder / "page.css").read_text()}</style></head>
<body><header><h1>{escape(title)}</h1>{"".join(map(_state, runs))}</header>
<nav aria-label="Sections">{links}</nav>{self._warnings(grids)}<main>{body}</main>
<footer class="faint">Written at {utc(now())} UTC by dcgan-dist report. Charts: Plotly.</footer>
<noscript>The charts and the grids need JavaScript.</noscript>
<script type="application/json" id="data"><!--data--></script><!--plotly-->
<script>{(folder / "page.js").read_text()}</script></body></html>
"""

    def _warnings(self, grids: Sequence[Grids]) -> str:
        lines = [(run, problem) for run in self.runs for problem in run.problems]
        lines += [(run, text) for run, each in zip(self.runs, grids, strict=False) for text in _left_out(each)]
        several = len(self.runs) > 1
        shown = [f"<p>{escape(f'{run.name}: ' if several else '')}{escape(line)}</p>" for run, line in lines]
        return f'<div class="warn" role="note">{"".join(shown)}</div>' if shown else ""

    def _summary(self) -> str:
        if len(self.runs) > 1:
            return _table(facts(self.runs, CARDS | FACTS), [run.name for run in self.runs], "Summary")
        return f"{_list(facts(self.runs, CARDS), 'cards')}{_list(facts(self.runs, FACTS), 'cards facts')}"

    def _grids(self, grids: Sequence[Grids]) -> str:
        figures = ""
        for number, (run, each) in enumerate(zip(self.runs, grids, strict=False)):
            if each.pictures:
                figures += f'<figure><img id="grid-{number}" alt=""><figcaption></figcaption></figure>'
            if each.real and (number == 0 or each.real != grids[0].real):
                of = f" of {escape(run.name)}" if len(self.runs) > 1 else ""
                caption = f"real images{of}"
                figures += f'<figure><img src="{each.real}" alt="Some {caption}">'
                figures += f"<figcaption>{caption}, the first of the order</figcaption></figure>"
        controls = """<div class="controls"><button id="play" type="button">Play</button>
<input id="slider" type="range" min="0" max="0" value="0" aria-label="Grid of generated images">
<output id="grid-label" for="slider"></output></div>
<p class="note">All grids are of the same latents, by the moving average of G. The arrow keys move through them.</p>"""
        if not any(each.pictures for each in grids):
            controls = "<p>There is no grid of samples yet: see <code>--log.samples_every</code>.</p>"
        return f'{controls}<div class="pair">{figures}</div>'

    def _charts(self, section: str) -> str:
        drawn = self.drawn.get(section, [])
        if not drawn:
            return ""
        first = self.charts.index(drawn[0])
        figures = "".join(_figure(chart, first + number) for number, chart in enumerate(drawn))
        if section == "more":
            count = counted(len(drawn), "chart")
            return f'<details><summary>{count}</summary><div class="charts">{figures}</div></details>'
        head = ""
        if section == "curves":
            boxes = "".join(
                f'<label><input type="radio" name="axis" value="{value}"{checked}> {text}</label>'
                for value, text, checked in (("images", "images seen", " checked"), ("hours", "hours of training", ""))
            )
            head = f"<fieldset><legend>Horizontal axis</legend>{boxes}</fieldset>{self._thinned()}"
        return f'{head}<div class="charts">{figures}</div>'

    def _thinned(self) -> str:
        most = max(len(run.history.images) for run in self.runs)
        points = max((len(line["x"]) for chart in self.charts for line in chart["lines"]), default=0)
        text = "Drag to zoom all charts; a double click shows all again."
        if most > points:
            text += f" Of {most:,} reports, each line shows at most {POINTS:,} points: the extremes of equal parts."
        return f'<p class="note">{text}</p>'

    def _events(self) -> str:
        found = [(run, event) for run in self.runs for event in run.events()]
        if not found:
            return ""
        several = len(self.runs) > 1
        rows = [
            [*([run.name] if several else []), utc(event.time or "-"), f"{event.images:,}", event.text]
            for run, event in sorted(found, key=lambda one: (one[1].images, one[1].time or ""))[-EVENTS_LISTED:]
        ]
        head = [*(["run"] if several else []), "time (UTC)", "images", "what happened"]
        chart = ""
        if self.bars:
            alt = f"Time line of the attempts: {'; '.join(bar['text'] for bar in self.bars[:EVENTS_LISTED])}"
            chart = f'<div class="chart" id="chart-attempts" role="img" aria-label="{escape(alt)}"></div>'
        more = f"<p>The last {EVENTS_LISTED} of {len(found):,}:</p>" if len(found) > EVENTS_LISTED else ""
        return f"{chart}{more}{_grid_of(head, rows, 'Attempts and faults')}"

    def _options(self) -> str:
        names, every, own = [run.name for run in self.runs], options(self.runs), notable(self.runs)
        if not every:
            return ""
        what = "differ between the runs" if len(self.runs) > 1 else "are not the defaults"
        text = f'<p class="note">{len(own)} of {len(every)} options {what}.</p>'
        text += _table(own, names, "Options of note") if own else ""
        return f"{text}<details><summary>All options</summary>{_table(every, names, 'All options')}</details>"


def _state(run: Run) -> str:
    detail = f' <span class="faint">{escape(run.detail)}</span>' if run.detail else ""
    return f'<span><span class="state {run.state}">{run.state}</span>{detail}</span>'


def _left_out(grids: Grids) -> list[str]:
    lines = [f"{grids.unread:,} grids of samples cannot be read."] if grids.unread else []
    if grids.left_out:
        lines.append(
            f"{len(grids.pictures):,} of {grids.total:,} grids of samples are shown, evenly spread: a page has at most "
            f"{MOST} and {LIMIT / 1e6:.0f} MB. After a run it is also limited in time; `dcgan-dist report` is not."
        )
    return lines


def _figure(chart: Mapping[str, Any], number: int) -> str:
    note = f'<p class="note">{escape(chart["note"])}</p>' if chart["note"] else ""
    box = (
        f'<div class="chart" id="chart-{number}" data-chart="{number}" role="img" aria-label="{escape(chart["alt"])}">'
    )
    return f"<figure><h3>{escape(chart['title'])}</h3>{note}{box}</div></figure>"


def _list(rows: Rows, kind: str) -> str:
    """The facts of one run."""
    items = "".join(f"<div><dt>{label}</dt><dd>{escape(row[0])}</dd></div>" for label, row in rows.items())
    return f'<dl class="{kind}">{items}</dl>'


def _table(rows: Rows, names: Sequence[str], label: str) -> str:
    """A row for each label and a column for each run."""
    head = ["", *names] if len(names) > 1 else []
    return _grid_of(head, [[name, *row] for name, row in rows.items()], label) if rows else ""


def _grid_of(head: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    top = f"<thead><tr>{''.join(f'<th scope=col>{escape(cell)}</th>' for cell in head)}</tr></thead>" if head else ""
    body = ""
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        body += f"<tr><th scope=row>{escape(first)}</th>{cells}</tr>"
    table = f"<table>{top}<tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{table}</div>'


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _hours(run: Run) -> dict[str, list[float]]:
    images, hours = run.history.hours()
    chosen = np.linspace(0, len(images) - 1, min(len(images), POINTS)).astype(int)
    return {"images": images[chosen].tolist(), "hours": [float(f"{hour:.6g}") for hour in hours[chosen].tolist()]}


def _bars(run: Run) -> list[dict[str, Any]]:
    """The attempts on the time axis. The end of one that was killed is the time of its last report."""
    found: list[dict[str, Any]] = []
    for attempt, after in pairwise([*run.attempts, None]):
        assert attempt is not None
        end = attempt.end or (after.reached_at if after else now() if run.state == "running" else None)
        end = max(end or attempt.begin, attempt.begin)
        killed = attempt.end is None and (after is not None or run.state != "running")
        how = attempt.reason or ("killed; its last report is shown as its end" if killed else "running")
        text = f"attempt {attempt.number}: {utc(attempt.begin)} to {utc(end)}, {how}"
        bar = {"run": run.name, "begin": attempt.begin, "end": end, "killed": killed, "text": text}
        found.append(bar | {"label": str(attempt.number)})
    return found
