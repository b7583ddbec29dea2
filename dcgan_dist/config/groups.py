"""The groups of options: what each is, its unit, its default, and its limits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dcgan_dist.config.checks import OptionGroup, Range, check
from dcgan_dist.config.values import byte_count
from dcgan_dist.location import Location

ImageSize = Literal[32, 48, 64, 96, 128, 192, 256]
Channels = Literal[1, 3]
Output = Literal["tanh", "sigmoid"]
Latent = Literal["gaussian", "uniform"]
DNorm = Literal["batch", "layer", "none"]
LossName = Literal["non_saturating", "minimax", "hinge", "least_squares", "wasserstein"]
Augmentation = Literal["color", "translation", "cutout"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "fp64"]
SyncBatchNorm = Literal["global", "node", "none", "torch"]
ReaderName = Literal["indexed", "stream"]
Decode = Literal["auto", "threads", "processes"]
Damaged = Literal["raise", "substitute"]
Decay = Literal["none", "linear", "cosine"]
DivergencePolicy = Literal["stop", "rollback"]
CollapsePolicy = Literal["warn", "rollback"]
WandbMode = Literal["auto", "online", "offline", "disabled"]

# limits are far beyond what any machine can do, and keep what would exhaust it from being begun with
Images = Annotated[int, Range(least=1, most=10**12)]
Since = Annotated[int, Range(least=0, most=10**12)]
Width = Annotated[int, Range(least=1, most=65_536)]
Count = Annotated[int, Range(least=1, most=10**6)]
Times = Annotated[int, Range(least=0, most=10**6)]
Weight = Annotated[float, Range(least=0, most=1e9)]
Rate = Annotated[float, Range(least=0, most=1e38)]
Norm = Annotated[float, Range(above=0, most=1e38)]
Fraction = Annotated[float, Range(least=0, below=1)]
Share = Annotated[float, Range(least=0, most=1)]
Seed = Annotated[int, Range(least=0, below=2**63)]
Timeout = Annotated[float, Range(least=1, most=86_400)]
Retries = Annotated[int, Range(least=0, most=1_000)]
Workers = Annotated[int, Range(least=0, most=1_024)]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(OptionGroup):
    """The two networks."""

    prefix = "model."
    image_size: ImageSize = 64
    """Height and width of the images, pixels."""
    channels: Channels = 3
    """Colour channels: 3 (RGB) or 1 (grey)."""
    nz: Width = 100
    """Length of the latent vector z."""
    ngf: Width = 64
    """Feature maps of G's last hidden layer; earlier layers have 2, 4, 8 .. times as many."""
    ndf: Width = 64
    """Feature maps of D's first layer; later layers have 2, 4, 8 .. times as many."""
    output: Output = "tanh"
    """End of G: tanh gives images in [-1, 1], sigmoid in [0, 1]; the real images are scaled alike."""
    latent: Latent = "gaussian"
    """Distribution of z: N(0, 1), or uniform on [-1, 1)."""
    d_norm: DNorm = "batch"
    """Normalisation inside D. Gradient penalties need layer or none: with batch, images depend on one another."""
    spectral_norm: bool = False
    """Spectral normalisation of every convolution of D."""


@dataclass(frozen=True, kw_only=True)
class LossConfig(OptionGroup):
    """What the networks minimise."""

    prefix = "loss."
    name: LossName = "non_saturating"
    """The game. minimax is the notes' saturating form of binary cross-entropy."""
    label_smoothing: Annotated[float, Range(least=0, below=0.5)] = 0.0
    """D's target for real images is 1 minus this (one-sided; cross-entropy losses only)."""
    r1_gamma: Weight = 0.0
    """Weight of the R1 penalty gamma/2 |grad D(x)|^2 on real images; 0: off."""
    gp_weight: Weight = 0.0
    """Weight of the gradient penalty (|grad D| - 1)^2 between real and fake; 0: off. wasserstein: 10 is usual."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(OptionGroup):
    """Adam for both networks."""

    prefix = "optimizer."
    g_lr: Rate = 2e-4
    """Learning rate of G."""
    d_lr: Rate = 2e-4
    """Learning rate of D."""
    beta1: Fraction = 0.5
    """Adam's first moment decay."""
    beta2: Fraction = 0.999
    """Adam's second moment decay."""
    warmup_images: Since = 0
    """Images over which both learning rates rise linearly from 0."""
    decay: Decay = "none"
    """How both learning rates fall to 0 between decay_from and the end of the run."""
    decay_from: Fraction = 0.5
    """Fraction of the run after which the decay begins, 0 to 1."""
    g_clip: Norm | None = None
    """Largest norm of G's gradient; larger ones are scaled down."""
    d_clip: Norm | None = None
    """Largest norm of D's gradient; larger ones are scaled down."""
    d_every: Count = 1
    """D is updated in every d_every-th iteration."""
    g_every: Count = 1
    """G is updated in every g_every-th iteration."""


