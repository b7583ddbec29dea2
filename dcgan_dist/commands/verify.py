"""`dcgan-dist verify SHARDS`: checks shards, reports what is wrong where, and saves the intact samples."""

import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from dcgan_dist import cli
from dcgan_dist.commands.output import check_output
from dcgan_dist.commands.progress import progress
from dcgan_dist.config.groups import Retries, Timeout, Workers
from dcgan_dist.data.checking.access import ShardJob
from dcgan_dist.data.checking.checklist import Checklist, make_checklist
from dcgan_dist.data.checking.repair import Repaired, repair_shard
from dcgan_dist.data.checking.verify import Problem, ShardReport, check_shard
from dcgan_dist.data.remote.client import Remote, base_name
from dcgan_dist.data.shards.samples import MemberChoice
from dcgan_dist.data.system.pool import over_processes
from dcgan_dist.data.system.storage import write_atomically
from dcgan_dist.errors import UsageError
from dcgan_dist.text import count_text, counted

PROBLEMS_LISTED = 50


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(cli.CommandOptions):
    """Check shards from the first byte to the last, local or remote; exit code 1 if anything is wrong."""

    shards: tyro.conf.Positional[tuple[str, ...]]
    """Paths, URLs, globs, brace lists, folders of .tar files, or a manifest.json."""
    image_key: str | None = None
    """As --data.image_key of training: the suffix of the image in the samples of other programs' tars."""
    deep: bool = False
    """Also decode every image."""
    repair: Path | None = None
    """Folder for the good samples of damaged shards with an index, as new shards of the same names; the damaged ones
    stay as they are."""
    manifest: str | None = None
    """The manifest of these shards, a path or URL; if not given, the manifest.json beside them, where there is one."""
    json: Path | None = None
    """File for all that was found, for programs."""
    overwrite: bool = False
    """Let --json replace a file."""
    processes: Workers = 0
    """Processes that check, each one shard at a time; 0: as many as CPU cores."""
    timeout: Timeout = 60
    """Seconds without an answer after which a remote read is tried again."""
    retries: Retries = 5
    """Further tries of a remote read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shards:
            raise UsageError("SHARDS is missing: paths, globs, URLs, a folder or a manifest.json")


def main(argv: list[str]) -> int:
    """Runs the command; 1 if anything is wrong with the shards. Raises UsageError and UserError."""
    options = cli.parse(VerifyOptions, argv, "dcgan-dist verify")
    if options.json:
        check_output("--json", options.json, options.overwrite)
    remote = Remote(timeout=options.timeout, retries=options.retries)
    choice = MemberChoice(image_key=options.image_key)
    todo = make_checklist(options.shards, options.manifest, remote, options.deep, choice)
    if options.repair:
        _check_folder(options.repair, todo)
    began = time.monotonic()
    with progress("verify", "B") as show:
        show(0, todo.bytes)
        reports = over_processes(check_shard, todo.jobs, options.processes, lambda done: show(done, todo.bytes))
    seconds = time.monotonic() - began
    problems = todo.problems + [problem for shard in reports for problem in shard.problems]
    print(*problems[:PROBLEMS_LISTED], sep="\n", end="\n" * bool(problems))
    if (more := len(problems) - PROBLEMS_LISTED) > 0:
        print(f"and {more:,} more (--json FILE lists all)")
    saved = _repair(options.repair, todo, reports, options.processes) if options.repair else []
    for shard in saved:
        print(*shard.lines(), sep="\n")
    print(_summary(reports, problems, seconds, options.deep))
    if options.json:
        write_atomically(options.json, _json(reports, problems, saved), new=not options.overwrite)
    return 1 if problems else 0


def _check_folder(folder: Path, todo: Checklist) -> None:
    """Repaired shards never replace other files."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise UsageError(f"--repair {folder}: is not a folder; choose another name")
    check_output("--repair", folder / "*", overwrite=False)
    for name, count in Counter(base_name(job.name) for job in todo.jobs).items():
        if os.path.lexists(folder / name):
            raise UsageError(f"--repair {folder}: holds {name} already; choose another folder")
        if count > 1:
            raise UsageError(f"--repair {folder}: {count} shards are named {name}; repair them one after the other")


def _repair(folder: Path, todo: Checklist, reports: Sequence[ShardReport], processes: int) -> list[Repaired]:
    """Repairs damaged shards that have an index, but not intact ones that differ from the manifest."""
    jobs, others = list[tuple[ShardJob, Path]](), list[Repaired]()
    for job, report in zip(todo.jobs, reports, strict=True):
        kinds = {problem.kind for problem in report.problems} - {"manifest"}
        if not kinds or "unreadable" in kinds:
            continue
        if report.checked:
            jobs.append((job, folder / base_name(job.name)))
        elif not report.samples:
            others.append(Repaired(name=report.name))
        else:
            save = f"dcgan-dist shard {shlex.quote(report.name)} OUT --store keep --skip_bad --allow_cut"
            others.append(Repaired(name=report.name, problem=f"it has no intact index; save its good images by {save}"))
    return over_processes(repair_shard, jobs, processes, lambda _done: None) + others


def _summary(reports: Sequence[ShardReport], problems: Sequence[Problem], seconds: float, deep: bool) -> str:
    size = sum(report.bytes for report in reports)
    rate = size / 1e6 / max(seconds, 1e-9)
    text = f"{counted(len(reports), 'shard')}, {counted(sum(report.samples for report in reports), 'sample')}"
    bad = len({problem.shard for problem in problems})
    verdict = f"{counted(bad, 'bad shard')} ({counted(len(problems), 'problem')})" if problems else "all intact"
    text = f"{verdict}: {text}, {size / 1e6:,.1f} MB ({rate:,.0f} MB/s)"
    plain = sum(not report.checked and not report.problems for report in reports)
    if plain:
        how = "headers and images were checked" if deep else "only headers were checked; --deep decodes the images"
        text += f"\nmade by other programs, without checksums: {counted(plain, 'shard')}; {how}"
    if passed := sum((report.passed for report in reports), Counter[str]()):
        text += f"\nskipped: {count_text(passed, 'other member')}"
    if deep and not problems:
        sizes = sum((report.sizes for report in reports), Counter[str]())
        (most, count), *rest = sizes.most_common()
        text += f"\n{len(sizes):,} image sizes; {count:,} images are {most}" if rest else f"\nall images are {most}"
    return text


def _json(reports: Sequence[ShardReport], problems: Sequence[Problem], saved: Sequence[Repaired]) -> bytes:
    shards = [
        {"name": report.name, "bytes": report.bytes, "samples": report.samples, "checksums": report.checked}
        for report in reports
    ]
    tree = {"shards": shards, "problems": list(map(asdict, problems)), "repaired": list(map(asdict, saved))}
    return (json.dumps(tree, indent=1) + "\n").encode()
