"""The schema of a training run. Every option on the command line, in YAML and in `config.yaml` is a field here.

Frozen, keyword-only dataclasses; the text under a field, with its unit, is its `--help`. Durations count real images
shown to the discriminator, not epochs or steps, so that they do not depend on batch and world size.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from dcgan_dist.config import groups, run_groups
from dcgan_dist.config.checks import OptionGroup, Range, check
from dcgan_dist.text import counted


@dataclass(frozen=True, kw_only=True)
class Config(OptionGroup):
    """Train a DCGAN on image shards, on any number of processes."""

    run_dir: Path = Path("runs/dcgan")
    """Folder of the run. Run the same command again to resume from its newest checkpoint."""
    images: groups.Images = 2_000_000
    """Length of the run: number of real images shown, including iterations that do not update D."""
    batch_size: groups.Count = 128
    """Global batch size: images per iteration, over all ranks."""
    accumulate: groups.Count = 1
    """Micro-batches per iteration, to save memory. BatchNorm sees micro-batches."""
    seed: groups.Seed = 0
    """Seed of weights, data order, flips, noise and augmentation."""
    precision: groups.Precision = "auto"
    """Precision of the networks; auto: bf16 if the GPU supports it, else fp32. fp64 is for tests."""
    sync_batchnorm: groups.SyncBatchNorm = "global"
    """Ranks that share BatchNorm statistics: all, a node's, or none. torch: torch.nn.SyncBatchNorm (GPU only)."""
    channels_last: bool = True
    """Keep images and weights in channels-last (NHWC) memory format, which is faster for convolutions."""
    augment: tuple[groups.Augmentation, ...] = ()
    """Differentiable augmentation of real and fake images before D (DiffAugment)."""
    world_size: Annotated[int, Range(least=1, most=100_000)] | None = None
    """Required number of ranks; any other number is an error."""
    timeout: Annotated[int, Range(least=1, most=10**7)] = 600
    """Seconds that a rank waits for the others before it fails."""
    trackers: tuple[str, ...] = ("tensorboard", "wandb")
    """Tools that show the run, separated by commas or spaces: tensorboard, wandb, and Accelerate's, such as trackio,
    mlflow, aim, swanlab, dvclive, comet_ml, clearml. none: only the run's own files."""
    dry_run: bool = False
    """Print the resolved configuration, layers, parameters, ranks and batch split, and exit."""
    quiet: bool = False
    """Print only warnings, errors and the result. RUN/log.txt keeps all lines."""
    verbose: bool = False
    """Also print the layers of the networks, and every scalar of each report."""
    debug: bool = False
    """Show the traceback of an error."""
    model: groups.ModelConfig = field(default_factory=groups.ModelConfig)
    loss: groups.LossConfig = field(default_factory=groups.LossConfig)
    optimizer: groups.OptimizerConfig = field(default_factory=groups.OptimizerConfig)
    ema: groups.EmaConfig = field(default_factory=groups.EmaConfig)
    data: groups.DataConfig = field(default_factory=groups.DataConfig)
    log: run_groups.LogConfig = field(default_factory=run_groups.LogConfig)
    checkpoint: run_groups.CheckpointConfig = field(default_factory=run_groups.CheckpointConfig)
    watchdog: run_groups.WatchdogConfig = field(default_factory=run_groups.WatchdogConfig)
    divergence: run_groups.DivergenceConfig = field(default_factory=run_groups.DivergenceConfig)
    collapse: run_groups.CollapseConfig = field(default_factory=run_groups.CollapseConfig)
    wandb: run_groups.WandbConfig = field(default_factory=run_groups.WandbConfig)
    resume: run_groups.ResumeConfig = field(default_factory=run_groups.ResumeConfig)
    stop: run_groups.StopConfig = field(default_factory=run_groups.StopConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        names = tuple(name.strip() for word in self.trackers for name in word.split(",") if name.strip())
        object.__setattr__(self, "trackers", () if names == ("none",) else names)

    @property
    def verbosity(self) -> Literal["quiet", "normal", "verbose"]:
        """How much is printed."""
        return "quiet" if self.quiet else "verbose" if self.verbose else "normal"

    def check(self) -> "Config":
        """Raises ConfigError when options contradict each other; returns itself."""
        loss, model, data = self.loss, self.model, self.data
        smooths = loss.name in ("non_saturating", "minimax")
        check(smooths or not loss.label_smoothing, f"--loss.label_smoothing has no effect with --loss.name {loss.name}")
        penalised = [f"--loss.{name}" for name in ("r1_gamma", "gp_weight") if getattr(loss, name)]
        check(
            not penalised or model.d_norm != "batch",
            f"{' and '.join(penalised)} with --model.d_norm batch: BatchNorm makes an image's gradient depend on the "
            "whole batch, so the penalty is not the published one; use --model.d_norm layer or none",
        )
        check(
            loss.name != "wasserstein" or bool(loss.gp_weight or model.spectral_norm),
            "--loss.name wasserstein needs a bound on D's slope: --loss.gp_weight 10 (with --model.d_norm layer) "
            "or --model.spectral_norm",
        )
        check(not (self.quiet and self.verbose), "--quiet and --verbose contradict each other; give one of them")
        for option, names in (("augment", self.augment), ("trackers", self.trackers)):
            twice = {name for name in names if names.count(name) > 1}
            check(not twice, f"--{option} {' '.join(names)}: names {', '.join(sorted(twice))} twice")
        wandb = "wandb" in self.trackers or self.wandb.mode in ("auto", "disabled")
        check(wandb, f"--wandb.mode {self.wandb.mode} has no effect without wandb in --trackers")
        check(not data.classes or data.reader == "indexed", "--data.classes needs --data.reader indexed")
        _check_pipeline(data)
        for pipe in (url for url in data.shards if url.startswith("pipe:")):
            check(data.reader == "stream", f"--data.shards {pipe}: a pipe cannot be indexed; add --data.reader stream")
            check(data.allow_pipe, f"--data.shards {pipe}: would run a shell command; --data.allow_pipe allows it")
        for name in self.resume.allow_changes:
            known = any(f"{option}.".startswith(f"{name}.") for option in flatten(self))
            check(known, f"--resume.allow_changes {name}: there is no such option or group of options")
        self.per_rank(self.world_size or 1)
        return self

    def per_rank(self, world_size: int) -> int:
        """Images of one micro-batch on one rank; raises ConfigError when the ranks do not divide the batch evenly."""
        parts = world_size * self.accumulate
        nearest = max(parts, round(self.batch_size / parts) * parts)
        divisor = f"{counted(world_size, 'rank')} x --accumulate {self.accumulate}"
        problem = f"does not divide evenly over {divisor}; the nearest that does is {nearest}"
        check(self.batch_size % parts == 0, f"--batch_size {self.batch_size} {problem}")
        return self.batch_size // parts


def _check_pipeline(data: groups.DataConfig) -> None:
    if data.reader == "indexed":
        check(not data.resampled, "--data.resampled needs --data.reader stream; indexed permutes every epoch")
        check(data.pipeline is None, f"--data.pipeline {data.pipeline} needs --data.reader stream")
    if data.pipeline is not None:
        module, _, function = data.pipeline.partition(":")
        check(bool(module and function), f"--data.pipeline {data.pipeline}: write MODULE:FUNCTION, as in my_data:make")
        check(not data.resampled, f"--data.resampled with --data.pipeline {data.pipeline}: resample in the pipeline")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted option names with their values, in the order of the schema."""
    flat: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        flat |= flatten(value, f"{prefix}{item.name}.") if is_dataclass(value) else {prefix + item.name: value}
    return flat
