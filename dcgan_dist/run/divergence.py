"""What happens when training diverges or collapses: the run ends with a message, or goes back to a checkpoint.

No iteration waits for the device: all ranks check the numbers together before every report and every checkpoint. Until
then the optimisers skip updates with a bad gradient (gan/nonfinite.py), so neither the average of G nor a checkpoint
ever holds an inf or NaN.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dcgan_dist.config import Config
from dcgan_dist.data.system.storage import write_atomically
from dcgan_dist.errors import UserError, os_error_as_user_error
from dcgan_dist.gan.nonfinite import first_not_finite, not_finite
from dcgan_dist.gan.state import TrainState
from dcgan_dist.parallel.world import World
from dcgan_dist.run import checkpoint, resume
from dcgan_dist.run.attempts import now
from dcgan_dist.run.collapse import CollapseWatch
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.jsonl import MetricsFile
from dcgan_dist.run.saving import Saver
from dcgan_dist.run.stats import Stats
from dcgan_dist.run.trackers import Trackers
from dcgan_dist.text import Say

SCALE_FLOOR = 1e-4  # fp16: a loss scale below it, after some thirty overflows in a row, counts as divergence
D_LOSS, D_GRADIENT, G_LOSS, G_GRADIENT, AFTERWARDS = range(5)  # places in an iteration


@dataclass(kw_only=True)
class Recovery:
    """Checks for numbers that are not finite and for signs of collapse, and rolls the state back."""

    config: Config
    world: World
    state: TrainState
    stats: Stats
    folder: RunFolder
    metrics: MetricsFile
    saver: Saver
    collapse: CollapseWatch
    trackers: Trackers
    say: Say

    def wanted(self) -> bool:
        """Whether a collapse calls for a rollback now; the same answer on all ranks."""
        return self.config.collapse.policy == "rollback" and bool(self.collapse.counted())

    def look(self, report: Callable[[], None]) -> bool:
        """Whether the state was rolled back; the same on all ranks. Raises UserError on all when training must end.

        `report` is called before that, to show the bad numbers.
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
            remedies += ", or let the run go back by itself with --divergence.policy rollback"
        return UserError(f"{reason}; {kept}: {remedies}").of_all_ranks()

    def _names(self) -> list[str]:
        with suppress(UserError):
            self.saver.wait()
        with suppress(OSError):
            return [path.name for path in checkpoint.all_checkpoints(self.folder.checkpoints)]
        return []

    def _go_back(self, reason: str, before: int) -> None:
        """Rolls back to the newest checkpoint of at most `before` images; if there is none, to the oldest."""
        since, count = self.state.images, self.state.rollbacks + 1
        path = self.world.from_main(lambda: self._prepare_target(before))
        resume.restore(path, self.state, self.stats, self.world)
        self.state.rollbacks, self.state.signs = count, {}
        self.world.from_main(lambda: self._report(path, reason, since))
        self.trackers.scalars(self.state.images, {"health/rollbacks": float(count)})
        self.trackers.alert("Training was rolled back to a checkpoint", reason)

    def _prepare_target(self, before: int) -> Path:
        """The checkpoint to go back to, which then is the newest. Raises UserError."""
        self.saver.wait()  # a save must not end after newer checkpoints were removed here
        folder = self.folder.checkpoints
        with os_error_as_user_error(folder, "cannot go back there"):
            self.saver.lease.check()
            intact = [path for path in checkpoint.all_checkpoints(folder) if checkpoint.verify(path) is None]
            if not intact:
                raise UserError(f"{folder}: there is no intact checkpoint; lower --optimizer.g_lr and d_lr")
            target = [path for path in intact if int(path.name) <= before or path == intact[0]][-1]
            write_atomically(folder / "latest", target.name.encode())
            for path in intact[intact.index(target) + 1 :]:  # a later attempt must not resume from them
                checkpoint.leave_behind(path, self.saver.lease)
        return target

    def _report(self, path: Path, reason: str, since: int) -> None:
        state, options = self.state, self.config.divergence
        slower = f" and learning rates times {options.lr_factor**state.rollbacks:g}" if options.lr_factor < 1 else ""
        self.say(
            f"WARNING: {reason}; rollback {state.rollbacks} of at most {options.most_rollbacks}: resuming from {path} "
            f"with new noise{slower}"
        )
        self.metrics.cut_after(state.images)
        about = {"health/rollbacks": state.rollbacks, "rollback_from": since, "rollback_reason": reason}
        about["rollback_time"] = now()
        with suppress(UserError):  # a full disk: the line is written later
            self.metrics.append({"images": state.images, **about})

    def _fault(self) -> str | None:
        """Describes the first number that is not finite on any rank; the same on all. Waits for the device."""
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
        """This rank's first: images, place in the iteration, description."""
        state, found = self.state, []
        for loss, name, watch, scaler in (
            (D_LOSS, "D", state.detector_d, state.scaler_d),
            (G_LOSS, "G", state.detector_g, state.scaler_g),
        ):
            fault = watch.look()
            if fault is not None and not (scaler.is_enabled() and scaler.get_scale() >= SCALE_FLOOR):
                owner = f"{name}: " if fault.in_gradient else ""
                found.append((fault.images, loss + fault.in_gradient, owner + fault.text))
        if bad := first_not_finite(state.tensors()):
            name, tensor = bad
            found.append((state.images, AFTERWARDS, f"{name}: {not_finite(tensor)}"))
        return min(found, default=None)
