"""One life of a run: what the train loop asks, and what it does every so often."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dcgan_dist.config import Config
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.reading.reader import IndexedReader, Split
from dcgan_dist.data.reading.ring import Batch
from dcgan_dist.data.reading.stream import StreamReader
from dcgan_dist.data.storage import write_atomically
from dcgan_dist.gan.images import to_pixels, to_range
from dcgan_dist.gan.schedule import lr_factor
from dcgan_dist.gan.state import TrainState
from dcgan_dist.gan.step import Engine, Game, Noise
from dcgan_dist.parallel.agreement import Agreement
from dcgan_dist.parallel.feed import on_device
from dcgan_dist.parallel.noise import NoiseSource, sample_latents
from dcgan_dist.parallel.precision import Arithmetic
from dcgan_dist.parallel.world import World
from dcgan_dist.run import checkpoint, resume
from dcgan_dist.run.clock import Clock
from dcgan_dist.run.console import Console
from dcgan_dist.run.divergence import Recovery
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.grid import grid, save_png
from dcgan_dist.run.jsonl import MetricsFile
from dcgan_dist.run.reading import ReadingReport
from dcgan_dist.run.signals import StopRequest
from dcgan_dist.run.stats import Stats
from dcgan_dist.run.trackers import Trackers


@dataclass(kw_only=True)
class Session:
    """Everything a life of a run works with."""

    config: Config
    world: World
    arithmetic: Arithmetic
    state: TrainState
    engine: Engine
    game: Game
    data: Corpus | list[str]
    reader: IndexedReader | StreamReader
    split: Split
    folder: RunFolder
    console: Console
    stats: Stats
    clock: Clock
    stop_request: StopRequest
    agreement: Agreement
    metrics: MetricsFile
    trackers: Trackers
    reading: ReadingReport
    recovery: Recovery
    first: int = 0
    """Images seen where this life began."""
    last_report: tuple[float, int] = field(default_factory=lambda: (time.monotonic(), 0))

    # ---- the loop's questions

    def due(self, every: int) -> bool:
        """Whether the iteration that just ended reached or passed a multiple of `every` images."""
        seen = self.state.images
        return seen > self.first and seen // every > (seen - self.config.batch_size) // every

    def finished(self) -> bool:
        """Whether the configured number of images has been shown."""
        return self.state.images >= self.config.images

    def stop_agreed(self) -> bool:
        """Whether a stop was asked for on any rank; the same answer on all of them."""
        return self.agreement.ask(self.stop_request.wanted)

    def check_health(self, stop: bool) -> None:
        """Before anything is reported or kept: takes the state back to a checkpoint, or raises UserError, if training
        has diverged or collapsed; all ranks alike. `stop`: whether this life ends here.
        """
        config, recovery = self.config, self.recovery
        due = self.due(config.log.every) or self.due(config.checkpoint.every)
        if (due or stop or self.finished() or recovery.wanted()) and recovery.look(self.report):
            self.first = self.state.images
            self.last_report = (time.monotonic(), self.first)
            self.console.begin(self.first, config.images)

    # ---- what an iteration needs

    def inputs(self) -> Iterator[tuple[list[Tensor], list[Noise]]]:
        """Real images and noise of one iteration after the other, as micro-batches on the device."""
        config, weights = self.config, self.arithmetic.weights
        while True:
            rollbacks = self.state.rollbacks
            noise = NoiseSource(config, self.split, self.world.device, weights, rollbacks)
            with closing(self.reader.batches(self.state.images, self.split)) as batches:
                for batch in on_device(batches, self.world.device):
                    yield self._real(batch), noise.at(self.state.images)
                    if self.state.rollbacks != rollbacks:
                        break

    def _real(self, batch: Batch) -> list[Tensor]:
        flips = batch.flips if self.config.data.hflip else None
        real = to_range(batch.images, flips, self.config.model.output, self.arithmetic.weights)
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        return list(real.contiguous(memory_format=layout).chunk(self.config.accumulate))

    def set_learning_rates(self) -> None:
        """Those of the next iteration."""
        options, config = self.config.optimizer, self.config
        factor = lr_factor(options, self.state.images, config.batch_size, config.images)
        factor *= config.divergence.lr_factor**self.state.rollbacks
        self.state.opt_g.param_groups[0]["lr"] = options.g_lr * factor
        self.state.opt_d.param_groups[0]["lr"] = options.d_lr * factor

    # ---- what is done every so often; all ranks call these together

    def report(self) -> None:
        """One line of numbers, everywhere."""
        images = self.state.images
        values = self.stats.reduce(self.world.sum_)
        values |= self.clock.read() | self._speed(images) | self.reading.values()
        values["lr/g"], values["lr/d"] = (o.param_groups[0]["lr"] for o in (self.state.opt_g, self.state.opt_d))
        if self.arithmetic.scaled:
            values |= {"scale/g": self.state.scaler_g.get_scale(), "scale/d": self.state.scaler_d.get_scale()}
        values |= self.recovery.collapse.look(values, self.trackers)
        if self.state.rollbacks:
            values["health/rollbacks"] = float(self.state.rollbacks)
        self.world.from_main(lambda: self.metrics.append({"images": images, **values}))
        self.trackers.scalars(images, values)
        self.console.progress(images, values)

    def sample(self) -> None:
        """The grid of the fixed latents by the average of G, in evaluation mode: no picture depends on the others."""
        self.world.from_main(self._write_samples)

    def _write_samples(self) -> None:
        config, images = self.config, self.state.images
        weights = next(self.state.ema.parameters())
        z = sample_latents(config.model, config.seed, 0, config.log.samples, weights)
        with torch.no_grad():
            pixels = torch.cat(
                [to_pixels(self.engine.forward(self.state.ema, part), config.model.output) for part in z.split(64)]
            )
        picture = grid(pixels.cpu())
        save_png(picture, self.folder.sample(images))
        self.trackers.picture(images, "samples", picture)
        self.trackers.histogram(images, "samples/pixels", pixels.cpu().numpy())

    def save(self) -> None:
        """A checkpoint of everything, by the main rank; a failure to write it is every rank's."""
        if self.state.images == self.first and self.first > 0:
            return  # this very state is already there
        self.stats.fold(self.world.sum_, self.world.main)
        self.world.from_main(self._write_checkpoint)

    def _write_checkpoint(self) -> None:
        tensors = self.state.tensors()
        tensors["stats"] = self.stats.state_dict()
        checkpoint.save(
            self.folder.checkpoints,
            self.state.images,
            tensors,
            resume.describe(self.config, self.data, self.state),
            self.config.checkpoint.keep,
        )

    def finish(self, exit_code: int, stopped: int) -> None:
        """The orderly end of this life: says what came of it, in words and by a marker file."""
        self.reading.tell_damages()
        images = self.state.images
        marker = self.folder.preempted if exit_code == stopped else self.folder.done
        self.world.from_main(lambda: write_atomically(marker, f"{images}\n".encode()))
        self.trackers.close(exit_code)
        self.console.close()
        if exit_code == stopped:
            why = self.stop_request.reason or "another rank was asked to"
            self.console.say(f"stopped at {images:,} images ({why}); run the same command again to go on")
        else:
            self.console.say(
                f"done: {images:,} images; pictures in {self.folder.samples}, networks in {self.folder.checkpoints}"
            )
        self.world.barrier()
        self.world.close()

    def _speed(self, images: int) -> dict[str, float]:
        now, (then, before) = time.monotonic(), self.last_report
        self.last_report = (now, images)
        return {"speed/images_per_second": (images - before) / (now - then) if now > then else 0.0}
