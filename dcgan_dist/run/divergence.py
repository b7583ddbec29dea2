"""What happens when training diverges or collapses: the run ends with a message, or goes back to a checkpoint.

Nothing waits for the device in an iteration: numbers are looked at before every report and every checkpoint, by all
ranks together, and until then the optimisers leave alone what a bad gradient would spoil (gan/nonfinite.py). So neither
the average of G nor a checkpoint ever takes in an inf or NaN.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch.amp.grad_scaler import GradScaler

from dcgan_dist.config import Config
from dcgan_dist.data.system.storage import write_atomically
from dcgan_dist.errors import UserError
from dcgan_dist.gan.nonfinite import first_not_finite, not_finite
from dcgan_dist.gan.state import TrainState
from dcgan_dist.parallel.world import World
from dcgan_dist.run import checkpoint, resume
from dcgan_dist.run.collapse import CollapseWatch
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.jsonl import MetricsFile
from dcgan_dist.run.saving import Saver
from dcgan_dist.run.stats import Stats
from dcgan_dist.run.trackers import Trackers

SCALE_FLOOR = 1e-4  # fp16: overflows that bring the loss scale below it, some thirty in a row, are no passing matter
D_LOSS, D_GRADIENT, G_LOSS, G_GRADIENT, AFTERWARDS = range(5)  # places in an iteration


@dataclass(kw_only=True)
class Recovery:
    """Looks for numbers that are not finite and for counted signs of collapse, and takes the state back."""

    config: Config
    world: World
    state: TrainState
    stats: Stats
    folder: RunFolder
    metrics: MetricsFile
    saver: Saver
    collapse: CollapseWatch
    trackers: Trackers
    say: Callable[[str], None]

    @property
    def goes_back(self) -> bool:
        """Whether any policy is a rollback, which needs a checkpoint from the very beginning."""
        return "rollback" in (self.config.divergence.policy, self.config.collapse.policy)

    def wanted(self) -> bool:
        """Whether a collapse calls for a rollback now; the same answer on all ranks."""
        return self.config.collapse.policy == "rollback" and bool(self.collapse.counted())

    def look(self, report: Callable[[], None]) -> bool:
        """Whether the state was taken back, on all ranks. Raises UserError on all of them when training has to end.

        `report` is called before that, so that the bad numbers can be seen.
        """
        fault = self._fault()
        if fault is not None:
            reason, before = f"training has diverged: {fault}", self.state.images
            allowed = self.config.divergence.policy == "rollback"
        elif self.wanted():
            signs = self.collapse.counted()
            before, allowed = min(signs.values()), True
            reason = f"training has collapsed since {before:,} images ({', '.join(signs)})"
        else:
            return False
        if allowed and self.state.rollbacks < self.config.divergence.most_rollbacks:
            self._go_back(reason, before)
            return True
        report()
        raise self._end(reason, allowed)

    def _end(self, reason: str, allowed: bool) -> UserError:
        names = self.world.from_main(self._names)
        kept = f"the last checkpoint is {names[-1]}" if names else "there is no checkpoint yet"
        remedies = "lower --optimizer.g_lr and --optimizer.d_lr, clip gradients (--optimizer.g_clip and d_clip)"
        remedies += ", or use --precision fp32" if self.config.precision in ("bf16", "fp16") else ""
        if allowed:
            remedies = f"{remedies}, or use --divergence.lr_factor 0.5; rollbacks so far: {self.state.rollbacks}"
        else:
            remedies += ", or let it go back by itself with --divergence.policy rollback"
        error = UserError(f"{reason}; {kept}: {remedies}")
        error.on_all_ranks = True
        return error

    def _names(self) -> list[str]:
        """The checkpoints, with the one that is still being written."""
        with suppress(UserError):  # a save that failed is none of them
            self.saver.wait()
        with suppress(OSError):  # the disk is not what ends the run
            return [path.name for path in checkpoint.all_checkpoints(self.folder.checkpoints)]
        return []

    def _go_back(self, reason: str, before: int) -> None:
        """To the newest checkpoint of at most `before` images; if there is none any more, to the oldest."""
        since, count = self.state.images, self.state.rollbacks + 1
        path = self.world.from_main(lambda: self._target(before))
        resume.restore(path, self.state, self.stats, self.world)
        self.state.rollbacks, self.state.signs = count, {}
        images = self.state.images
        self.world.from_main(lambda: self._tell(path, reason, since))
        self.trackers.scalars(images, {"health/rollbacks": float(count)})
        self.trackers.alert("Training was taken back to a checkpoint", reason)

    def _target(self, before: int) -> Path:
        try:
            return self._prepared(before)
        except OSError as error:
            raise UserError(f"{self.folder.checkpoints}: cannot go back there ({error.strerror})") from error

    def _prepared(self, before: int) -> Path:
        """The checkpoint to go back to, which then is the newest."""
        self.saver.wait()  # or what it writes would come after what is removed here
        self.saver.lease.check()
        folder = self.folder.checkpoints
        whole = [path for path in checkpoint.all_checkpoints(folder) if checkpoint.verify(path) is None]
        if not whole:
            raise UserError(f"{folder}: there is no intact checkpoint to go back to; lower --optimizer.g_lr and d_lr")
        target = [path for path in whole if int(path.name) <= before or path == whole[0]][-1]
        write_atomically(folder / "latest", target.name.encode())
        for path in whole[whole.index(target) + 1 :]:  # a later attempt must not go on from them
            checkpoint.leave_behind(path, self.saver.lease)
        return target

    def _tell(self, path: Path, reason: str, since: int) -> None:
        state, options = self.state, self.config.divergence
        slower = f" and learning rates times {options.lr_factor**state.rollbacks:g}" if options.lr_factor < 1 else ""
        self.say(
            f"WARNING: {reason}; rollback {state.rollbacks} of at most {options.most_rollbacks}: going on from {path} "
            f"with new noise{slower}"
        )
        self.metrics.cut_after(state.images)
        about = {"health/rollbacks": state.rollbacks, "rollback_from": since, "rollback_reason": reason}
        with suppress(UserError):  # a full disk: the line waits until there is room
            self.metrics.append({"images": state.images, **about})

    def _fault(self) -> str | None:
        """The first number that is not finite on any rank, in words, the same on all; waits for the device."""
        ours = self._own_fault()
        if self.world.maximum(int(ours is not None)) == (0,):
            return None
        found = [(*fault[:2], rank, fault[2]) for rank, fault in enumerate(self.world.gather(ours)) if fault]
        images, place, first, text = min(found)
        count, size = sum(one[:2] == (images, place) for one in found), self.world.size
        where = f" on rank {first}" if count == 1 else f" on {count} of {size} ranks, the first is rank {first},"
        return f"{text}{where if count < size else ''} {self._when(images)}"

    def _when(self, images: int) -> str:
        if images == self.state.images:
            return f"at {images:,} images"
        batch = self.config.batch_size
        # the state counts iterations, and each showed a batch since the last change of its size
        iteration = self.state.iteration - (self.state.images - images) // batch
        return f"in iteration {iteration:,}, images {images:,} to {images + batch:,}, found at {self.state.images:,}"

    def _own_fault(self) -> tuple[int, int, str] | None:
        """This rank's first: images, place in the iteration, words."""
        state, found = self.state, []
        for loss, name, watch, scaler in (
            (D_LOSS, "D", state.detector_d, state.scaler_d),
            (G_LOSS, "G", state.detector_g, state.scaler_g),
        ):
            fault = watch.look()
            if fault is not None and not _passing(scaler):
                owner = f"{name}: " if fault.in_gradient else ""
                found.append((fault.images, loss + fault.in_gradient, owner + fault.text))
        bad = first_not_finite(state.tensors())
        if bad is not None:
            name, tensor = bad
            found.append((state.images, AFTERWARDS, f"{name}: {not_finite(tensor)}"))
        return min(found, default=None)


def _passing(scaler: GradScaler) -> bool:
    """Whether an overflow is the loss scale's daily work."""
    return scaler.is_enabled() and scaler.get_scale() >= SCALE_FLOOR
