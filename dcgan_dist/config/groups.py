"""The groups of options, with units, defaults and limits."""

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
Damaged = Literal["raise", "substitute"]
Decay = Literal["none", "linear", "cosine"]

# limits beyond what any machine can do
Images = Annotated[int, Range(least=1, most=10**12)]
Since = Annotated[int, Range(least=0, most=10**12)]
Width = Annotated[int, Range(least=1, most=65_536)]
Count = Annotated[int, Range(least=1, most=10**6)]
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
    """Feature maps in G's last hidden layer; earlier layers have 2, 4, 8, ... times as many."""
    ndf: Width = 64
    """Feature maps in D's first layer; later layers have 2, 4, 8, ... times as many."""
    output: Output = "tanh"
    """G's last activation: tanh gives images in [-1, 1], sigmoid in [0, 1]. Real images are scaled to match."""
    latent: Latent = "gaussian"
    """Distribution of z: N(0, 1), or uniform on [-1, 1)."""
    d_norm: DNorm = "batch"
    """Normalisation in D. Gradient penalties need layer or none, because batch makes images depend on each other."""
    spectral_norm: bool = False
    """Apply spectral normalisation to every convolution of D."""


@dataclass(frozen=True, kw_only=True)
class LossConfig(OptionGroup):
    """What the networks minimise."""

    prefix = "loss."
    name: LossName = "non_saturating"
    """Adversarial loss. minimax is the saturating form of binary cross-entropy."""
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
    """Shape of the decay of both learning rates to 0, from decay_from to the end of the run."""
    decay_from: Fraction = 0.5
    """Fraction of the run after which the decay begins, 0 to 1."""
    g_clip: Norm | None = None
    """Maximum norm of G's gradient; larger gradients are clipped."""
    d_clip: Norm | None = None
    """Maximum norm of D's gradient; larger gradients are clipped."""
    d_every: Count = 1
    """Update D every d_every iterations."""
    g_every: Count = 1
    """Update G every g_every iterations."""


@dataclass(frozen=True, kw_only=True)
class EmaConfig(OptionGroup):
    """The exponential moving average (EMA) of G's weights, used for samples."""

    prefix = "ema."
    half_life: Since = 10_000
    """Half-life of the average in images; 0: no averaging."""
    ramp: Annotated[float, Range(least=0, most=1e6)] = 0.05
    """Limits the half-life to this fraction of the images seen so far, for a fast start; 0: no limit."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(OptionGroup):
    """The real images."""

    prefix = "data."
    shards: tuple[str, ...] = ()
    """Tar shards: folders, paths, globs ('d/*.tar'), brace lists ('d/{000..011}.tar'), or URLs of these
    (s3:// gs:// https:// hf://). Default: the embedded cartoon faces."""
    reader: Literal["indexed", "stream"] = "indexed"
    """indexed: exact order and exact resume. stream: webdataset's pipeline, also reads pipes; resume is not exact."""
    resampled: bool = False
    """Let the stream reader draw shards with replacement (webdataset's resampled): an epoch is no permutation then."""
    pipeline: str | None = None
    """Your own pipeline for the stream reader, MODULE:FUNCTION; it gives (uint8 image, label). See docs/data.md."""
    classes: tuple[str, ...] = ()
    """Classes to train on, by label or name, such as 3,7 or cat,dog. Default: all images, labelled or not."""
    image_key: str | None = None
    """Image suffix in tars of other programs, such as input.jpg or 'png;jpg'. Default: jpg, png and so on."""
    label_key: str | None = None
    """Label suffix, or field of the .json member, in such tars. Default: cls, class, label, or such a field."""
    allow_cut: bool = False
    """Read tars of other programs that lack the end mark. A member that is cut off is skipped and reported."""
    hflip: bool = False
    """Flip half of the images horizontally, at random (on the device)."""
    decode: Literal["auto", "threads", "processes"] = "auto"
    """Decode in threads, or in processes with shared memory. auto: measured at the start and reported."""
    workers: Workers = 0
    """Decoding threads or processes per rank. 0: measured at the start and reported."""
    prefetch: Annotated[int, Range(least=1, most=10_000)] = 4
    """Number of batches to prefetch."""
    damaged: Damaged = "raise"
    """On a damaged image: raise ends the run; substitute uses the next intact image of the shard and counts it."""
    most_damaged: Annotated[int, Range(least=0, most=10**9)] = 100
    """Maximum number of different damaged images that a rank substitutes before the run ends."""
    cache: Path | None = None
    """Local folder that caches remote and compressed shards. Default: a folder in ~/.cache."""
    cache_bytes: Annotated[int, byte_count, Range(least=0, most=10**18)] | None = None
    """Maximum size of the cache, such as 500GB. Default: 80 % of the free disk space. 0: no cache."""
    timeout: Timeout = 60.0
    """Seconds without a response after which a remote read is retried."""
    retries: Retries = 5
    """Maximum number of retries of a remote read."""
    allow_pipe: bool = False
    """Allow the stream reader to run 'pipe:COMMAND' sources in a shell."""
    faces: Annotated[int, Range(least=64, most=10**7)] = 10_000
    """Number of images in the embedded data set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        empty = not any(word.strip() for text in self.classes for word in text.split(","))
        # an empty word must not mean all classes
        check(not (self.classes and empty), "--data.classes: names no class; write labels or names, as in 3,7")
        object.__setattr__(self, "shards", tuple(map(Location, self.shards)))

    @property
    def secret(self) -> bool:
        """Whether `shards` holds secrets, which are not shown."""
        return any(Location(shard).secret for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class LogConfig(OptionGroup):
    """Reports and sample grids."""

    prefix = "log."
    every: Images = 2_560
    """Images between two reports (progress line, metrics.jsonl, TensorBoard, W&B)."""
    samples_every: Images = 25_600
    """Images between two sample grids."""
    samples: Annotated[int, Range(least=1, most=10_000)] = 64
    """Images in the grid; the latents are always the same."""
    format: Literal["auto", "plain", "json"] = "auto"
    """Format of the output. auto: a live display on a terminal, else lines with times. plain: lines with times. json:
    one JSON object a line."""
    tensorboard: bool = True
    """Write TensorBoard files, if tensorboard is installed."""
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
    """W&B project."""
    entity: str | None = None
    """W&B user or team. Default: that of the API key."""
    group: str | None = None
    """W&B group of the run."""
    tags: tuple[str, ...] = ()
    """W&B tags of the run."""


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
