"""`dcgan-dist bench loader`: whether loading or training is the limit of this machine, and what would help."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch

from dcgan_dist import cli
from dcgan_dist.commands.bench.floors import Floors
from dcgan_dist.commands.bench.reading import (
    AS_TRAINED,
    FIRST,
    LATER,
    Rank,
    loader_contenders,
    named,
    open_rank,
    row_name,
    webdataset_contenders,
    workers_of,
)
from dcgan_dist.commands.bench.step import Step
from dcgan_dist.commands.bench.turns import Row, Turns, interleave, show
from dcgan_dist.commands.bench.verdict import Measured, Verdict, judge
from dcgan_dist.commands.output import check_output
from dcgan_dist.config import Config, Images, Options, Range
from dcgan_dist.data.storage import write_atomically
from dcgan_dist.errors import UsageError
from dcgan_dist.parallel.precision import arithmetic
from dcgan_dist.parallel.world import launch, set_cpu_threads
from dcgan_dist.run.folder import environment
from dcgan_dist.run.memory import require_memory

PROGRAM = "dcgan-dist bench loader"
STEP, DECODE, GATHER = "training step alone", "floor: bare decode of the same bytes", "floor: copy of the same pixels"


@dataclass(frozen=True, kw_only=True)
class LoaderOptions(Options):
    """Measure loading and training apart, on the shards and with the options of a training: which of them limits this
    machine, and what would help. Beside them: plain webdataset on the same shards, and floors.
    """

    seconds: Annotated[float, Range(above=0, most=3_600)] = 2.0
    """Length of one measurement."""
    rounds: Annotated[int, Range(least=1, most=1_000)] = 3
    """Measurements of each kind; medians count."""
    samples: Images = 8_192
    """Images, in whole shards, that are measured with."""
    webdataset: bool = True
    """Measure plain webdataset, too."""
    out: Path | None = None
    """File for all results, as JSON."""
    overwrite: bool = False
    """Let --out replace a file."""


def main(argv: list[str]) -> int:
    """Runs the measurement. Raises UsageError and UserError."""
    own, config = _options(argv)
    local_ranks = max(1, torch.cuda.device_count())
    ranks = config.world_size or local_ranks
    config = replace(config, batch_size=config.per_rank(ranks) * config.accumulate, world_size=None)
    world = launch(config)
    if world.size > 1:
        raise UsageError(f"{PROGRAM} is one process; start it without a launcher")
    print(set_cpu_threads(world) or f"device: {world.device}")
    require_memory(config, arithmetic(config.precision, world.device), world, print)
    rank = open_rank(config, world.device, min(ranks, local_ranks), own.samples)
    step = Step(rank.config, world)
    print(f"a rank's batch: {config.batch_size} images; {step.precision}", flush=True)
    contenders = _contenders(rank, own) | {STEP: lambda: {STEP: step.turn(own.seconds)}}
    rows = interleave(contenders, own.rounds, partial(print, flush=True))
    verdict = judge(_measured(rank, step.precision, rows))
    advice = [f"  - {line}" for line in verdict.advice]
    print("\n".join(["", show(rows), "", verdict.text, "What would help:", *advice]))
    if own.out is not None:
        results = json.dumps(_results(rank, step.precision, rows, verdict), indent=1)
        write_atomically(own.out, results.encode(), new=not own.overwrite)
        print(f"written: {own.out}")
    return 0


def _options(argv: Sequence[str]) -> tuple[LoaderOptions, Config]:
    """This command's own options, and the training's."""
    own, config = cli.load_with(LoaderOptions, argv, PROGRAM)
    if own.out is not None:
        check_output("--out", own.out, own.overwrite)
        if not own.out.absolute().parent.is_dir():
            raise UsageError(f"--out {own.out}: name a file in a folder that exists")
    if config.data.reader != "indexed":
        raise UsageError(f"--data.reader {config.data.reader}: {PROGRAM} measures the indexed reader")
    return own, config


def _contenders(rank: Rank, own: LoaderOptions) -> dict[str, Callable[[], Turns]]:
    """All but the step."""
    contenders = loader_contenders(rank, own.seconds)
    if not all(Path(name).is_file() for name in rank.names):
        return contenders  # plain webdataset and the floors read local files
    if own.webdataset:
        contenders |= webdataset_contenders(rank, own.seconds)
    model = rank.config.model
    floors = Floors(rank.names, (model.image_size, model.channels), rank.images, rank.config.batch_size)
    contenders[DECODE] = lambda: {DECODE: floors.decode(own.seconds)}
    contenders[GATHER] = lambda: {GATHER: floors.gather(own.seconds)}
    return contenders


def _measured(rank: Rank, precision: str, rows: Sequence[Row]) -> Measured:
    by_name = {row.name: row for row in rows}

    def loader(name: str) -> Row:
        first, later = row_name(name, FIRST), row_name(name, LATER)
        return by_name.get(later, by_name[first])

    gather = by_name.get(GATHER)
    return Measured(
        device=rank.device.type,
        precision=precision,
        loader=loader(AS_TRAINED).images_per_second,
        first_epoch=by_name[row_name(AS_TRAINED, FIRST)].images_per_second,
        workers={options: loader(named(options)).images_per_second for options in workers_of(rank)},
        step=by_name[STEP].images_per_second,
        loader_cpu=loader(AS_TRAINED).cpu_us_per_image,
        step_cpu=by_name[STEP].cpu_us_per_image,
        pixels_cpu=None if gather is None else gather.cpu_us_per_image,
        encoded=rank.encoded,
        ranks=rank.local_ranks,
    )


def _results(rank: Rank, precision: str, rows: Sequence[Row], verdict: Verdict) -> dict[str, Any]:
    """For --out. Nothing that names the machine or its files: a command and a URL can hold secrets."""
    known = environment()
    config = rank.config
    return {
        "about": {name: value for name, value in known.items() if name not in ("machine", "command")},
        "measured_with": {
            "image_size": config.model.image_size,
            "channels": config.model.channels,
            "batch": config.batch_size,
            "precision": precision,
            "device": str(rank.device),
            "ranks": rank.local_ranks,
            "shards": len(rank.names),
            "images": rank.images,
            "encoded": rank.encoded,
        },
        "rows": [asdict(row) for row in rows],
        "verdict": asdict(verdict),
    }
