"""Asynchronous saves: the loop copies the state in memory, and a thread writes the copy to disk."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dcgan_dist.config.run_groups import CheckpointConfig
from dcgan_dist.errors import UserError
from dcgan_dist.gan.nonfinite import first_not_finite
from dcgan_dist.run import checkpoint
from dcgan_dist.run.checkpoint import SaveError, Tensors
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.lease import Lease
from dcgan_dist.text import Say


class Saver:
    """The saves of one attempt, on the main rank. One at a time: the next waits for the one before.

    A failed save is reported by the next call of any method but `close`. A disk error is a warning, up to
    `most_failures` of them in a row; anything else (numbers that are not finite, a newer attempt) is raised.
    """

    def __init__(
        self,
        folder: RunFolder,
        options: CheckpointConfig,
        lease: Lease,
        say: Say,
        device: torch.device,
        on_saved: Callable[[Path], None] = lambda _: None,
    ) -> None:
        """`on_saved`: called, by these methods, with each checkpoint that is on disk; later saves may remove it."""
        self._on_saved = on_saved
        self._folder, self._options, self.lease, self._say, self._device = folder, options, lease, say, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._running: Future[tuple[Path, float]] | None = None
        self._failed: list[SaveError] = []  # by the saves since the last that succeeded
        self._seconds: dict[str, float] = {}

    def save(
        self, images: int, tensors: Tensors, state: dict[str, Any], prepare: Callable[[], None] = lambda: None
    ) -> None:
        """Starts a save; the tensors may change when this returns. Raises UserError, see above.

        `prepare` writes what must be on disk before; a UserError that it raises counts as a failed save.
        """
        begun = time.perf_counter()
        self._collect()
        try:
            prepare()
        except UserError as error:
            self._note(SaveError(f"{error}; without it no checkpoint is saved"))
        else:
            self._begin(images, tensors, state)
        spent = time.perf_counter() - begun
        self._seconds["time/save_seconds"] = self._seconds.get("time/save_seconds", 0.0) + spent

    def _begin(self, images: int, tensors: Tensors, state: dict[str, Any]) -> None:
        if not self._options.blocking:
            # on a GPU the copies are made there, in the order of its work, and the loop does not wait for them
            tensors = {file: {name: v.detach().clone() for name, v in part.items()} for file, part in tensors.items()}
        ready = torch.cuda.Event() if self._device.type == "cuda" else None
        if ready:
            ready.record(torch.cuda.current_stream(self._device))
        self._running = self._thread.submit(self._write, images, tensors, state, ready)
        if self._options.blocking:
            self._collect()

    def wait(self) -> bool:
        """Waits for the newest save; returns whether it is on disk. Raises UserError, see above."""
        self._collect()
        return not self._failed

    def check(self) -> None:
        """Raises UserError if the newest save has failed, see above. Never waits."""
        if self._running is not None and self._running.done():
            self._collect()

    def seconds(self) -> dict[str, float]:
        """Of the saves since the last call: seconds that the loop spent, and that the newest took to write."""
        seconds, self._seconds = self._seconds, {}
        return seconds

    def finish(self) -> None:
        """Waits until all is on disk. Raises UserError when the newest save failed or a newer attempt owns the run."""
        self._collect()
        if self._failed:
            raise _final(self._failed[-1])
        with suppress(OSError):  # the save itself has checked
            self.lease.check()
        self.close()

    def close(self) -> None:
        """Waits for the thread: one that is inside torch would abort Python at its exit."""
        self._thread.shutdown()

    def _collect(self) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        try:
            path, self._seconds["save/write_seconds"] = running.result()
            self._failed.clear()
            self._on_saved(path)
        except SaveError as error:
            self._note(error)

    def _note(self, error: SaveError) -> None:
        self._failed.append(error)
        count, most = len(self._failed), self._options.most_failures
        if count >= most:
            raise _final(error) from error
        self._say(f"WARNING: {error}; the run goes on and tries again at the next save (failure {count} of {most})")

    def _write(
        self, images: int, tensors: Tensors, state: dict[str, Any], ready: torch.cuda.Event | None
    ) -> tuple[Path, float]:
        """In the thread. `ready`: the event after which the tensors hold their values."""
        begun = time.perf_counter()
        # its own stream: the loop has queued its next iterations in the other
        with torch.cuda.stream(torch.cuda.Stream(self._device) if ready else None):
            if ready:
                ready.wait()
            if bad := first_not_finite({file: part for file, part in tensors.items() if file != "stats"}):
                raise UserError(f"{bad[0]} is not finite; nothing was saved, the last checkpoint is an older one")
            path = checkpoint.save(self._folder.checkpoints, images, tensors, state, self._options.keep, self.lease)
            self._folder.note_checkpoint(images)
        return path, time.perf_counter() - begun


def _final(error: SaveError) -> UserError:
    return UserError(f"{error}. Fix that and run the same command again")
