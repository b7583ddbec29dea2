"""Images per second of the training step, against the plain loop, without and with data loading.

    python -m benchmarks.step                       64 px, batch 64, on all cores or the GPU
    python -m benchmarks.step --sizes 32 64 --batches 128 1024 --contenders plain plain_ieee fp32 bf16
    python -m benchmarks.step --with_data           the whole trainer on shards, against a folder of images

The contenders take turns in one process, in an order that rotates; a ratio is the median over the rounds of the speeds
within one round. Ours goes through the trainer's own parts: uint8 batches from (pinned) memory, the noise source, the
step, the average of G and the statistics. The plain loop is handed a finished float32 batch that lies on its device
already, which is kind to it.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: other programs may want the cores, too

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import RESULTS, interleave, save, summary, table
from benchmarks.plain_loop import PlainLoop
from benchmarks.turns import Turn
from benchmarks.with_data import compare_trainers
from dcgan_dist.config import Config
from dcgan_dist.config.groups import DataConfig, ModelConfig
from dcgan_dist.data.reading.prefetch_buffer import Batch, empty_batch
from dcgan_dist.parallel.engine import Iteration
from dcgan_dist.parallel.feed import on_device
from dcgan_dist.parallel.world import World, launch
from dcgan_dist.run.stats import Stats

CONVOLUTIONS: Any = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue] - of newer versions
PLAIN = {"plain": "tf32", "plain_ieee": "ieee"}  # of convolutions on a GPU; PyTorch's own choice is tf32
OURS = ("fp32", "bf16", "fp16")


class Ours:
    """The trainer's iteration, without a run around it."""

    def __init__(self, config: Config, world: World) -> None:
        batches = on_device(_synthetic(config, world.device.type == "cuda"), world.device)
        self._iteration = Iteration(config, world, ((batch.images, batch.flips) for batch in batches))
        self.convolutions = CONVOLUTIONS.fp32_precision
        self._stats = Stats(world.device)

    def iterate(self) -> None:
        self._stats.add(self._iteration.run())


def _synthetic(config: Config, pinned: bool) -> Iterator[Batch]:
    model = config.model
    slots = [empty_batch(config.batch_size, model.image_size, model.channels, pinned) for _ in range(4)]
    for slot in slots:
        slot.images.random_(0, 256)
    yield from itertools.cycle(slots)


class Plain:
    """The plain loop on one finished batch."""

    def __init__(self, config: Config, device: torch.device, convolutions: str) -> None:
        model = config.model
        self.convolutions = convolutions
        self._loop = PlainLoop(model.image_size, model.ngf, model.ndf, device)
        self._images = (
            torch.rand(config.batch_size, model.channels, model.image_size, model.image_size, device=device) * 2 - 1
        )

    def iterate(self) -> None:
        self._loop.iterate(self._images)


class Contender:
    """One of them with its turns: as many iterations as take about `seconds`."""

    def __init__(self, make: Callable[[], Ours | Plain], batch: int, device: torch.device, seconds: float) -> None:
        self._runner, self._batch, self._device = make(), batch, device
        self._timed(2)
        warm = self._timed(2 if device.type == "cpu" else 5)
        self._iterations = max(1, round(seconds / (warm.wall / warm.images * batch)))
        self.peak_memory = 0

    def turn(self) -> Turn:
        turn = self._timed(self._iterations)
        if self._device.type == "cuda":
            self.peak_memory = torch.cuda.max_memory_allocated(self._device)
        return turn

    def _timed(self, iterations: int) -> Turn:
        # one switch for the whole process: each contender sets its own again
        CONVOLUTIONS.fp32_precision = self._runner.convolutions
        torch.backends.cudnn.benchmark = True
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._wait()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(iterations):
            self._runner.iterate()
        self._wait()
        return Turn(iterations * self._batch, time.perf_counter() - wall, time.process_time() - cpu)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def compare_steps(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rounds for every size and batch; one row per contender."""
    world = launch(Config())
    if world.device.type == "cpu":
        torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    for size, batch in itertools.product(args.sizes, args.batches):
        print(f"{size} px, batch {batch}, on {world.device}, {torch.get_num_threads()} threads", flush=True)
        contenders = {
            name: Contender(_maker(name, size, batch, args, world), batch, world.device, args.seconds)
            for name in args.contenders
        }
        turns = interleave({name: contender.turn for name, contender in contenders.items()}, args.rounds)
        for name in contenders:
            row = {"size": size, "batch": batch, "ngf": args.ngf, "ndf": args.ndf, "contender": name}
            row |= {"device": str(world.device), "threads": torch.get_num_threads()}
            row |= {"peak_memory": contenders[name].peak_memory}
            yield row | summary(turns[name], turns.get("plain"))
        del contenders
        if world.device.type == "cuda":
            torch.cuda.empty_cache()


def _maker(name: str, size: Any, batch: int, args: argparse.Namespace, world: World) -> Callable[[], Ours | Plain]:
    precision: Any = name if name in OURS else "fp32"
    config = Config(
        batch_size=batch,
        precision=precision,
        model=ModelConfig(image_size=size, ngf=args.ngf, ndf=args.ndf),
        data=DataConfig(hflip=False),
    )
    if name in OURS:
        return lambda: Ours(config, world)
    return lambda: Plain(config, world.device, PLAIN[name])


def show(rows: list[dict[str, Any]]) -> str:
    """The table."""
    cells = []
    for row in rows:
        low, high = row["images_per_second_range"]
        cells.append(
            [
                f"{row['size']} px, batch {row['batch']}, {row['contender']}",
                f"{row['images_per_second']:,.1f}",
                f"{low:,.1f} .. {high:,.1f}",
                f"{row['cpu_us_per_image']:,.0f}",
                f"{row['wall_ratio']:.2f}" if "wall_ratio" in row else "",
                f"{row['cpu_ratio']:.2f}" if "cpu_ratio" in row else "",
                f"{row['peak_memory'] / 1e9:.2f}" if row.get("peak_memory") else "",
            ]
        )
    header = ["", "images/s", "range", "CPU us/image", "x plain", "x plain (CPU)", "peak GB"]
    return table(header, cells)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64], help="image sizes, pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=[64])
    parser.add_argument("--ngf", type=int, default=64)
    parser.add_argument("--ndf", type=int, default=64)
    parser.add_argument("--contenders", nargs="+", default=["plain", "fp32"], choices=[*PLAIN, *OURS])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a turn, about")
    parser.add_argument("--threads", type=int, default=0, help="computing threads on a CPU; 0: one for each core")
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto")
    parser.add_argument("--with_data", action="store_true", help="both trainers as programs, with their data loading")
    parser.add_argument("--faces", type=int, default=10_000, help="--with_data: images of the data set")
    parser.add_argument("--images", type=int, default=5_120, help="--with_data: images that a turn is measured over")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--name", default="step", help="the results are OUT/NAME.json")
    return parser.parse_args()


def main() -> None:
    args = options()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    rows, path = [], args.out
    for row in compare_trainers(args) if args.with_data else compare_steps(args):
        rows.append(row)
        path = save(args.out, args.name, "benchmarks.step", rows)  # all there is so far, should the time run out
    print(show(rows))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
