"""The shards: all there, and a sample of each as it was written; and room for those that come from afar."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dcgan_dist.commands.doctor.case import Case
from dcgan_dist.commands.doctor.disk import free_bytes, probing
from dcgan_dist.commands.doctor.finding import Finding, conclude, fail, ok, warn
from dcgan_dist.commands.doctor.locks import judge_cache_locks, try_lock
from dcgan_dist.commands.words import counted
from dcgan_dist.data.checking.access import Job
from dcgan_dist.data.checking.checklist import make_checklist
from dcgan_dist.data.checking.spot import spot_check
from dcgan_dist.data.checking.verify import Problem, check_shard
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.pool import over_processes
from dcgan_dist.data.remote.client import Remote, RemoteStat
from dcgan_dist.data.storage import cache_folder
from dcgan_dist.errors import UserError
from dcgan_dist.run.console import human_bytes as size

SAMPLES = 4  # of each shard
SECONDS = 15.0  # for all of them
AT_ONCE = 16
SHOWN = 3  # problems
MEND = "copy or write these shards again, or dcgan-dist verify SHARDS --repair FOLDER"


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What came of looking into shards."""

    shards: int
    """All of them."""
    looked: int
    """Shards that there was time for."""
    samples: int
    """That were checked."""
    problems: tuple[Problem, ...]
    deep: bool = False
    """Every sample was checked and decoded."""


def check_shards(case: Case) -> Finding:
    """Opens all shards, and checks some samples of each by their checksums; with --deep, all of all."""
    data, config = case.data, case.config.data
    if data is None:
        folder = cache_folder() / "faces"
        return ok(f"no --data.shards: the embedded set of {config.faces:,} cartoon faces, kept in {folder}")
    names = [shard.name for shard in data.shards] if isinstance(data, Corpus) else data
    found = counted(len(names), "shard" if isinstance(data, Corpus) else "source")
    if isinstance(data, Corpus):
        found = f"{counted(data.size, 'image')} in {found}"
    if any(name.startswith("pipe:") for name in names):
        return warn(f"{found} to be streamed", "what comes out of a pipe cannot be checked; a failing one ends the run")
    patterns = names if isinstance(data, list) else list(config.shards)
    looked = look(patterns, Remote(timeout=config.timeout, retries=config.retries), case.deep)
    return judge_shards(found, looked)


def look(patterns: list[str], remote: Remote, deep: bool) -> Looked:
    """`deep`: reads everything and decodes every image."""
    todo = make_checklist(patterns, None, remote, deep)
    if deep:
        reports = over_processes(check_shard, todo.jobs, 0, lambda _: None)
        problems = todo.problems + [problem for report in reports for problem in report.problems]
        samples = sum(report.samples for report in reports)
        return Looked(
            shards=len(todo.jobs), looked=len(todo.jobs), samples=samples, problems=tuple(problems), deep=True
        )
    deadline = time.monotonic() + SECONDS

    def one(job: Job) -> tuple[int, list[Problem]] | None:
        return spot_check(job, SAMPLES) if time.monotonic() < deadline else None

    jobs = random.Random(0).sample(todo.jobs, len(todo.jobs))  # where there is no time for all, some from everywhere
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = [result for result in pool.map(one, jobs) if result is not None]
    problems = todo.problems + [problem for _, found in done for problem in found]
    return Looked(shards=len(jobs), looked=len(done), samples=sum(count for count, _ in done), problems=tuple(problems))


def judge_shards(found: str, facts: Looked) -> Finding:
    """`found`: what all of them hold."""
    how = "checked and decoded" if facts.deep else "checked as a sample of them"
    checked = f"{counted(facts.samples, 'image')} {how}" if facts.samples else "no image checked"
    found = f"{found}, all opened; {checked}"
    bad = None
    if facts.problems:
        more = len(facts.problems) - SHOWN
        listed = " | ".join(map(str, facts.problems[:SHOWN])) + (f" | and {more:,} more" if more > 0 else "")
        bad = fail(listed, MEND)
    part = f"there was time for {facts.looked:,} of {counted(facts.shards, 'shard')}"
    slow = warn(part, "dcgan-dist verify SHARDS checks all") if facts.looked < facts.shards else None
    unchecked = warn(
        "none of the images has a checksum: the shards are of another program",
        "--deep decodes them all; dcgan-dist shard writes shards with checksums",
    )
    return conclude(found, bad, slow, unchecked if not (facts.samples or facts.problems or slow) else None)


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The folder that remote and compressed shards come into. Bytes."""

    folder: Path
    shards: float
    """Of all remote and compressed shards."""
    limit: float
    """That it may hold."""
    free: float
    """On its disk, with what it holds already."""


def check_cache(case: Case) -> Finding:
    """Room and leave to write where shards from afar are kept, or the embedded set."""
    try:
        data = case.data
    except UserError:
        return warn("not known, for the shards cannot be opened", "see the line shards")
    if not isinstance(data, Corpus):
        folder = cache_folder()
        if data is None:
            return conclude(f"{folder} can be written", _unlockable(folder, "XDG_CACHE_HOME"))
        return ok("not needed: streamed sources are not kept")
    far = [shard.source for shard in data.shards if shard.source is not None]
    plan = data.opener.plan
    if not far:
        return ok("not needed: all shards are plain local files")
    total = sum(source.size if isinstance(source, RemoteStat) else Path(source).stat().st_size for source in far)
    if plan is None:
        advice = "let it have room: leave --data.cache_bytes 0 out"
        return warn(f"none, so that {size(total)} of remote images come by ranges, in every epoch", advice)
    unlockable = _unlockable(plan.folder, "--data.cache")
    held = sum(path.stat().st_size for path in plan.folder.iterdir()) if plan.folder.is_dir() else 0
    facts = Cache(folder=plan.folder, shards=total, limit=plan.limit, free=free_bytes(plan.folder) + held)
    return judge_cache(facts, unlockable)


def _unlockable(folder: Path, option: str) -> Finding | None:
    """None: it can be written and locked. Raises FoundError for a folder that cannot be written."""
    with probing(folder, option) as probe:
        return judge_cache_locks(*try_lock(probe, "flock"))


def judge_cache(facts: Cache, unlockable: Finding | None = None) -> Finding:
    """Whether the shards, or at least as many as were allowed, fit. `unlockable`: what is wrong with its locks."""
    part = f"only {min(facts.limit, facts.free) / facts.shards:.0%} of the shards fit" if facts.shards else ""
    wanted = min(facts.limit, facts.shards)
    return conclude(
        f"{size(facts.shards)} of shards; {facts.folder} may hold {size(facts.limit)}, its disk {size(facts.free)}",
        unlockable,
        fail("the disk has less room than the cache may take", "lower --data.cache_bytes, or name another --data.cache")
        if facts.free < wanted
        else None,
        warn(part, "a larger --data.cache_bytes or disk (--data.cache): the rest is fetched again in every epoch")
        if facts.limit < facts.shards
        else None,
    )
