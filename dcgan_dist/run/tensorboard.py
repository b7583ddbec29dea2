"""TensorBoard event files in RUN/tensorboard; the step is the number of real images seen."""

import numpy as np
from numpy.typing import NDArray

from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.tracker_start import Start, counts_of


class TensorBoardTracker:
    """Raises ImportError where tensorboard is not installed."""

    def __init__(self, start: Start) -> None:
        """TensorBoard hides what an earlier attempt wrote after the images where this one begins."""
        from torch.utils.tensorboard import SummaryWriter

        # what was written at exactly `images` belongs to the checkpoint, unless the run starts at 0
        folder, images = str(RunFolder(start.config.run_dir).tensorboard), start.images
        self._writer = SummaryWriter(folder, purge_step=images + 1 if images else 0)
        self._write_options(start.options, images)

    def _write_options(self, options: dict[str, float | str], images: int) -> None:
        """As text, for each attempt; as hyper-parameters, of which TensorBoard shows those of the first attempt."""
        from torch.utils.tensorboard.summary import hparams

        text = "\n".join(f"    {name}: {value}" for name, value in options.items())  # indented: no Markdown
        self._writer.add_text("options", text, images)
        # without a list of metrics beside it, TensorBoard's table has the newest value of every scalar; add_hparams
        # would write to another folder, which is a run of its own
        _, start, self._end = hparams(options, {})
        self._writer._get_file_writer().add_summary(start)
        self._writer.flush()

    def scalars(self, images: int, values: dict[str, float]) -> None:
        """One point of each curve, in the file at once."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, images)
        self._writer.flush()

    def picture(self, images: int, name: str, array: NDArray[np.uint8]) -> None:
        """An (H, W, 3) picture, in the file at once."""
        self._writer.add_image(name, array, images, dataformats="HWC")
        self._writer.flush()

    def histogram(self, images: int, name: str, values: NDArray[np.number]) -> None:
        """The distribution of the finite `values`, of any shape, in bins of equal width; of pixels in whole values."""
        finite = values[np.isfinite(values)]
        if not finite.size:
            return
        counts, edges = counts_of(values)
        finite = finite.astype(np.float64)  # squares overflow in uint8
        self._writer.add_histogram_raw(
            name,
            min=finite.min(),
            max=finite.max(),
            num=finite.size,
            sum=finite.sum(),
            sum_squares=np.square(finite).sum(),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=images,
        )

    def close(self, exit_code: int = 0) -> None:
        """Writes what is left, and after a complete run that it has succeeded."""
        if exit_code == 0:
            self._writer._get_file_writer().add_summary(self._end)
        self._writer.close()


def open_tensorboard(start: Start) -> TensorBoardTracker | None:
    """TensorBoard, with one line; None: it is off or not installed."""
    if not start.config.log.tensorboard:
        return None
    try:
        tracker = TensorBoardTracker(start)
    except ImportError:
        start.say("TensorBoard: not installed (pip install tensorboard)")
        return None
    start.say(f"TensorBoard: tensorboard --logdir {RunFolder(start.config.run_dir).tensorboard}")
    return tracker
