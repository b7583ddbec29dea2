"""Resuming: finds the checkpoint, checks it against configuration and data, and loads it on every rank."""

import json
from pathlib import Path
from typing import Any

from dcgan_dist.config import Config, flatten
from dcgan_dist.data import order
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.reading.stream import StreamUrls
from dcgan_dist.errors import UsageError, UserError, os_error_as_user_error
from dcgan_dist.gan.state import TrainState
from dcgan_dist.parallel.world import World
from dcgan_dist.run import checkpoint
from dcgan_dist.run.checkpoint_manifest import MANIFEST
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.stats import Stats
from dcgan_dist.text import Say

# options that may change between two attempts of a run, because they do not change training
FREE = (
    "run_dir", "images", "channels_last", "world_size", "timeout", "dry_run", "quiet", "verbose", "debug",
    "data.shards", "data.decode", "data.workers", "data.prefetch", "data.damaged", "data.most_damaged", "data.cache",
    "data.cache_bytes", "data.timeout", "data.retries", "data.allow_pipe", "data.allow_cut", "log", "checkpoint",
    "divergence.policy", "divergence.lr_factor", "divergence.most_rollbacks", "collapse",
    "watchdog", "trackers", "wandb", "resume", "stop",
)  # fmt: skip
# options that may differ between the nodes of a job: paths, how each reads, what only the main rank does
OWN = (
    "run_dir", "quiet", "verbose", "debug", "log.format", "data.shards", "data.decode", "data.workers", "data.prefetch",
    "data.cache", "data.cache_bytes", "data.timeout", "data.retries", "data.allow_pipe", "wandb", "resume", "stop",
)  # fmt: skip


def check_agreement(config: Config, world: World) -> None:
    """Raises UsageError on all ranks when their options differ, through a file or a variable of their node."""
    given = world.gather(_options(config))
    for rank, other in enumerate(given):
        for name in changed_options(given[0], other, OWN):
            raise UsageError(
                f"--{name} is {given[0][name]} on rank 0 and {other[name]} on rank {rank}: every node needs the same "
                "options, --config files and ACCELERATE_* variables"
            ).of_all_ranks()


def describe(config: Config, data: Corpus | StreamUrls, state: TrainState) -> dict[str, Any]:
    """What a checkpoint's state.json holds."""
    exact = isinstance(data, Corpus)
    return {
        **state.numbers(),
        "config": _options(config),
        "order_version": order.VERSION,
        "data_fingerprint": data.fingerprint if exact else None,
        "data_images": data.size if exact else None,
        "data_names": None if exact else data.fingerprint,
    }


@os_error_as_user_error("", "cannot be read")
def find(config: Config, folder: RunFolder, data: Corpus | StreamUrls, say: Say) -> Path | None:
    """The checkpoint to resume from, checked against configuration and data; None to start at 0. For the main rank.

    Raises UsageError when they do not fit, and UserError when none is intact or a file cannot be read.
    """
    source, own = config.resume.source, None
    if source in ("auto", "never"):
        path = checkpoint.find_newest(folder.checkpoints, say)
        if path is not None and source == "never":
            raise UsageError(
                f"--run_dir {folder.root} holds the checkpoint {path.name} and --resume is never; name another folder"
            )
    else:
        own = _own(folder, source, say)
        path = own or resolve(Path(source).expanduser(), say)
        if path is None:
            raise UsageError(
                f"--resume {source}: no such checkpoint folder, nor a run's folder with one; give auto, never, or a "
                "path like RUN or RUN/checkpoints/000012800"
            )
    if source != "never":
        _refuse_lost(path, folder)
    if path is None:
        return None
    state = _load_state(path)
    newer = [one.name for one in checkpoint.all_checkpoints(folder.checkpoints) if int(one.name) > state["images"]]
    if newer and own is None and source != "auto":
        raise UsageError(
            f"--resume {path}: --run_dir {folder.root} holds newer checkpoints ({', '.join(newer)}), from which the "
            "next attempt would resume; move them elsewhere, or name a new --run_dir"
        )
    own_run = is_own(path, folder)
    _refuse_changes(path, config, data, state, _way_out(own_run))
    _refuse_fewer(path, own_run, config, state)
    say(f"resuming from {path}: {state['images']:,} images seen")
    return path


def resolve(source: Path, say: Say) -> Path | None:
    """The checkpoint of a path: of RUN, RUN/checkpoints and RUN/checkpoints/latest the newest that verifies, of
    RUN/checkpoints/best the one that it names, or a checkpoint's own folder. None for any other path.

    Raises UserError when none of a run's checkpoints is intact.
    """
    if source.name == "latest" and source.is_file():
        return checkpoint.find_newest(source.parent, say)
    if source.name == "best" and source.is_file():
        source = source.with_name(checkpoint.best_name(source.parent) or "none")
    for folder in (source / "checkpoints", source):
        if checkpoint.all_checkpoints(folder):
            return checkpoint.find_newest(folder, say)
    named = source.name.removesuffix(checkpoint.LEFT).isdecimal() or (source / MANIFEST).is_file()
    return source if source.is_dir() and named else None


def _own(folder: RunFolder, source: str, say: Say) -> Path | None:
    """The newest checkpoint of this run, if an earlier attempt with the same --resume wrote it."""
    path = checkpoint.find_newest(folder.checkpoints, say)
    same = path is not None and _load_state(path)["config"].get("resume.source") == source
    return path if same else None


def is_own(path: Path, folder: RunFolder) -> bool:
    """Whether a checkpoint is in the run's own folder, or a link to where it was moved is."""
    return folder.checkpoints.resolve() in (path.parent.resolve(), path.resolve().parent)


