"""The groups of options: what each is, its unit, its default, and its limits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dcgan_dist.config.checks import check, check_range
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


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The two networks."""

    image_size: ImageSize = 64
    """Height and width of the images, pixels."""
    channels: Channels = 3
    """Colour channels: 3 (RGB) or 1 (grey)."""
    nz: int = 100
    """Length of the latent vector z."""
    ngf: int = 64
    """Feature maps of G's last hidden layer; earlier layers have 2, 4, 8 .. times as many."""
    ndf: int = 64
    """Feature maps of D's first layer; later layers have 2, 4, 8 .. times as many."""
    output: Output = "tanh"
    """End of G: tanh gives images in [-1, 1], sigmoid in [0, 1]; the real images are scaled alike."""
    latent: Latent = "gaussian"
    """Distribution of z: N(0, 1), or uniform on [-1, 1)."""
    d_norm: DNorm = "batch"
    """Normalisation inside D. Gradient penalties need layer or none: with batch, images depend on one another."""
    spectral_norm: bool = False
    """Spectral normalisation of every convolution of D."""

    def __post_init__(self) -> None:
        check_range("model.", self, nz=1, ngf=1, ndf=1)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What the networks minimise."""

    name: LossName = "non_saturating"
    """The game. minimax is the notes' saturating form of binary cross-entropy."""
    label_smoothing: float = 0.0
    """D's target for real images is 1 minus this (one-sided; cross-entropy losses only)."""
    r1_gamma: float = 0.0
    """Weight of the R1 penalty gamma/2 |grad D(x)|^2 on real images; 0: off."""
    gp_weight: float = 0.0
    """Weight of the gradient penalty (|grad D| - 1)^2 between real and fake; 0: off. wasserstein: 10 is usual."""

    def __post_init__(self) -> None:
        check_range("loss.", self, r1_gamma=0, gp_weight=0)
        check_range("loss.", self, below=0.5, label_smoothing=0)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam for both networks."""

    g_lr: float = 2e-4
    """Learning rate of G."""
    d_lr: float = 2e-4
    """Learning rate of D."""
    beta1: float = 0.5
    """Adam's first moment decay."""
    beta2: float = 0.999
    """Adam's second moment decay."""
    warmup_images: int = 0
    """Images over which both learning rates rise linearly from 0."""
    decay: Decay = "none"
    """How both learning rates fall to 0 between decay_from and the end of the run."""
    decay_from: float = 0.5
    """Fraction of the run after which the decay begins, 0 to 1."""
    g_clip: float | None = None
    """Largest norm of G's gradient; larger ones are scaled down."""
    d_clip: float | None = None
    """Largest norm of D's gradient; larger ones are scaled down."""
    d_every: int = 1
    """D is updated in every d_every-th iteration."""
    g_every: int = 1
    """G is updated in every g_every-th iteration."""

    def __post_init__(self) -> None:
        check_range("optimizer.", self, g_lr=0, d_lr=0, warmup_images=0, d_every=1, g_every=1)
        check_range("optimizer.", self, below=1, beta1=0, beta2=0, decay_from=0)
        for name in ("g_clip", "d_clip"):
            clip = getattr(self, name)
            check(clip is None or clip > 0, f"--optimizer.{name} {clip}: must be more than 0")


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """The moving average of G that makes the samples."""

    half_life: int = 10_000
    """Images after which an old weight counts half; 0: the average is G itself."""
    ramp: float = 0.05
    """The half-life is at most this times the images seen so far, so that the beginning is forgotten; 0: no ramp."""

    def __post_init__(self) -> None:
        check_range("ema.", self, half_life=0, ramp=0)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The real images."""

    shards: tuple[str, ...] = ()
    """Tar shards: paths, globs ('d/*.tar'), brace lists ('d/{000..011}.tar'), also of URLs (s3:// gs:// https:// hf://).
    Absent: the embedded cartoon faces."""
    reader: ReaderName = "indexed"
    """indexed: exact order and resume. stream: webdataset's pipeline, also for pipes; no exact resume."""
    classes: tuple[str, ...] = ()
    """Labels or names of the classes to train on, as in 3,7 or cat,dog; absent: all images, labelled or not."""
    hflip: bool = False
    """Mirror every other image at random (on the device)."""
    decode: Decode = "auto"
    """Who decodes: threads, or processes around one shared ring; auto: as measured at the start, and said."""
    workers: int = 0
    """Threads or processes of each rank that decode; 0: chosen by measurement and said."""
    prefetch: int = 4
    """Batches that are read ahead."""
    damaged: Damaged = "raise"
    """An image that cannot be used: raise ends the run; substitute takes the next whole one of its shard and counts."""
    most_damaged: int = 100
    """Different damaged images that a rank substitutes before it ends the run."""
    cache: Path | None = None
    """Folder on a disk of this node for whole remote and compressed shards; absent: one in ~/.cache."""
    cache_bytes: int | None = None
    """Most bytes in that folder; absent: 80 % of what the disk has free; 0: no cache, remote images by range."""
    timeout: float = 60.0
    """Seconds without an answer after which a remote read is tried again."""
    retries: int = 5
    """Further tries of a remote read that failed."""
    allow_pipe: bool = False
    """Let the stream reader run 'pipe:COMMAND' sources in a shell."""
    faces: int = 10_000
    """Number of images of the embedded data set."""

    def __post_init__(self) -> None:
        check_range("data.", self, workers=0, prefetch=1, most_damaged=0, cache_bytes=0, timeout=1, retries=0, faces=64)
        empty = not any(word.strip() for text in self.classes for word in text.split(","))
        # an empty word must not stand for all classes
        check(not (self.classes and empty), "--data.classes: names no class; write labels or names, as in 3,7")
        object.__setattr__(self, "shards", tuple(map(Location, self.shards)))


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is shown of a run, and how often."""

    every: int = 2_560
    """Images between two reports (progress line, metrics.jsonl, TensorBoard, W&B)."""
    samples_every: int = 25_600
    """Images between two sample grids."""
    samples: int = 64
    """Pictures in the grid; the same latents every time."""
    tensorboard: bool = True
    """Write TensorBoard files, if tensorboard is installed."""

    def __post_init__(self) -> None:
        check_range("log.", self, every=1, samples_every=1, samples=1)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept of a run, and how often."""

    every: int = 51_200
    """Images between two checkpoints; one more is written at the end and at every stop."""
    keep: int = 3
    """Checkpoints kept; older ones are removed after a newer one is complete. At least 2."""
    blocking: bool = False
    """Let the training wait until each checkpoint is on disk, which spares the memory of one copy of the networks."""
    most_failures: int = 3
    """Saves in a row that may fail, on a full disk for instance, before the run ends; a life's last save may not."""

    def __post_init__(self) -> None:
        check_range("checkpoint.", self, every=1, keep=2, most_failures=1)


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """What happens when a rank hangs, or is slower than the others."""

    seconds: float | None = None
    """Seconds without progress after which every rank writes its stacks and ends; absent: 0.9 x --timeout; 0: off."""
    slow_factor: float = 1.5
    """A rank is named that takes more than so many times the median for its own work, in two reports in a row."""

    def __post_init__(self) -> None:
        check_range("watchdog.", self, seconds=0, slow_factor=1)


@dataclass(frozen=True, kw_only=True)
class DivergenceConfig:
    """What happens when a loss, a gradient or a weight is inf or NaN. Looked for before every report and checkpoint."""

    policy: DivergencePolicy = "stop"
    """stop: end the run, exit code 1. rollback: go on from the newest checkpoint with new noise and augmentation."""
    lr_factor: float = 1.0
    """Both learning rates are multiplied by this at every rollback, more than 0, at most 1."""
    most_rollbacks: int = 3
    """Rollbacks of a run, for divergence and collapse together; at the next fault it stops."""

    def __post_init__(self) -> None:
        check_range("divergence.", self, most_rollbacks=0)
        check(0 < self.lr_factor <= 1, f"--divergence.lr_factor {self.lr_factor}: must be more than 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class CollapseConfig:
    """Signs, in every report, that the game is lost. A sign counts when it shows in several reports in a row."""

    policy: CollapsePolicy = "warn"
    """warn: say it once an episode, also in W&B. rollback: go on from a checkpoint from before, with new noise."""
    reports: int = 5
    """Reports in a row after which a sign counts."""
    after: int = 20_000
    """Images before which no sign is counted: an untrained G makes one picture of every latent, too."""
    saturation: float = 0.99
    """Sign: mean of D(x) - D(G(z)), probabilities, is more than this; not watched in the wasserstein game."""
    pixel_std: float = 0.01
    """Sign: standard deviation of a pixel over G's pictures, as a fraction of the pixel's range, is less than this."""
    ms_ssim: float = 0.95
    """Sign: mean MS-SSIM of pairs of G's pictures is more than this; 1: all alike."""
    gradient_ratio: float = 1000.0
    """Sign: the norm of one network's gradient is more than this times the other's."""

    def __post_init__(self) -> None:
        check_range("collapse.", self, reports=1, after=0, saturation=0, pixel_std=0, ms_ssim=0, gradient_ratio=0)


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases."""

    mode: WandbMode = "auto"
    """auto: online if an API key is set, else what WANDB_MODE says, else disabled."""
    project: str = "dcgan_dist"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; absent: the key's own."""
    group: str | None = None
    """W&B group of the run."""
    tags: tuple[str, ...] = ()
    """W&B tags of the run."""


@dataclass(frozen=True, kw_only=True)
class ResumeConfig:
    """Going on with a run; `--resume X` is short for `--resume.source X`."""

    source: str = "auto"
    """auto: go on from the run folder's newest checkpoint, if any. never: refuse a folder with one. Or a checkpoint."""
    allow_changes: tuple[str, ...] = ()
    """Options that may differ from the checkpoint's although they change the training, e.g. optimizer.g_lr."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", Location(self.source))


@dataclass(frozen=True, kw_only=True)
class StopConfig:
    """When to save and leave before the end; signals and the file RUN/STOP do so at any time."""

    after_minutes: float = 0.0
    """Minutes after the start of the process at which to begin to stop: allow for the save that follows; 0: never."""

    def __post_init__(self) -> None:
        check_range("stop.", self, after_minutes=0)
