"""The shards to check, and their entries in the manifests beside them."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from dcgan_dist.data.checking.access import ShardJob
from dcgan_dist.data.checking.verify import Problem
from dcgan_dist.data.remote.client import Remote, base_name, is_remote
from dcgan_dist.data.shards.manifest import NAME, folder_of, manifest_beside, read_manifest, within_folder
from dcgan_dist.data.shards.patterns import exists, shards_of, spell_out
from dcgan_dist.data.shards.samples import MemberChoice
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.location import Location

SIZE_REQUESTS = 16  # at a time


@dataclass
class Checklist:
    """The shards to check, and what is already known to be wrong."""

    jobs: list[ShardJob] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    bytes: int = 0  # of all shards


def make_checklist(
    patterns: Sequence[str], manifest: str | None, remote: Remote, deep: bool, choice: MemberChoice | None = None
) -> Checklist:
    """The shards that patterns stand for, each with its entry in a manifest if there is one.

    `patterns`: paths, globs, brace lists, URLs, folders of shards, or a manifest.json (all shards that it names).
    `manifest`: path or URL of the manifest of all these shards; None: the manifest.json beside each shard, if any.
    `deep`, `choice`: see ShardJob.

    Raises UsageError when a pattern matches nothing, UserError when a manifest cannot be read.
    """
    found = Checklist()
    complete: set[str] = set()  # folders of which all shards were asked for
    folders: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for pattern in patterns for name in _names(pattern, remote, complete)):
        folders.setdefault(folder_of(name), []).append(name)
    jobs = []
    for folder, names in folders.items():
        known = read_manifest(manifest, remote) if manifest else manifest_beside(folder, remote)
        entries = {entry.name: entry for entry in known.shards} if known else {}
        if known:
            found.problems += _compare(folder, names, list(entries), folder in complete)
        for name in names:
            entry = entries.get(base_name(name))
            jobs.append(ShardJob(name=name, deep=deep, entry=entry, remote=remote, choice=choice or MemberChoice()))
    with ThreadPoolExecutor(SIZE_REQUESTS) as pool:
        for job, size in pool.map(_measure, jobs):
            found.bytes += size
            found.jobs += [job] if isinstance(job, ShardJob) else []
            found.problems += [job] if isinstance(job, Problem) else []
    return found


def shard_names(patterns: Iterable[str], remote: Remote) -> list[str]:
    """The shards that paths, globs, brace lists, URLs, folders and manifests stand for, without duplicates."""
    return list(dict.fromkeys(name for pattern in patterns for name in _names(pattern, remote, set())))


def _names(pattern: str, remote: Remote, complete: set[str]) -> list[str]:
    pattern = Location(pattern)
    if base_name(pattern) == NAME:
        folder = folder_of(pattern)
        complete.add(folder)
        return [within_folder(folder, entry.name) for entry in read_manifest(pattern, remote).shards]
    if not is_remote(pattern) and exists(f"{pattern}/{NAME}") and not any(Path(pattern).glob("*.tar*")):
        return _names(f"{pattern}/{NAME}", remote, complete)  # all shards that it names are missing
    if pattern.startswith("pipe:"):
        raise UsageError(f"{pattern}: a pipe cannot be checked, because it is read only once")
    names = shards_of(pattern, remote)
    if is_remote(pattern) and ("*" in pattern or names != spell_out(pattern, remote)):  # a folder
        complete |= {folder_of(name) for name in names}
    return names


def _compare(folder: str, names: list[str], entries: list[str], complete: bool) -> list[Problem]:
    """Shards that a manifest names and that do not exist (of remote ones only if all were asked for), and others."""
    found = {base_name(name): name for name in names}
    absent = [within_folder(folder, name) for name in entries if name not in found]
    absent = [name for name in absent if (complete if is_remote(name) else not Path(name).exists())]
    extra = [name for base, name in found.items() if base not in entries]
    rows = [(name, "missing", "the manifest names this shard; it is not there") for name in absent]
    rows += [(name, "extra", "the manifest does not name this shard") for name in extra]
    return [Problem(shard=Location(name), kind=kind, what=what) for name, kind, what in rows]


def _measure(job: ShardJob) -> tuple[ShardJob | Problem, int]:
    """A shard and its size; a problem for a remote one that does not answer."""
    if is_remote(job.name):
        try:
            stat = job.remote.stat(job.name)
        except UsageError:  # a package is missing
            raise
        except UserError as error:
            name = job.shown
            return Problem(shard=name, kind="unreadable", what=str(error).removeprefix(f"{name}: ")), 0
        return replace(job, stat=stat), stat.size
    try:
        return job, Path(job.name).stat().st_size
    except OSError:  # check_shard reports what is wrong with it
        return job, 0
