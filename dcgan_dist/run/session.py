"""One attempt of a run: what the train loop asks for, and its periodic work."""

import shlex
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from dcgan_dist.config import Config
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.reading.reader import IndexedReader
from dcgan_dist.data.reading.stream import StreamReader, StreamUrls
from dcgan_dist.errors import UserError
from dcgan_dist.gan.images import to_pixels
from dcgan_dist.gan.state import TrainState
from dcgan_dist.gan.step import Engine, Noise, micro_batches
from dcgan_dist.parallel.agreement import Agreement, Requests
from dcgan_dist.parallel.feed import on_device
from dcgan_dist.parallel.noise import NoiseSource, sample_latents, split_of
from dcgan_dist.parallel.precision import Arithmetic
from dcgan_dist.parallel.world import World
from dcgan_dist.run import resume
from dcgan_dist.run.attempts import PAGE_SECONDS, PAGE_SECONDS_STOPPED, AttemptLog, one_line
from dcgan_dist.run.clock import Clock
from dcgan_dist.run.collapse import CollapseWatch
from dcgan_dist.run.console import Console, human_time
from dcgan_dist.run.divergence import Recovery
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.gpus import GpuReport
from dcgan_dist.run.grid import grid, save_png
from dcgan_dist.run.jsonl import MetricsFile
from dcgan_dist.run.lease import Lease
from dcgan_dist.run.reading import ReadingReport
from dcgan_dist.run.real import RealImages
from dcgan_dist.run.saving import Saver
from dcgan_dist.run.signals import RequestMonitor
from dcgan_dist.run.stats import Stats
from dcgan_dist.run.stragglers import Stragglers
from dcgan_dist.run.trackers import Trackers
from dcgan_dist.run.wandb_history import REAL, SAMPLES

OUTPUTS = ("logit/real", "logit/fake")  # of D, for each image