def _refuse_lost(path: Path | None, folder: RunFolder) -> None:
    """Raises UserError if the run's own checkpoints are gone, so that it would resume from none of them."""
    if (path is not None and is_own(path, folder)) or checkpoint.all_checkpoints(folder.checkpoints):
        return
    if folder.first_checkpoint.exists():
        raise UserError(
            f"{folder.option}: training has saved checkpoints here ({folder.first_checkpoint.name}), but "
            f"{folder.checkpoints} holds none (is its disk mounted?); put them back, or name a new --run_dir; --resume "
            f"never begins at 0 here, and keeps the earlier reports and samples in {folder.earlier}"
        )


def _refuse_fewer(path: Path, own: bool, config: Config, state: dict[str, Any]) -> None:
    """Raises UsageError if no image is left to train on, unless this run itself ended there."""
    seen, before = state["images"], state["config"].get("images")
    ended = own and (before == config.images or seen - config.batch_size < config.images)
    if seen >= config.images and not ended:
        raise UsageError(
            f"--images {config.images:,}: {path} has already seen {seen:,} images, so none is left; give more, or "
            f"{_way_out(own)}"
        )


def _way_out(own: bool) -> str:
    """How to train without the checkpoint. `own`: it is this run's."""
    return "name a new --run_dir" if own else "leave --resume out, to begin at 0 images"


def _load_state(path: Path) -> dict[str, Any]:
    """A checkpoint's state, with what `describe` returns. Raises UserError if that is missing."""
    state = checkpoint.load_state(path)
    complete = state.keys() >= {"data_fingerprint", "data_images", "order_version"}
    if not complete or not isinstance(state.get("config"), dict):
        raise UserError(
            f"{path / checkpoint.STATE}: does not record how the run was trained; name another checkpoint, or start "
            "again in another --run_dir"
        )
    return state


def _refuse_changes(path: Path, config: Config, data: Corpus | StreamUrls, state: dict[str, Any], way_out: str) -> None:
    now, allowed = _options(config), config.resume.allow_changes
    # a learning rate that falls towards the end depends on where the end is
    fixed = {"images"} if config.optimizer.decay != "none" else set()
    fixed |= {"divergence.lr_factor"} if state.get("rollbacks") else set()
    changed = changed_options(state["config"], now, tuple(name for name in FREE if name not in fixed) + allowed)
    if changed:
        differences = ", ".join(f"--{name} {state['config'][name]} -> {now[name]}" for name in changed)
        raise UsageError(
            f"{path} was trained with other options: {differences}; go back to them, allow them by "
            f"--resume.allow_changes {' '.join(changed)}, or {way_out}"
        )
    if isinstance(data, Corpus) and state["order_version"] != order.VERSION:
        raise UsageError(
            f"{path} was trained in version {state['order_version']} of the order of images, and this is version "
            f"{order.VERSION}: images would be repeated and left out; use the release of dcgan_dist that wrote it, or "
            f"{way_out}"
        )
    if "data.shards" in allowed:
        return
    if isinstance(data, Corpus) and state["data_fingerprint"] not in (None, data.fingerprint):
        raise other_data(path, state, data.size, way_out)
    if isinstance(data, StreamUrls) and data and state.get("data_names") not in (None, data.fingerprint):
        raise UsageError(
            f"{path} was trained on other shards, by their names or the sizes of files; go back to them, allow it by "
            f"--resume.allow_changes data.shards, or {way_out}"
        )


def other_data(path: Path, state: dict[str, Any], images: int, way_out: str = "name a new --run_dir") -> UsageError:
    """The refusal of a checkpoint that was trained on other data than these `images`."""
    return UsageError(
        f"{path} was trained on another data set ({state['data_images']:,} images, now {images:,}, or other images, "
        "labels or order of shards); go back to it, allow it by --resume.allow_changes data.shards, or "
        f"{way_out}"
    )


def restore(path: Path | None, state: TrainState, stats: Stats, world: World) -> dict[str, Any]:
    """Loads a checkpoint, which only the main rank reads, on all. Returns its `state.json`; empty without one."""
    if path is None:
        return {}
    tensors, numbers = _shared(path, world)
    try:
        state.load({file: values for file, values in tensors.items() if file != "stats"}, numbers)
        stats.load_state_dict(tensors["stats"], world.main)
    except (KeyError, RuntimeError) as error:
        problem = f"{path}: does not fit these networks ({' '.join(str(error).split())})"
        raise UserError(problem).of_all_ranks() from error
    return numbers


def _shared(path: Path, world: World) -> tuple[checkpoint.Tensors, dict[str, Any]]:
    """Tensors and numbers of a checkpoint that the main rank reads, on every rank."""
    loaded: checkpoint.Tensors = {}

    def read() -> tuple[list[str], dict[str, Any]]:
        tensors, numbers = checkpoint.load(path)
        loaded.update(tensors)
        return list(tensors), numbers

    files, numbers = world.from_main(read)
    flat = {f"{file}:{name}": value for file, values in loaded.items() for name, value in values.items()}
    tensors: checkpoint.Tensors = {file: {} for file in files}  # an optimiser without a step has no tensors
    for full_name, value in world.broadcast_tensors(flat).items():
        file, name = full_name.split(":", 1)
        tensors[file][name] = value
    return tensors, numbers


def changed_options(old: dict[str, Any], new: dict[str, Any], free: tuple[str, ...]) -> list[str]:
    """Options that differ between two flat configurations, except those in `free`, which may name groups."""
    changed = (name for name in old.keys() & new.keys() if old[name] != new[name])
    return sorted(name for name in changed if not f"{name}.".startswith(tuple(f"{one}." for one in free)))


def _options(config: Config) -> dict[str, Any]:
    """All options by their dotted names, as JSON returns them."""
    return json.loads(json.dumps(flatten(config), default=str))
