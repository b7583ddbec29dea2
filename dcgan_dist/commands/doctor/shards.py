"""The shards: opens all, and checks some images of each; and their cache."""

import fcntl
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dcgan_dist.commands.doctor.context import Context
from dcgan_dist.commands.doctor.finding import Finding, conclude, fail, ok, warn
from dcgan_dist.commands.doctor.run_folder import free_bytes, lock_problem, probing
from dcgan_dist.data.checking.access import ShardJob
from dcgan_dist.data.checking.checklist import make_checklist
from dcgan_dist.data.checking.verify import Problem, spot_check
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.remote.client import Remote, RemoteStat
from dcgan_dist.data.system.storage import cache_folder
from dcgan_dist.errors import UserError
from dcgan_dist.run.console import human_bytes as size
from dcgan_dist.text import counted

SHARDS, SAMPLES = 256, 4  # maximum number of shards, and of images in each
AT_ONCE = 16
SHOWN = 3  # problems


def check_shards(context: Context) -> Finding:
    """Opens all shards, and checks the checksums of some images of each."""
    data, config = context.data, context.config.data
    if data is None:
        folder = cache_folder() / "faces"
        return ok(f"no --data.shards: the embedded set of {config.faces:,} cartoon faces, kept in {folder}")
    names = [shard.name for shard in data.shards] if isinstance(data, Corpus) else data
    found = counted(len(names), "shard" if isinstance(data, Corpus) else "source")
    if isinstance(data, Corpus):
        found = f"{counted(data.size, 'image')} in {found}"
    if config.pipeline:
        return warn(f"--data.pipeline {config.pipeline}, given {found}", "its samples are checked while training")
    if any(name.startswith("pipe:") for name in names):
        return warn(f"{found} to be streamed", "the output of a pipe cannot be checked; one that fails ends the run")
    patterns = names if isinstance(data, list) else list(config.shards)
    todo = make_checklist(patterns, None, Remote(timeout=config.timeout, retries=config.retries), deep=False)
    images, problems = _spot_checks(todo.jobs)
    return judge_shards(f"{found}, all opened", images, todo.problems + problems)


def _spot_checks(jobs: Sequence[ShardJob]) -> tuple[int, list[Problem]]:
    """The number of checked images, and their problems."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = pool.map(lambda job: spot_check(job, SAMPLES), random.Random(0).sample(jobs, min(len(jobs), SHARDS)))
    counts, problems = zip(*done, strict=True) if jobs else ((), ())
    return sum(counts), [problem for found in problems for problem in found]


def judge_shards(found: str, images: int, problems: Sequence[Problem]) -> Finding:
    """`found`: the content of all shards; `images`: the number of checked ones."""
    bad = None
    if problems:
        more = f" | and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
        advice = "copy or write these shards again, or run dcgan-dist verify SHARDS --repair FOLDER"
        bad = fail(" | ".join(map(str, problems[:SHOWN])) + more, advice)
    unchecked = warn(
        "the images have no checksums, because another program wrote the shards",
        "dcgan-dist verify --deep decodes all of them; dcgan-dist shard writes shards with checksums",
    )
    return conclude(f"{found}; {counted(images, 'image')} checked", bad, None if images or problems else unchecked)


def check_cache(context: Context) -> Finding:
    """The cache of remote and compressed shards, or of the embedded set."""
    try:
        data = context.data
    except UserError:
        return warn("not tested: the shards cannot be opened", "see the line shards")
    if not isinstance(data, Corpus):
        folder = cache_folder()
        if data is None:
            return conclude(f"{folder} can be written", _cache_problem(folder, "XDG_CACHE_HOME"))
        return ok("not used: streamed sources are not kept")
    cached = [shard.source for shard in data.shards if shard.source is not None]
    plan = data.opener.plan
    if not cached:
        return ok("not used: all shards are plain local files")
    total = sum(source.size if isinstance(source, RemoteStat) else Path(source).stat().st_size for source in cached)
    if plan is None:
        advice = "leave --data.cache_bytes 0 out, so that they are kept"
        return warn(f"none: {size(total)} of remote images are fetched again in every epoch", advice)
    problem = _cache_problem(plan.folder, "--data.cache")
    held = sum(path.stat().st_size for path in plan.folder.iterdir()) if plan.folder.is_dir() else 0
    return judge_cache(plan.folder, total, plan.limit, free_bytes(plan.folder) + held, problem)


def _cache_problem(folder: Path, option: str) -> Finding | None:
    """Why files in it cannot be locked; None: they can. Raises FoundError if it cannot be written."""
    with probing(folder, option) as probe:
        return lock_problem(probe, fcntl.flock, option)


def judge_cache(folder: Path, shards: float, limit: float, free: float, locks: Finding | None = None) -> Finding:
    """Whether the shards fit, in bytes. `free`: on the disk, including the cache's files; `locks`: their problem."""
    full = fail("the disk has less space than the cache may use", "lower --data.cache_bytes, or change --data.cache")
    part = f"only {min(limit, free) / shards:.0%} of the shards fit" if shards else ""
    more = "raise --data.cache_bytes, or set --data.cache to a larger disk: the rest is fetched again in every epoch"
    return conclude(
        f"{size(shards)} of shards; {folder} may use {size(limit)} and has {size(free)}",
        locks,
        full if free < min(limit, shards) else None,
        warn(part, more) if limit < shards else None,
    )
