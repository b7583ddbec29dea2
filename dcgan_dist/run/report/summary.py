"""The facts about a run that its page shows as text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dcgan_dist.config import Config, flatten
from dcgan_dist.location import redacted
from dcgan_dist.run.console import human_images, human_time
from dcgan_dist.run.report.charts import RATE, median
from dcgan_dist.run.report.facts import Run, shown
from dcgan_dist.text import counted, listed

Fact = Callable[[Run], str | None]
CHECKPOINTS_LISTED = 4


def utc(time: str) -> str:
    """A time as attempts.jsonl has it, for people."""
    return time.replace("T", " ").removesuffix("+00:00")


def _images(run: Run) -> str:
    total = run.options.get("images", "")
    return f"{run.images:,}" + (f" of {int(total):,}" if total.isdecimal() and run.images < int(total) else "")


def _time(run: Run) -> str | None:
    hours = run.history.last("time/run_hours")
    return None if hours is None else human_time(3600 * hours)


def _speed(run: Run) -> str | None:
    rate = median(run.history, RATE)
    return None if rate is None else f"{human_images(rate)}/s"


def _last(name: str) -> Fact:
    def text(run: Run) -> str | None:
        value = run.history.last(name)
        return None if value is None else f"{value:.3g}"

    return text


def _attempts(run: Run) -> str | None:
    rollbacks = len(run.history.rollbacks)
    parts = [counted(len(run.attempts), "attempt")] * bool(run.attempts)
    return ", ".join(parts + [counted(rollbacks, "rollback")] * bool(rollbacks)) or None


def _data(run: Run) -> str | None:
    options = run.options
    given = [options.get(f"data.{name}", "none") for name in ("shards", "pipeline")]
    if given == ["none", "none"]:
        faces = options.get("data.faces", "")
        return f"{int(faces):,} embedded cartoon faces" if faces.isdecimal() else None
    return ", ".join(name for name in given if name != "none")


def _joined(*names: str, form: str) -> Fact:
    """The values of options in a text; None if the run has none of them."""

    def text(run: Run) -> str | None:
        return form.format(*(run.options.get(name, "?") for name in names)) if {*names} & run.options.keys() else None

    return text


def _devices(run: Run) -> str | None:
    facts: Mapping[str, Any] = run.environment | dict(run.attempts[-1].facts if run.attempts else {})
    ranks, devices = facts.get("world_size"), facts.get("devices")
    if not isinstance(ranks, int):
        return None
    cards = dict.fromkeys(map(str, devices)) if isinstance(devices, list) and facts.get("device") != "cpu" else {}
    return f"{counted(ranks, 'rank')} on {', '.join(cards) or facts.get('device')}"


def _checkpoints(run: Run) -> str:
    found = [f"{images:,}" for images in reversed(run.checkpoints())]
    return f"at {listed(found, CHECKPOINTS_LISTED)} images" if found else "none"


def _commit(run: Run) -> str | None:
    commit = str(run.environment.get("git_commit") or "")
    return commit and f"{commit[:12]}{' with changes' if run.environment.get('git_dirty') else ''}"


CARDS: dict[str, Fact] = {
    "images": _images,
    "training time": _time,
    "speed (median)": _speed,
    "D(x)": _last("d/real"),
    "D(G(z))": _last("d/fake"),
    "attempts": _attempts,
}
FACTS: dict[str, Fact] = {
    "epochs": _last("epoch"),
    "data": _data,
    "networks": _joined("model.image_size", "model.ngf", "model.ndf", form="{0} x {0} pixels, ngf {1}, ndf {2}"),
    "loss": _joined("loss.name", form="{}"),
    "batch size": _joined("batch_size", form="{}"),
    "precision": _joined("precision", form="{}"),
    "devices": _devices,
    "seed": _joined("seed", form="{}"),
    "checkpoints": _checkpoints,
    "started (UTC)": lambda run: utc(
        run.attempts[0].begin if run.attempts else str(run.environment.get("started", ""))
    ),
    "commit": _commit,
}
"""What the summary shows, by its label; what is not known is left out."""


def facts(runs: Sequence[Run], wanted: Mapping[str, Fact]) -> dict[str, list[str]]:
    """Rows of one text per run, without those that no run has."""
    rows = {label: [find(run) for run in runs] for label, find in wanted.items()}
    return {label: [text or "-" for text in row] for label, row in rows.items() if any(row)}


def options(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Rows of all options but the folder's."""
    names = dict.fromkeys(name for run in runs for name in run.options if name != "run_dir")
    return {name: [run.options.get(name, "-") for run in runs] for name in names}


def notable(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Options that differ between several runs; of one run those that are not the default."""
    if len(runs) > 1:
        return {name: row for name, row in options(runs).items() if len({*row}) > 1}
    defaults = {name: shown(value) for name, value in flatten(Config()).items()}
    return {name: row for name, row in options(runs).items() if row[0] != defaults.get(name)}


def environments(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Rows of environment.json, packages one by one."""
    flat = [dict(_flat(run.environment)) for run in runs]
    return {
        name: [each.get(name, "-") for each in flat] for name in dict.fromkeys(name for each in flat for name in each)
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        elif value not in (None, [], ""):
            words = value if isinstance(value, list) else [value]
            rows.append((f"{prefix}{name}", redacted(" ".join(map(str, words)))))
    return rows
