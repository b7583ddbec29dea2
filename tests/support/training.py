"""Options of whole trainings that take a moment; options that follow win."""

import shlex

TINY = shlex.split(
    "--model.image_size 32 --model.nz 4 --model.ngf 4 --model.ndf 4 --batch_size 8 --precision fp32 --data.workers 1 "
    "--log.every 8 --log.samples 4 --log.no_tensorboard --wandb.mode disabled"
)
