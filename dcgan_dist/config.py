"""The whole schema of a training run. Every option on the command line, in YAML and in `config.yaml` is a field here.

Frozen, keyword-only dataclasses; the text under a field says its meaning and unit and is what `--help` prints.
Durations count real images shown to the discriminator, never epochs or steps, so that they survive a change of batch or
world size. Standard library only, but for the error's base class.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from dcgan_dist.errors import UsageError

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
Decay = Literal["none", "linear", "cosine"]
WandbMode = Literal["auto", "online", "offline", "disabled"]


class ConfigError(UsageError, ValueError):
    """Options that are out of range or contradict each other; the message quotes the flags."""


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def _check_range(prefix: str, config: object, below: float = float("inf"), **least: float) -> None:
    for name, low in least.items():
        value = getattr(config, name)
        _check(value is None or value >= low, f"--{prefix}{name} {value}: must be at least {low}")
        _check(value is None or value < below, f"--{prefix}{name} {value}: must be less than {below}")


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
        _check_range("model.", self, nz=1, ngf=1, ndf=1)


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
        _check_range("loss.", self, r1_gamma=0, gp_weight=0)
        _check_range("loss.", self, below=0.5, label_smoothing=0)


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
        _check_range("optimizer.", self, g_lr=0, d_lr=0, warmup_images=0, d_every=1, g_every=1)
        _check_range("optimizer.", self, below=1, beta1=0, beta2=0, decay_from=0)
        for name in ("g_clip", "d_clip"):
            clip = getattr(self, name)
            _check(clip is None or clip > 0, f"--optimizer.{name} {clip}: must be more than 0")


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """The moving average of G that makes the samples."""

    half_life: int = 10_000
    """Images after which an old weight counts half; 0: the average is G itself."""
    ramp: float = 0.05
    """The half-life is at most this times the images seen so far, so that the beginning is forgotten; 0: no ramp."""

    def __post_init__(self) -> None:
        _check_range("ema.", self, half_life=0, ramp=0)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The real images."""

    shards: tuple[str, ...] = ()
    """Tar shards: paths, globs ('d/*.tar'), brace lists ('d/{000..011}.tar'). Absent: the embedded cartoon faces."""
    reader: ReaderName = "indexed"
    """indexed: exact order and resume, local files. stream: webdataset's pipeline, also for pipes; no exact resume."""
    hflip: bool = False
    """Mirror every other image at random (on the device)."""
    threads: int = 0
    """Decoding threads of each rank; 0: chosen from the CPU cores and said."""
    prefetch: int = 4
    """Batches that are read ahead."""
    allow_pipe: bool = False
    """Let the stream reader run 'pipe:COMMAND' sources in a shell."""
    faces: int = 10_000
    """Number of images of the embedded data set."""

    def __post_init__(self) -> None:
        _check_range("data.", self, threads=0, prefetch=1, faces=64)


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
        _check_range("log.", self, every=1, samples_every=1, samples=1)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept of a run, and how often."""

    every: int = 51_200
    """Images between two checkpoints; one more is written at the end and at every stop."""
    keep: int = 3
    """Checkpoints kept; older ones are removed after a newer one is complete. At least 2."""

    def __post_init__(self) -> None:
        _check_range("checkpoint.", self, every=1, keep=2)


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


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train a DCGAN on image shards, on any number of processes."""

    run_dir: Path = Path("runs/dcgan")
    """The run's folder; the same command on the same folder goes on where it stopped."""
    images: int = 2_000_000
    """Length of the run: real images shown, also in iterations where D is not due."""
    batch_size: int = 128
    """Global batch: images of one iteration over all ranks together."""
    accumulate: int = 1
    """Micro-batches that an iteration is split into, to fit memory. BatchNorm sees micro-batches."""
    seed: int = 0
    """Seed of weights, order, flips, noise and augmentation."""
    precision: Precision = "auto"
    """Arithmetic of the networks; auto takes bf16 where the GPU supports it, else fp32. fp64 is for proofs."""
    sync_batchnorm: SyncBatchNorm = "global"
    """Ranks that share BatchNorm statistics: all, those of one node, none; torch: torch.nn.SyncBatchNorm (GPU only)."""
    channels_last: bool = True
    """Keep images and weights in NHWC memory order, which convolutions prefer."""
    augment: tuple[Augmentation, ...] = ()
    """Differentiable augmentation of real and fake images before D (DiffAugment)."""
    world_size: int | None = None
    """Ranks that must have been launched; any other number is refused."""
    timeout: int = 600
    """Seconds after which a rank that waits for the others gives up."""
    dry_run: bool = False
    """Print the resolved configuration, layers, parameters, ranks and batch split, and stop."""
    debug: bool = False
    """Show the traceback of an error."""
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    data: DataConfig = field(default_factory=DataConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)

    def __post_init__(self) -> None:
        _check_range("", self, images=1, batch_size=1, accumulate=1, world_size=1, timeout=1)
        _check_range("", self, below=2**63, seed=0)

    def check(self) -> "Config":
        """Raises ConfigError when options contradict each other; returns itself."""
        loss, model, data = self.loss, self.model, self.data
        smooths = loss.name in ("non_saturating", "minimax")
        _check(smooths or not loss.label_smoothing, f"--loss.label_smoothing means nothing to --loss.name {loss.name}")
        penalised = [f"--loss.{name}" for name in ("r1_gamma", "gp_weight") if getattr(loss, name)]
        _check(
            not penalised or model.d_norm != "batch",
            f"{' and '.join(penalised)} with --model.d_norm batch: BatchNorm makes an image's gradient depend on the "
            "whole batch, so the penalty is not the published one; use --model.d_norm layer or none",
        )
        _check(
            loss.name != "wasserstein" or bool(loss.gp_weight or model.spectral_norm),
            "--loss.name wasserstein needs a bound on D's slope: --loss.gp_weight 10 (with --model.d_norm layer) "
            "or --model.spectral_norm",
        )
        for pipe in (url for url in data.shards if url.startswith("pipe:")):
            _check(data.reader == "stream", f"--data.shards {pipe}: a pipe cannot be indexed; add --data.reader stream")
            _check(data.allow_pipe, f"--data.shards {pipe}: would run a shell command; add --data.allow_pipe to let it")
        self.per_rank(self.world_size or 1)
        return self

    def per_rank(self, world_size: int) -> int:
        """Images of one micro-batch on one rank; raises ConfigError when the ranks do not divide the batch evenly."""
        parts = world_size * self.accumulate
        near = max(parts, round(self.batch_size / parts) * parts)
        _check(
            self.batch_size % parts == 0,
            f"--batch_size {self.batch_size} does not divide evenly over {world_size} rank{'s' * (world_size > 1)} "
            f"x --accumulate {self.accumulate}; the nearest that does is {near}",
        )
        return self.batch_size // parts


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted option names with their values, in the order of the schema."""
    flat: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        flat |= flatten(value, f"{prefix}{item.name}.") if is_dataclass(value) else {prefix + item.name: value}
    return flat
