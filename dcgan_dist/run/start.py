"""The start of an attempt: checks and set-up before the first iteration."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcgan_dist.config import Config
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.loading import make_reader, open_data
from dcgan_dist.errors import os_error_as_user_error
from dcgan_dist.gan.network_sizes import count_parameters
from dcgan_dist.parallel.engine import create
from dcgan_dist.parallel.precision import Arithmetic
from dcgan_dist.parallel.watchdog import watch
from dcgan_dist.parallel.world import World, set_cpu_threads
from dcgan_dist.run import checkpoint, resume, signals
from dcgan_dist.run.attempts import PAGE_SECONDS_STOPPED, AttemptLog, one_line
from dcgan_dist.run.console import Console
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.jsonl import MetricsFile
from dcgan_dist.run.lease import Lease
from dcgan_dist.run.memory import require_memory
from dcgan_dist.run.plan import layers_text, split_text
from dcgan_dist.run.report import write_at_end
from dcgan_dist.run.session import Session
from dcgan_dist.run.stats import Stats
from dcgan_dist.run.tracker_start import Start
from dcgan_dist.run.trackers import Trackers, open_trackers
from dcgan_dist.text import Say, counted

SLOW_CPU = (
    "a GPU, a smaller network (--model.image_size 48, --model.ngf 32, --model.ndf 32) or fewer --images takes less; "
    "Ctrl-C stops with a checkpoint"
)


def open_session(
    config: Config, config_yaml: str, world: World, chosen: Arithmetic, lines: Sequence[str] = ()
) -> Session:
    """Sets everything up, and resumes from the newest checkpoint, if there is one. Raises UserError.

    `lines`: what is printed first.

    Raises StoppedError on all ranks after a stop that was requested meanwhile; the attempt has ended then.
    """
    start = _Start(config, world, chosen)
    for line in lines:
        start.console.say(line)
    try:
        try:
            return start.open(config_yaml)
        except signals.StoppedError as stop:
            start.stop(str(stop))
            raise
    except BaseException as error:
        start.attempts.end(None, one_line(error), PAGE_SECONDS_STOPPED)
        start.lease.release()
        raise


class _Start:
    """The steps of the start, and what they share."""

    def __init__(self, config: Config, world: World, chosen: Arithmetic) -> None:
        self.config, self.world, self.arithmetic = config, world, chosen
        self.console = Console(world.main, form=config.log.format, verbosity=config.verbosity)
        self.folder = RunFolder(config.run_dir)
        self.lease = Lease(config.run_dir, self.console.say)
        say = self.console.say
        self.attempts = AttemptLog(
            self.folder.attempts, self.lease, say, lambda limit: write_at_end(config, say, limit)
        )
        self.facts: dict[str, Any] = {
            "world_size": world.size,
            "device": str(world.device),
            "precision": chosen.name,
            "parameters": count_parameters(config),
        }

    def open(self, config_yaml: str) -> Session:
        """All steps."""
        config, world = self.config, self.world
        requests = signals.take()
        self._check()
        data = world.main_first(lambda: open_data(config, self.console.say, requests.raise_if_stopped))
        found = world.from_main(lambda: resume.find(config, self.folder, data, self.console.say))
        own = found if found is not None and resume.is_own(found, self.folder) else None
        world.from_main(lambda: self.lease.take(new=True))
        if isinstance(data, Corpus):
            self.facts |= {"data_images": data.size, "data_fingerprint": data.fingerprint}
        commit = world.from_main(lambda: self._prepare_folder(config_yaml, own))
        watch(world, config, self.folder.stacks)
        state, engine = create(config, world, self.arithmetic)
        world.activity.place = lambda: f"iteration {state.iteration + 1:,} after {state.images:,} images"
        stats = Stats(world.device)
        before = resume.restore(found, state, stats, world)
        requests.watch(self.folder.stop, self.folder.save if world.main else None, config.stop.after_minutes)
        metrics, say = MetricsFile(self.folder.metrics), self.console.say
        about = self.facts | {"git_commit": commit}
        world.from_main(lambda: self.attempts.begin(state.images, metrics.path, about))
        world.from_main(lambda: _cut(metrics, before if own else {"images": -1}, config.images, say))
        pinned, local = world.device.type == "cuda", world.local_main
        session = Session(
            config=config,
            world=world,
            arithmetic=self.arithmetic,
            state=state,
            engine=engine,
            data=data,
            trackers=self._trackers(state.images, requests),
            reader=make_reader(config, data, local_ranks=world.local_size, pinned=pinned, say=say, first=local),
            folder=self.folder,
            console=self.console,
            lease=self.lease,
            stats=stats,
            requests=requests,
            metrics=metrics,
            attempts=self.attempts,
            earlier=before.get("run_seconds", 0.0),  # older versions did not count them
        )
        self.console.estimate(config.log.samples_every, SLOW_CPU if world.device.type == "cpu" else "")
        if "rollback" in (config.divergence.policy, config.collapse.policy) and not own:
            session.save(anyway=True)  # there must be one of this run to go back to
        return session

    def stop(self, reason: str) -> None:
        """Ends an attempt that was asked to stop before its first iteration."""
        images = self.world.from_main(lambda: self._mark_stopped(reason))
        self.console.say(
            f"stopped at {images:,} images, while the run was prepared ({reason}); run the same command again to resume"
        )
        self.lease.release()
        self.world.barrier()
        self.world.close()

    def _mark_stopped(self, reason: str) -> int:
        folder = self.folder
        self.lease.take(new=True)  # another job may have made a new run's folder
        self.lease.check()
        with os_error_as_user_error("", "cannot be read"):
            images = max((int(path.name) for path in checkpoint.all_checkpoints(folder.checkpoints)), default=0)
        folder.mark(folder.preempted, f"{images}\n{reason}")
        return images

    def _check(self) -> None:
        """Raises UsageError if ranks, folder or memory do not fit the options; takes an existing run's folder."""
        config, world, chosen, say = self.config, self.world, self.arithmetic, self.console.say
        resume.check_agreement(config, world)
        per_rank = config.per_rank(world.size)
        world.from_main(self.folder.check)
        world.from_main(self.lease.take)  # before anything is read that another job may be writing
        ranks = f"{counted(world.size, 'rank')} on {world.device.type}, {counted(per_rank, 'image')} each"
        say(f"{ranks}; {chosen.name}: {chosen.reason}")
        if world.main:  # the others print nothing
            self.console.detail(f"{layers_text(config)}\n{split_text(config, world.size)}")
        require_memory(config, chosen, world, say)
        if threads := set_cpu_threads(world):
            say(threads)
        if config.data.secret:
            say(f"{self.folder.config}: readable only by its owner (mode 0600), because --data.shards holds secrets")

    def _prepare_folder(self, config_yaml: str, newest: Path | None) -> str | None:
        """Returns the commit. `newest`: the checkpoint of this folder from which this attempt resumes."""
        if newest is None:
            self.folder.put_aside(self.console.say)
        else:
            self.folder.note_checkpoint(checkpoint.load_state(newest)["images"])  # older versions did not
        found = self.folder.prepare(config_yaml, self.facts, private=self.config.data.secret)
        self.console.keep(self.folder.log)
        return found["git_commit"]

    def _trackers(self, images: int, requests: signals.RequestMonitor) -> Trackers:
        if not self.world.main:
            return Trackers(self.console.say)

        def stop() -> None:
            requests.ask("stopped in W&B")
            with contextlib.suppress(OSError):
                self.folder.stop.touch()  # informs the job script that this is no time limit

        start = Start(config=self.config, images=images, say=self.console.say, on_stop=stop, environment=self.facts)
        return open_trackers(start)


def _cut(metrics: MetricsFile, before: dict[str, Any], end: int, say: Say) -> None:
    """Drops the reports that this attempt writes again. `before`: the checkpoint's state.json.

    `end`: images of the complete run, whose last report comes after the last checkpoint, and only once.
    """
    reported = before.get("last_report", before["images"])  # older versions did not record it
    kept = before["images"] if before["images"] >= end else reported
    if dropped := metrics.cut_after(kept):
        lines = f"{counted(dropped, 'line')} after {kept:,} images"
        say(f"{metrics.path}: {lines} dropped, because these reports are written again")
    if metrics.last < reported and "last_report" in before:
        ends = f"ends at {metrics.last:,} images" if metrics.last >= 0 else "holds no report"
        say(
            f"WARNING: {metrics.path} {ends}, but the run had reported at {reported:,}: reports are missing, and are "
            "not written again; stop and restore the file if you have a copy"
        )
