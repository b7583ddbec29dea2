"""TensorBoard event files in RUN/tensorboard; the step is the number of real images seen."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcgan_dist.config import Config


class TensorBoardTracker:
    """Raises ImportError where tensorboard is not installed."""

    def __init__(self, run_dir: Path, images: int) -> None:
        """`images`: where this attempt begins; TensorBoard hides what an earlier attempt wrote after that."""
        from torch.utils.tensorboard import SummaryWriter

        # what was written at exactly `images` belongs to the checkpoint, unless the run starts at 0
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=images + 1 if images else 0)

    def scalars(self, images: int, values: dict[str, float]) -> None:
        """One point of each curve, in the file at once."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, images)
        self._writer.flush()

    def picture(self, images: int, name: str, array: NDArray[np.uint8]) -> None:
        """An (H, W, 3) picture, in the file at once."""
        self._writer.add_image(name, array, images, dataformats="HWC")
        self._writer.flush()

    def histogram(self, images: int, name: str, values: NDArray[np.floating]) -> None:
        """The distribution of the finite `values`, of any shape."""
        finite = values[np.isfinite(values)]
        if finite.size:
            self._writer.add_histogram(name, finite, images)

    def close(self, exit_code: int = 0) -> None:  # noqa: ARG002
        """Writes what is left."""
        self._writer.close()


def open_tensorboard(config: Config, images: int, say: Callable[[str], None]) -> TensorBoardTracker | None:
    """TensorBoard, unless it is off or not installed; prints one line."""
    if not config.log.tensorboard:
        return None
    try:
        tracker = TensorBoardTracker(config.run_dir, images)
    except ImportError:
        say("TensorBoard: not installed (pip install tensorboard)")
        return None
    say(f"TensorBoard: tensorboard --logdir {config.run_dir / 'tensorboard'}")
    return tracker
