"""What a checkpoint costs the training: the loop's seconds in a save, blocking and beside the training.

    python -m benchmarks.saving        two minutes on 2 cores; prints JSON and writes results/saving.json

The networks of 64 x 64 images with ngf = ndf = 64, their average and both optimisers. Each turn is one save and
ITERATIONS iterations; turns without a save, with a blocking one and with one beside the training alternate. `loop` is
what the loop spends in the save, `iterations` what the iterations after it take, which share the cores with the thread
that writes: the whole cost of a save is `loop` and what `iterations` takes more than without one. Seconds.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measure import RESULTS, save
from dcgan_dist.config import Config
from dcgan_dist.config.run_groups import CheckpointConfig
from dcgan_dist.gan.state import TrainState, create_state
from dcgan_dist.run import checkpoint
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.lease import Lease
from dcgan_dist.run.saving import Saver

ITERATIONS = 6
KINDS = ("none", "blocking", "beside")

Turn = dict[str, float]


def iterate(state: TrainState, device: torch.device, batch: int) -> None:
    """One update of both networks; what they learn does not matter here."""
    loss = state.netd(state.netg(torch.randn(batch, 100, 1, 1, device=device))).mean()
    loss.backward()
    for optimizer in (state.opt_g, state.opt_d):
        optimizer.step()
        optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def turn(folder: Path, state: TrainState, device: torch.device, kind: str, number: int, *, batch: int) -> Turn:
    """A save, and the iterations after it."""
    saver = Saver(RunFolder(folder), CheckpointConfig(blocking=kind == "blocking"), Lease(folder), print, device)
    begun = time.perf_counter()
    if kind != "none":
        saver.save(number, state.tensors() | {"stats": {}}, {"images": number})
    saved = time.perf_counter()
    for _ in range(ITERATIONS):
        iterate(state, device, batch)
    done = time.perf_counter()
    saver.finish()
    written = saver.seconds().get("save/write_seconds", 0.0)
    return {"loop": saved - begun, "iterations": done - saved, "written": written}


def main() -> None:
    """Prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32, help="images of an iteration")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    state = create_state(Config(), device, torch.float32, scaled=False)
    turns: dict[str, list[Turn]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(len(KINDS) * (options.rounds + 2)):  # from the third round on, each save removes one
            kind = KINDS[number % len(KINDS)]
            turns[kind].append(turn(folder, state, device, kind, number, batch=options.batch))
        newest = checkpoint.all_checkpoints(folder / "checkpoints")[-1]
        size = sum(path.stat().st_size for path in newest.iterdir())
    turns = {kind: found[2:] for kind, found in turns.items()}
    medians = {kind: {key: statistics.median(t[key] for t in all_) for key in all_[0]} for kind, all_ in turns.items()}
    results = {"device": options.device, "bytes": size, "medians": medians, "turns": turns}
    save(options.out, "saving" if device.type == "cpu" else f"saving-{device.type}", "benchmarks.saving", results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
