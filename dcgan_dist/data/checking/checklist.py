"""Which shards are to be looked at, and what a manifest says of each."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from dcgan_dist.data.checking.access import Job, base_name
from dcgan_dist.data.checking.verify import Problem
from dcgan_dist.data.remote.client import Remote, is_remote
from dcgan_dist.data.shards.manifest import NAME, Manifest, folder_of, manifest_beside, read_manifest, within_folder
from dcgan_dist.data.shards.patterns import exists, shards_of, spell_out
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.location import Location

AT_ONCE = 16  # questions about size


@dataclass
class Checklist:
    """What is to be done, and what is wrong already."""

    jobs: list[Job] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    bytes: int = 0
    """Of all shards."""
    manifests: list[Manifest] = field(default_factory=list)


def make_checklist(patterns: Sequence[str], manifest: str | None, remote: Remote, deep: bool) -> Checklist:
    """The shards that patterns stand for, each with its entry in a manifest where there is one.

    Args:
        patterns: paths, globs, brace lists, URLs, folders of shards, or a manifest.json (all shards that it names).
        manifest: path or URL of the manifest of all these shards; None: the manifest.json beside each shard, if any.
        remote: how remote shards are read.
        deep: whether the jobs decode every image.

    Raises UsageError when a pattern stands for nothing, UserError when a manifest cannot be read.
    """
    found = Checklist()
    whole: set[str] = set()  # folders of which all shards were meant
    names: dict[str, None] = {}
    for pattern in patterns:
        names |= dict.fromkeys(_names(pattern, remote, whole))
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(folder_of(name), []).append(name)
    for folder, members in folders.items():
        known = read_manifest(manifest, remote) if manifest else manifest_beside(folder, remote)
        entries = {}
        if known is not None:
            found.manifests.append(known)
            entries = {entry.name: entry for entry in known.shards}
            found.problems += _absent(folder, members, list(entries), folder in whole)
            found.problems += [
                Problem(shard=Location(name), kind="extra", what="the manifest does not name this shard")
                for name in members
                if base_name(name) not in entries
            ]
        found.jobs += [Job(name=name, deep=deep, entry=entries.get(base_name(name)), remote=remote) for name in members]
    return _measured(found)


def shard_names(patterns: Iterable[str], remote: Remote) -> list[str]:
    """The shards that paths, globs, brace lists, URLs, folders and manifests stand for, each once."""
    return list(dict.fromkeys(name for pattern in patterns for name in _names(pattern, remote, set())))


def _names(pattern: str, remote: Remote, whole: set[str]) -> list[str]:
    pattern = Location(pattern)
    if base_name(pattern) == NAME:
        folder = folder_of(pattern)
        whole.add(folder)
        return [within_folder(folder, entry.name) for entry in read_manifest(pattern, remote).shards]
    if not is_remote(pattern) and exists(f"{pattern}/{NAME}") and not any(Path(pattern).glob("*.tar*")):
        return _names(f"{pattern}/{NAME}", remote, whole)  # all that it names are missing
    if pattern.startswith("pipe:"):
        raise UsageError(f"{pattern}: a pipe cannot be checked, for it can be read only once")
    names = shards_of(pattern, remote)
    if is_remote(pattern) and ("*" in pattern or names != spell_out(pattern, remote)):  # a folder
        whole |= {folder_of(name) for name in names}
    return names


def _absent(folder: str, members: list[str], entries: list[str], whole: bool) -> list[Problem]:
    """Shards that a manifest names and that do not exist; of remote ones only where all of them were asked for."""
    there = {base_name(name) for name in members}
    absent = [within_folder(folder, name) for name in entries if name not in there]
    return [
        Problem(shard=Location(name), kind="missing", what="the manifest names this shard; it is not there")
        for name in absent
        if (whole if is_remote(name) else not Path(name).exists())
    ]


def _measured(found: Checklist) -> Checklist:
    """With the sizes of all shards; remote ones that do not answer become problems."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        sized = list(pool.map(_measure, found.jobs))
    jobs = [job for job, _ in sized if isinstance(job, Job)]
    problems = [job for job, _ in sized if isinstance(job, Problem)]
    found.jobs, found.problems, found.bytes = jobs, found.problems + problems, sum(size for _, size in sized)
    return found


def _measure(job: Job) -> tuple[Job | Problem, int]:
    if is_remote(job.name):
        try:
            stat = job.remote.stat(job.name)
        except UsageError:  # a package that is missing
            raise
        except UserError as error:
            name = job.shown
            return Problem(shard=name, kind="unreadable", what=str(error).removeprefix(f"{name}: ")), 0
        return replace(job, stat=stat), stat.size
    try:
        return job, Path(job.name).stat().st_size
    except OSError:  # check_shard says what is wrong with it
        return job, 0
