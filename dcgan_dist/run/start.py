"""The start of an attempt: what is checked, found and set up before the first iteration."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dcgan_dist.config import Config
from dcgan_dist.data.loading import make_reader, open_data
from dcgan_dist.data.reading.reader import Split
from dcgan_dist.errors import UserError
from dcgan_dist.gan.step import Game
from dcgan_dist.parallel.agreement import Agreement
from dcgan_dist.parallel.engine import create
from dcgan_dist.parallel.precision import Arithmetic
from dcgan_dist.parallel.watchdog import watch
from dcgan_dist.parallel.world import World, set_cpu_threads
from dcgan_dist.run import checkpoint, resume, signals
from dcgan_dist.run.clock import Clock
from dcgan_dist.run.collapse import CollapseWatch
from dcgan_dist.run.console import Console
from dcgan_dist.run.divergence import Recovery
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.jsonl import MetricsFile
from dcgan_dist.run.lease import Lease
from dcgan_dist.run.memory import require_memory
from dcgan_dist.run.reading import ReadingReport
from dcgan_dist.run.saving import Saver
from dcgan_dist.run.session import Session
from dcgan_dist.run.stats import Stats
from dcgan_dist.run.stragglers import Stragglers
from dcgan_dist.run.trackers import Trackers, open_trackers


def open_session(config: Config, config_yaml: str, world: World, chosen: Arithmetic) -> Session:
    """Sets everything up; goes on from the newest checkpoint, if there is one. Raises UserError before any training.

    Raises StoppedError on all ranks when a stop was asked for meanwhile; all is marked, said and closed then.
    """
    console = Console(enabled=world.main)
    lease = Lease(config.run_dir, console.say)
    try:
        try:
            return _open(config, config_yaml, world, chosen, console, lease)
        except signals.StoppedError as stop:
            _stop_early(config, world, console, lease, str(stop))
            raise
    except BaseException:
        lease.release()
        raise


def _stop_early(config: Config, world: World, console: Console, lease: Lease, reason: str) -> None:
    """The orderly end of an attempt that was asked to stop before it had begun."""
    folder = RunFolder(config.run_dir)

    def mark() -> int:
        lease.take(new=True)  # the next job may have a new run's folder by now
        lease.check()
        try:
            found = [int(path.name) for path in checkpoint.all_checkpoints(folder.checkpoints)]
            # without a checkpoint the last stop's number stays: it may show that there was one
            images = max(found, default=folder.stopped_at())
        except OSError as error:
            raise UserError(f"{error.filename or folder.root}: cannot be read ({error.strerror})") from error
        folder.mark(folder.preempted, f"{images}\n{reason}")
        return images

    images = world.from_main(mark)
    console.say(
        f"stopped at {images:,} images, while the run was prepared ({reason}); run the same command again to go on"
    )
    lease.release()
    world.barrier()
    world.close()


def _open(
    config: Config, config_yaml: str, world: World, chosen: Arithmetic, console: Console, lease: Lease
) -> Session:
    requests = signals.take()
    resume.check_agreement(config, world)
    per_rank = config.per_rank(world.size)
    folder = RunFolder(config.run_dir)
    world.from_main(folder.check)
    world.from_main(lease.take)  # before anything is looked for that another job may be writing
    ranks = f"{world.size} rank{'s' * (world.size > 1)} on {world.device.type}, {per_rank} images each"
    console.say(f"{ranks}; {chosen.name}: {chosen.reason}")
    require_memory(config, chosen, world, console.say)
    threads = set_cpu_threads(world)
    if threads:
        console.say(threads)
    data = world.main_first(lambda: open_data(config, console.say, requests.raise_if_stopped))
    found = world.from_main(lambda: resume.find(config, folder, data, console.say))
    if config.data.secret:
        console.say(f"{folder.config}: readable by its owner alone (mode 0600), for --data.shards holds secrets")
    facts = {"world_size": world.size, "device": str(world.device), "precision": chosen.name}
    world.from_main(lambda: lease.take(new=True))
    own = found is not None and resume.is_own(found, folder)
    world.from_main(lambda: _prepare(folder, found if own else None, console.say))
    world.from_main(lambda: folder.prepare(config_yaml, facts, private=config.data.secret))
    watch(world, config, folder.stacks)
    state, engine = create(config, world, chosen)
    world.activity.place = lambda: f"iteration {state.iteration + 1:,} after {state.images:,} images"
    stats = Stats(world.device)
    before = resume.restore(found, state, stats, world)
    requests.watch(folder.stop, folder.save if world.main else None, config.stop.after_minutes)
    metrics = MetricsFile(folder.metrics)
    world.from_main(lambda: _cut(metrics, before if own else {"images": -1}, config.images, console.say))
    trackers = Trackers(console.say)
    if world.main:
        trackers = open_trackers(config, state.images, console.say, lambda: _stop_for_good(requests, folder), facts)
    reader = make_reader(
        config,
        data,
        local_ranks=world.local_size,
        pinned=world.device.type == "cuda",
        say=console.say,
        first=world.local_main,
    )
    saver = Saver(folder, config.checkpoint, lease, console.say, world.device)
    clock = Clock(world.device, world.activity)
    recovery = Recovery(
        config=config,
        world=world,
        state=state,
        stats=stats,
        folder=folder,
        metrics=metrics,
        saver=saver,
        collapse=CollapseWatch(config, world, state, engine, console.say),
        trackers=trackers,
        say=console.say,
    )
    session = Session(
        config=config,
        world=world,
        arithmetic=chosen,
        state=state,
        engine=replace(engine, section=partial(clock.section, on_device=True)),
        game=Game.of(config),
        data=data,
        reader=reader,
        split=Split(batch=config.batch_size, micro_batches=config.accumulate, rank=world.rank, world_size=world.size),
        folder=folder,
        console=console,
        lease=lease,
        saver=saver,
        stats=stats,
        clock=clock,
        requests=requests,
        agreement=Agreement(world),
        metrics=metrics,
        trackers=trackers,
        reading=ReadingReport(reader, world, console),
        stragglers=Stragglers(world, console, config.watchdog.slow_factor),
        recovery=recovery,
        earlier=before.get("run_seconds", 0.0),  # older versions did not count them
    )
    session.begin()
    if recovery.goes_back and not own:
        session.save(anyway=True)  # there must be one of this run to go back to
    return session


def _prepare(folder: RunFolder, newest: Path | None, say: Callable[[str], None]) -> None:
    """What earlier attempts left here. `newest`: the checkpoint of this folder that this attempt goes on from."""
    if newest is None:
        folder.put_aside(say)
    else:
        folder.note_checkpoint(checkpoint.load_state(newest)["images"])  # it may be of a version that did not


def _cut(metrics: MetricsFile, before: dict[str, Any], end: int, say: Callable[[str], None]) -> None:
    """Drops the reports that come again. `before`: what the checkpoint says; older versions noted no last report.

    `end`: images of the complete run. That of its end comes after the last checkpoint, and only once.
    """
    reported = before.get("last_report", before["images"])
    kept = before["images"] if before["images"] >= end else reported
    dropped = metrics.cut_after(kept)
    if dropped:
        lines = f"{dropped:,} line{'s' * (dropped > 1)} after {kept:,} images"
        say(f"{metrics.path}: {lines} dropped, for these reports come again")
    if metrics.last < reported and "last_report" in before:
        ends = f"ends at {metrics.last:,} images" if metrics.last >= 0 else "holds no report"
        say(
            f"WARNING: {metrics.path} {ends}, but the run had reported at {reported:,}: reports are missing, and do "
            "not come again; stop and put the file back if you have it"
        )


def _stop_for_good(requests: signals.RequestMonitor, folder: RunFolder) -> None:
    """Somebody pressed W&B's stop button. The file tells the job script, too, that this is no time limit."""
    requests.ask("stopped in W&B")
    with contextlib.suppress(OSError):
        folder.stop.touch()
