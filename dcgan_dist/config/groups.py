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
