"""Options of complete trainings that take a moment; options that follow win."""

import shlex
from collections.abc import Callable

from dcgan_dist import train as trainer
from dcgan_dist.run.session import Session

TINY = shlex.split(
    "--model.image_size 32 --model.nz 4 --model.ngf 4 --model.ndf 4 --batch_size 8 --precision fp32 --data.workers 1 "
    "--log.every 8 --log.samples 4 --trackers=wandb --log.no_page --wandb.mode disabled"
)

TENSOR_FILES = ("netg", "netd", "netg_ema", "optimizer_g", "optimizer_d", "stats")
"""Names of the files of tensors in each checkpoint."""


def before_each_iteration(act: Callable[[Session], object]) -> None:
    """From now on the trainer of this process calls `act` before each iteration, when its data are there."""
    train, step = trainer.train, trainer.training_step

    def acting(session: Session) -> bool:
        trainer.training_step = lambda *given: (act(session), step(*given))[1]
        return train(session)

    trainer.train = acting