@dataclass(frozen=True, kw_only=True)
class EmaConfig(OptionGroup):
    """The moving average of G that makes the samples."""

    prefix = "ema."
    half_life: Since = 10_000
    """Images after which an old weight counts half; 0: the average is G itself."""
    ramp: Annotated[float, Range(least=0, most=1e6)] = 0.05
    """The half-life is at most this times the images seen so far, so that the beginning is forgotten; 0: no ramp."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(OptionGroup):
    """The real images."""

    prefix = "data."
    shards: tuple[str, ...] = ()
    """Tar shards: folders, paths, globs ('d/*.tar'), brace lists ('d/{000..011}.tar'), also by URL (s3:// gs:// https://
    hf://). Absent: the embedded cartoon faces."""
    reader: ReaderName = "indexed"
    """indexed: exact order and resume. stream: webdataset's pipeline, also for pipes; no exact resume."""
    classes: tuple[str, ...] = ()
    """Labels or names of the classes to train on, as in 3,7 or cat,dog; absent: all images, labelled or not."""
    image_key: str | None = None
    """Suffix of the image in other programs' tars: input.jpg, or several: 'png;jpg'. Absent: jpg, png and so on."""
    label_key: str | None = None
    """The same for the label, or the field of a .json member. Absent: cls, class, label, or such a field."""
    allow_cut: bool = False
    """Take other programs' tars that end without tar's end mark; a member that is cut is left out, and said."""
    hflip: bool = False
    """Mirror every other image at random (on the device)."""
    decode: Decode = "auto"
    """Who decodes: threads, or processes around one shared ring; auto: as measured at the start, and said."""
    workers: Workers = 0
    """Threads or processes of each rank that decode; 0: chosen by measurement and said."""
    prefetch: Annotated[int, Range(least=1, most=10_000)] = 4
    """Batches that are read ahead."""
    damaged: Damaged = "raise"
    """An image that cannot be used: raise ends the run; substitute takes the next whole one of its shard and counts."""
    most_damaged: Annotated[int, Range(least=0, most=10**9)] = 100
    """Different damaged images that a rank substitutes before it ends the run."""
    cache: Path | None = None
    """Folder on a disk of this node for whole remote and compressed shards; absent: one in ~/.cache."""
    cache_bytes: Annotated[int, byte_count, Range(least=0, most=10**18)] | None = None
    """Most bytes there, as in 500GB; absent: 80 % of what the disk has free; 0: no cache, remote images by range."""
    timeout: Timeout = 60.0
    """Seconds without an answer after which a remote read is tried again."""
    retries: Retries = 5
    """Further tries of a remote read that failed."""
    allow_pipe: bool = False
    """Let the stream reader run 'pipe:COMMAND' sources in a shell."""
    faces: Annotated[int, Range(least=64, most=10**7)] = 10_000
    """Number of images of the embedded data set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        empty = not any(word.strip() for text in self.classes for word in text.split(","))
        # an empty word must not stand for all classes
        check(not (self.classes and empty), "--data.classes: names no class; write labels or names, as in 3,7")
        object.__setattr__(self, "shards", tuple(map(Location, self.shards)))

    @property
    def secret(self) -> bool:
        """Whether `shards` holds secrets, which are not shown."""
        return any(Location(shard).secret for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class LogConfig(OptionGroup):
    """What is shown of a run, and how often."""

    prefix = "log."
    every: Images = 2_560
    """Images between two reports (progress line, metrics.jsonl, TensorBoard, W&B)."""
    samples_every: Images = 25_600
    """Images between two sample grids."""
    samples: Annotated[int, Range(least=1, most=10_000)] = 64
    """Pictures in the grid; the same latents every time."""
    tensorboard: bool = True
    """Write TensorBoard files, if tensorboard is installed."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(OptionGroup):
    """What is kept of a run, and how often."""

    prefix = "checkpoint."
    every: Images = 51_200
    """Images between two checkpoints; one more is written at the end and at every stop."""
    keep: Annotated[int, Range(least=2, most=10**6)] = 3
    """Checkpoints kept; older ones are removed after a newer one is complete. At least 2."""
    blocking: bool = False
    """Let the training wait until each checkpoint is on disk, which spares the memory of one copy of the networks."""
    most_failures: Count = 3
    """Saves in a row that may fail, on a full disk for instance, before the run ends; a life's last save may not."""


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig(OptionGroup):
    """What happens when a rank hangs, or is slower than the others."""

    prefix = "watchdog."
    seconds: Annotated[float, Range(least=0, most=1e7)] | None = None
    """Seconds without progress after which every rank writes its stacks and ends; absent: 0.9 x --timeout; 0: off."""
    slow_factor: Annotated[float, Range(least=1, most=1e6)] = 1.5
    """A rank is named that takes more than so many times the median for its own work, in two reports in a row."""


@dataclass(frozen=True, kw_only=True)
class DivergenceConfig(OptionGroup):
    """What happens when a loss, a gradient or a weight is inf or NaN. Looked for before every report and checkpoint."""

    prefix = "divergence."
    policy: DivergencePolicy = "stop"
    """stop: end the run, exit code 1. rollback: go on from the newest checkpoint with new noise and augmentation."""
    lr_factor: Annotated[float, Range(above=0, most=1)] = 1.0
    """Both learning rates are multiplied by this at every rollback, more than 0, at most 1."""
    most_rollbacks: Times = 3
    """Rollbacks of a run, for divergence and collapse together; at the next fault it stops."""


@dataclass(frozen=True, kw_only=True)
class CollapseConfig(OptionGroup):
    """Signs, in every report, that the game is lost. A sign counts when it shows in several reports in a row."""

    prefix = "collapse."
    policy: CollapsePolicy = "warn"
    """warn: say it once an episode, also in W&B. rollback: go on from a checkpoint from before, with new noise."""
    reports: Count = 5
    """Reports in a row after which a sign counts."""
    after: Since = 20_000
    """Images before which no sign is counted: an untrained G makes one picture of every latent, too."""
    saturation: Share = 0.99
    """Sign: mean of D(x) - D(G(z)), probabilities, is more than this; not watched in the wasserstein game."""
    pixel_std: Share = 0.01
    """Sign: standard deviation of a pixel over G's pictures, as a fraction of the pixel's range, is less than this."""
    ms_ssim: Share = 0.95
    """Sign: mean MS-SSIM of pairs of G's pictures is more than this; 1: all alike."""
    gradient_ratio: Rate = 1000.0
    """Sign: the norm of one network's gradient is more than this times the other's."""


@dataclass(frozen=True, kw_only=True)
class WandbConfig(OptionGroup):
    """Weights & Biases."""

    prefix = "wandb."
    mode: WandbMode = "auto"
    """auto: what WANDB_MODE or WANDB_DISABLED says, else online if there is an API key, else disabled."""
    project: str = "dcgan_dist"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; absent: the key's own."""
    group: str | None = None
    """W&B group of the run."""
    tags: tuple[str, ...] = ()
    """W&B tags of the run."""


@dataclass(frozen=True, kw_only=True)
class ResumeConfig(OptionGroup):
    """Going on with a run; `--resume X` is short for `--resume.source X`."""

    prefix = "resume."
    source: str = "auto"
    """auto: go on from the run folder's newest checkpoint, if any. never: refuse a folder with one. Or another run, as
    RUN, or a checkpoint."""
    allow_changes: tuple[str, ...] = ()
    """Options that may differ from the checkpoint's although they change the training, e.g. optimizer.g_lr."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "source", Location(self.source))


@dataclass(frozen=True, kw_only=True)
class StopConfig(OptionGroup):
    """When to save and leave before the end; signals and the file RUN/STOP do so at any time."""

    prefix = "stop."
    after_minutes: Annotated[float, Range(least=0, most=525_600)] = 0.0
    """Minutes after the start of the process at which to begin to stop: allow for the save that follows; 0: never."""
