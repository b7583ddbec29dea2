"""The groups of options around the training: reports, checkpoints, faults, W&B, resume and stop."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dcgan_dist.config.checks import OptionGroup, Range
from dcgan_dist.config.groups import Count, Images, Rate, Share, Since
from dcgan_dist.location import Location


@dataclass(frozen=True, kw_only=True)
class LogConfig(OptionGroup):
    """Reports and sample grids."""

    prefix = "log."
    every: Images = 2_560
    """Images between two reports (progress line, metrics.jsonl, trackers)."""
    samples_every: Images = 25_600
    """Images between two sample grids."""
    samples: Annotated[int, Range(least=1, most=10_000)] = 64
    """Images in the grid; the latents are always the same."""
    format: Literal["auto", "plain", "json"] = "auto"
    """Format of the output. auto: a live display on a terminal, else lines with times. plain: lines with times. json:
    one JSON object a line."""
    tensorboard: bool = True
    """Write TensorBoard files, if tensorboard is installed and among --trackers."""
    page: bool = True
    """Write report.html, the page of the run, whenever training ends. `dcgan-dist report` writes it at any time."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(OptionGroup):
    """Checkpoints."""

    prefix = "checkpoint."
    every: Images = 51_200
    """Images between two checkpoints. One more is saved at the end and at every stop."""
    keep: Annotated[int, Range(least=2, most=10**6)] = 3
    """Number of checkpoints to keep, at least 2. Older ones are removed after a newer one is complete."""
    blocking: bool = False
    """Wait until each checkpoint is on disk. Saves the memory of one copy of the networks."""
    most_failures: Count = 3
    """Consecutive saves that may fail, for example on a full disk, before the run ends. The last save may not."""


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig(OptionGroup):
    """Detection of ranks that hang or are slow."""

    prefix = "watchdog."
    seconds: Annotated[float, Range(least=0, most=1e7)] | None = None
    """Seconds without progress before every rank writes its stacks and exits. Default: 0.9 x --timeout. 0: off."""
    slow_factor: Annotated[float, Range(least=1, most=1e6)] = 1.5
    """Report a rank whose own work takes more than this times the median, in two consecutive reports."""


@dataclass(frozen=True, kw_only=True)
class DivergenceConfig(OptionGroup):
    """What to do when a loss, gradient or weight is inf or NaN. Checked before every report and checkpoint."""

    prefix = "divergence."
    policy: Literal["stop", "rollback"] = "stop"
    """stop: end the run, exit code 1. rollback: resume from the newest checkpoint with new noise and augmentation."""
    lr_factor: Annotated[float, Range(above=0, most=1)] = 1.0
    """Factor for both learning rates at every rollback; above 0, at most 1."""
    most_rollbacks: Annotated[int, Range(least=0, most=10**6)] = 3
    """Maximum number of rollbacks of a run, for divergence and collapse together. Then it stops."""


@dataclass(frozen=True, kw_only=True)
class CollapseConfig(OptionGroup):
    """Detection of mode collapse. A sign counts when it shows in several consecutive reports."""

    prefix = "collapse."
    policy: Literal["warn", "rollback"] = "warn"
    """warn: one warning per episode, also in W&B. rollback: resume from an earlier checkpoint with new noise."""
    reports: Count = 5
    """Consecutive reports after which a sign counts."""
    after: Since = 20_000
    """Number of images before the checks start; an untrained G makes the same image from every latent."""
    saturation: Share = 0.99
    """Sign: mean of D(x) - D(G(z)), probabilities, is more than this; not used with --loss.name wasserstein."""
    pixel_std: Share = 0.01
    """Sign: standard deviation of a pixel over G's images, as a fraction of the pixel's range, is less than this."""
    ms_ssim: Share = 0.95
    """Sign: mean MS-SSIM of pairs of G's images is more than this; 1: all equal."""
    gradient_ratio: Rate = 1000.0
    """Sign: the norm of one network's gradient is more than this times the other's."""


@dataclass(frozen=True, kw_only=True)
class WandbConfig(OptionGroup):
    """Weights & Biases."""

    prefix = "wandb."
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: WANDB_MODE or WANDB_DISABLED if set, else online with an API key, else disabled."""
    project: str = "dcgan_dist"
    """W&B project; also the project of other trackers."""
    entity: str | None = None
    """W&B user or team. Default: that of the API key."""
    group: str | None = None
    """W&B group of the run."""
    job_type: str | None = None
    """W&B job type of the run, such as train."""
    tags: tuple[str, ...] = ()
    """W&B tags of a new run."""
    name: str | None = None
    """Name of a new run in W&B. Default: that of run_dir."""
    notes: str | None = None
    """Notes of a new run in W&B."""
    artifacts: Literal["none", "best", "all"] = "none"
    """Networks on the server. best: the checkpoint checkpoints/best, and at the end the generator.
    all: each checkpoint, too; the server keeps as many as the folder."""
    share: tuple[Literal["code", "git", "host"], ...] = ()
    """What W&B may also have: source code, commit and remote of dcgan_dist; name, system and paths of the host."""


@dataclass(frozen=True, kw_only=True)
class ResumeConfig(OptionGroup):
    """Resuming a run; `--resume X` is short for `--resume.source X`."""

    prefix = "resume."
    source: str = "auto"
    """auto: resume from the newest checkpoint in run_dir, if any. never: fail if there is one. Or the path of
    another run or of a checkpoint."""
    allow_changes: tuple[str, ...] = ()
    """Options that may differ from the checkpoint although they change training, such as optimizer.g_lr."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "source", Location(self.source))


@dataclass(frozen=True, kw_only=True)
class StopConfig(OptionGroup):
    """When to save and stop early. A signal or the file RUN/STOP also stops the run."""

    prefix = "stop."
    after_minutes: Annotated[float, Range(least=0, most=525_600)] = 0.0
    """Minutes after the start of the process at which to stop. Leave time for the last save. 0: never."""