@dataclass(kw_only=True)
class Session:
    """Everything an attempt of a run works with."""

    config: Config
    world: World
    arithmetic: Arithmetic
    state: TrainState
    engine: Engine
    data: Corpus | StreamUrls
    reader: IndexedReader | StreamReader
    folder: RunFolder
    console: Console
    lease: Lease
    stats: Stats
    requests: RequestMonitor
    metrics: MetricsFile
    trackers: Trackers
    attempts: AttemptLog
    earlier: float  # seconds that the run took in earlier attempts, up to the checkpoint that this one resumes from

    def __post_init__(self) -> None:
        config, world, say = self.config, self.world, self.console.say
        self.split = split_of(config, world)
        self.clock, self.agreement = Clock(world.device, world.activity), Agreement(world)
        self.engine = replace(self.engine, section=partial(self.clock.section, on_device=True))
        self.saver = Saver(self.folder, config.checkpoint, self.lease, say, world.device, self.trackers.checkpoint)
        self.real = RealImages(self.folder.real, config.log.samples, say)
        self.reading = ReadingReport(self.reader, world, self.console)
        self.stragglers = Stragglers(world, self.console, config.watchdog.slow_factor)
        self.gpus = GpuReport(world, say)
        self.recovery = Recovery(
            config=config,
            world=world,
            state=self.state,
            stats=self.stats,
            folder=self.folder,
            metrics=self.metrics,
            saver=self.saver,
            collapse=CollapseWatch(config, world, self.state, self.engine, say),
            trackers=self.trackers,
            say=say,
        )
        self.begin()

    def begin(self) -> None:
        """Training continues from the images that the state has seen."""
        seen, batch = self.state.images, self.config.batch_size
        self.first = seen  # images seen where this attempt began, or went back to
        self.last_report = (time.monotonic(), seen)
        end = seen + -(-max(self.config.images - seen, 0) // batch) * batch
        self.console.begin(seen, end, self._epoch_size)
        if end != self.config.images and not self.finished() and not self.state.rollbacks:
            self.console.say(f"--images {self.config.images:,}: training ends at {end:,} images, with a complete batch")

    @property
    def _epoch_size(self) -> int | None:
        return self.data.size if isinstance(self.data, Corpus) else None

    # ---- decisions

    def due(self, every: int) -> bool:
        """Whether the last iteration reached or passed a multiple of `every` images."""
        seen = self.state.images
        return seen > self.first and seen // every > (seen - self.config.batch_size) // every

    def finished(self) -> bool:
        """Whether the configured number of images was shown."""
        return self.state.images >= self.config.images

    def agreed(self) -> Requests:
        """The requests on any rank; the same on all."""
        return self.agreement.ask(self._asked_for)

    def _asked_for(self) -> Requests:
        # a checkpoint without a new image can wait
        save = self.state.images > self.first and self.requests.save_wanted()
        return Requests(stop=self.requests.stop_wanted(), save=save)

    def seconds(self) -> float:
        """Wall time of the run so far, over all attempts."""
        return self.earlier + self.requests.seconds()

    def check_health(self, asked: bool) -> None:
        """Before a report or a save: rolls back to a checkpoint, or raises UserError, if training has diverged or
        collapsed; the same on all ranks. `asked`: a stop or a checkpoint was requested.
        """
        config, recovery = self.config, self.recovery
        due = self.due(config.log.every) or self.due(config.checkpoint.every)
        if (due or asked or self.finished() or recovery.wanted()) and recovery.look(self.report):
            self.begin()

    # ---- inputs of an iteration

    def inputs(self) -> Iterator[tuple[list[Tensor], list[Noise]]]:
        """Real images and noise of each iteration, as micro-batches on the device."""
        config, weights = self.config, self.arithmetic.weights
        while True:
            rollbacks = self.state.rollbacks
            noise = NoiseSource(config, self.split, self.world.device, weights, rollbacks)
            with closing(self.reader.batches(self.state.images, self.split)) as batches:
                for batch in on_device(batches, self.world.device):
                    if self.world.main:
                        self.real.keep(self.reader, batch.images)
                    yield micro_batches(config, batch.images, batch.flips, weights), noise.at(self.state.images)
                    if self.state.rollbacks != rollbacks:
                        break

    # ---- periodic work; all ranks call these together

    def report(self) -> None:
        """Reports the scalars since the last report."""
        images = self.state.images
        values = self.stats.reduce(self.world.sum_)
        values |= self.clock.read() | self._speed(images) | self.reading.values()
        values |= self.stragglers.values(values) | self.gpus.values()
        values["time/run_hours"] = self.seconds() / 3600
        if self._epoch_size:
            values["epoch"] = images / self._epoch_size
        values["lr/g"], values["lr/d"] = (o.param_groups[0]["lr"] for o in (self.state.opt_g, self.state.opt_d))
        if self.arithmetic.scaled:
            values |= {"scale/g": self.state.scaler_g.get_scale(), "scale/d": self.state.scaler_d.get_scale()}
        values |= self.recovery.collapse.look(values, self.trackers)
        if self.state.rollbacks:
            values["health/rollbacks"] = float(self.state.rollbacks)
        self.world.from_main(lambda: self._record(images, values))
        self.trackers.scalars(images, values)
        self.console.progress(images, values)

    def _record(self, images: int, values: dict[str, float]) -> None:
        self._still_ours()
        values |= self.saver.seconds()
        try:
            self.metrics.append({"images": images, **values})
        except UserError as error:
            self.console.say(f"WARNING: {error}; the run goes on, and the line is written when there is space")
        self.saver.check()

    def _still_ours(self) -> None:
        """Raises UserError when a newer attempt owns the run. Disk errors are left to the next save."""
        with suppress(OSError):
            self.lease.check()

    def sample(self) -> None:
        """Saves the grid of G's moving average for the fixed latents, in evaluation mode."""
        outputs = {name: self.stats.newest[name] for name in OUTPUTS if name in self.stats.newest}
        shares = self.world.gather({name: torch.as_tensor(x).detach().float().cpu() for name, x in outputs.items()})
        self.world.from_main(lambda: self._write_samples(shares))

    def _write_samples(self, outputs: list[dict[str, Tensor]]) -> None:
        """`outputs`: of each rank, D's outputs in the last iteration that updated it."""
        self._still_ours()
        config, images, trackers = self.config, self.state.images, self.trackers
        weights = next(self.state.ema.parameters())
        z = sample_latents(config.model, config.seed, 0, config.log.samples, weights)
        with torch.no_grad():
            pixels = torch.cat(
                [to_pixels(self.engine.forward(self.state.ema, part), config.model.output) for part in z.split(64)]
            )
        picture = grid(pixels.cpu().numpy())
        try:
            save_png(picture, self.folder.sample(images))
        except UserError as error:
            self.console.say(f"WARNING: {error}; the run goes on without this picture")
        if (real := self.real.unseen()) is not None:
            trackers.picture(0, REAL, real)
        trackers.picture(images, SAMPLES, picture)
        trackers.histogram(images, "samples/pixels", pixels.cpu().numpy())
        for name in outputs[0]:
            trackers.histogram(images, f"{name}_histogram", torch.cat([share[name] for share in outputs]).numpy())

    def save(self, anyway: bool = False) -> None:
        """Starts to save a checkpoint; all ranks raise its failure at the next report."""
        if self.state.images == self.first and not anyway:
            return  # this state is already saved, or follows from the seed
        self.stats.fold(self.world.sum_, self.world.main)
        self.world.from_main(self._begin_save)

    def _begin_save(self) -> None:
        tensors = self.state.tensors() | {"stats": self.stats.state_dict()}
        described = resume.describe(self.config, self.data, self.state) | {"run_seconds": self.seconds()}
        described["last_report"] = self.metrics.last
        # an attempt that resumes from here does not write the earlier lines again
        self.saver.save(self.state.images, tensors, described, self.metrics.sync)
        if self.requests.save_noted is None:
            return
        if self.saver.wait():
            self.requests.saved()
            self.console.say(f"saved at {self.state.images:,} images, as {self.folder.save} asked")
        else:
            self.requests.save_failed()
            self.console.say(
                f"WARNING: not saved, although {self.folder.save} asked; touch it again when there is space"
            )

    def finish(self, exit_code: int, stopped: int) -> None:
        """Ends this attempt when all is on disk: prints its result, and writes a marker file."""
        self.world.activity.patient += 1  # trackers may take long
        unreported = self.world.from_main(lambda: self.metrics.last < self.state.images and self.stats.has_values())
        if exit_code != stopped and unreported:
            # after the checkpoint, which holds the sums: a run that is extended later reports as if it had not ended
            self.report()
            self.world.from_main(self.metrics.sync)
        self.world.from_main(self.saver.finish)
        self.reading.report_damages()
        images, taken, then = self.state.images, human_time(self.seconds()), ""
        if exit_code == stopped:
            why, seconds = self._why_stopped(), PAGE_SECONDS_STOPPED
            marker, text = self.folder.preempted, f"{images}\n{why}"
            last = f"stopped at {images:,} images after {taken} ({why}); run the same command again to resume"
        else:
            why, seconds = "done", PAGE_SECONDS
            marker, text = self.folder.done, f"{images}"
            page = f", everything in {self.folder.page}" if self.config.log.page else ""
            where = f"pictures in {self.folder.samples}, networks in {self.folder.checkpoints}{page}"
            last, then = f"done: {images:,} images after {taken}; {where}", self._next_steps()
            if images == self.first:
                last = f"nothing was left to do: {images:,} images had been seen before; --images can be larger"
                then = ""
        self.world.from_main(lambda: self.folder.mark(marker, text))
        self.attempts.end(images, why, seconds)
        self.trackers.alert("Training has stopped" if exit_code == stopped else "Training is done", last)
        self.trackers.close(exit_code)
        self.console.close()
        for line in filter(None, (last, then)):
            self.console.conclude(line)
        self.lease.release()
        self.world.barrier()
        self.world.close()

    def abandon(self, error: BaseException) -> None:
        """The end after an error: ends the threads."""
        self.console.close()
        self.saver.close()
        self.attempts.end(self.state.images, one_line(error), PAGE_SECONDS_STOPPED)
        self.trackers.alert("Training has failed", f"at {self.state.images:,} images: {one_line(error)}")
        self.trackers.close(exit_code=1)
        self.lease.release()

    def _next_steps(self) -> str:
        sample = f"dcgan-dist sample {shlex.quote(str(self.folder.root))}"
        return f"next: `{sample}` draws more pictures; the same command with more images trains on"

    def _why_stopped(self) -> str:
        reasons = self.world.gather(self.requests.reason)
        rank, reason = next((rank, reason) for rank, reason in enumerate(reasons) if reason)
        return f"rank {rank}: {reason}" if rank else reason

    def _speed(self, images: int) -> dict[str, float]:
        now, (then, before) = time.monotonic(), self.last_report
        self.last_report = (now, images)
        return {"speed/images_per_second": (images - before) / (now - then)} if images != before else {}
