"""`dcgan-dist report RUN ..`: the page of a run, or of several beside each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from dcgan_dist import cli
from dcgan_dist.commands.output import check_output
from dcgan_dist.errors import UsageError, UserError, to_stderr


@dataclass(frozen=True, kw_only=True)
class ReportOptions(cli.CommandOptions):
    """Write the page of a run: pictures, curves, speed, faults, options. It is one HTML file and needs no network."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, also of one that is training. Several are shown beside each other."""
    out: Path | None = None
    """The file. Default: RUN/report.html; of several runs: report.html in the current folder."""
    overwrite: bool = False
    """Let --out replace a file that is no such page."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs:
            raise UsageError("RUN is missing: a run's folder, such as runs/dcgan")


def main(argv: list[str]) -> int:
    """Runs the command. Raises UsageError and UserError."""
    options = cli.parse(ReportOptions, argv, "dcgan-dist report")
    from dcgan_dist.run.folder import RunFolder  # only now: these imports take a second
    from dcgan_dist.run.report.facts import read_run
    from dcgan_dist.run.report.page import is_page, write_page

    page_of = RunFolder(options.runs[0]).page
    out = options.out or (page_of if len(options.runs) == 1 else Path(page_of.name))
    runs = [read_run(root, *_options(root)) for root in options.runs]
    check_output("--out", out, options.overwrite or is_page(out))
    for line in [f"{run.folder.root}: {problem}" for run in runs for problem in run.problems]:
        to_stderr(f"WARNING: {line}")
    try:
        page = write_page(runs, out)
    except UserError as error:
        if "cannot be written" in str(error):  # the folder may be another person's
            raise UserError(f"{error}; --out names another file") from error
        raise
    grids = f"{page.grids} of {page.grids + page.left_out} grids"
    print(f"{', '.join(f'{run.name} ({run.state})' for run in runs)}: {grids}, {page.size / 1e6:.1f} MB in {out}")
    return 0


def _options(root: Path) -> tuple[dict[str, Any], list[str]]:
    """The options in a run's config.yaml, and what is wrong with it."""
    path = root / "config.yaml"
    if not path.exists():
        return {}, []
    try:
        return dict(_flat(cli.read_yaml(path))), []
    except UsageError as error:
        return {}, [str(error).removeprefix("--config ")]


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in tree.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return rows
