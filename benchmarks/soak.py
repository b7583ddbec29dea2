"""A training on two ranks that is killed again and again, each time started by the same command, until it is done.

    python -m benchmarks.soak        three minutes on 2 cores; prints JSON and writes results/soak.json

One row for each fault, and a table by kinds. `seconds_to_end`: from the fault until no process of the job is left.
`images_again`: reported by the killed attempt and computed once more by the next one, for they came after the last
checkpoint. `seconds_to_go_on`: from the next start of the command until it reports new images. At the end the run is
compared with one that nothing disturbed; `images_lost` and `images_twice` count reports that its metrics.jsonl lacks or
repeats.
"""

import argparse
import contextlib
import io
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.measure import RESULTS, save
from dcgan_dist.data.shards.index import ShardWriter

REPOSITORY = Path(__file__).parent.parent
BATCH, STEPS, RANKS = 12, 300, 2
LENGTH, REPORT = BATCH * STEPS, 2 * BATCH  # images
OPTIONS = (
    f"--world_size {RANKS} --images {LENGTH} --batch_size {BATCH} --precision fp32 --model.image_size 32 --model.nz 8 "
    f"--model.ngf 4 --model.ndf 4 --data.decode processes --data.workers 1 --log.every {REPORT} --log.samples 1 "
    f"--trackers=wandb --wandb.mode disabled --checkpoint.every {8 * BATCH}"
)
FAULTS = (
    "SIGKILL of a rank",
    "SIGKILL of a rank",
    "SIGKILL of the launcher",
    "SIGKILL of a rank",
    "SIGSTOP of a rank",
    "SIGTERM of the launcher",
    "SIGKILL of a rank",
    "SIGKILL of launcher and ranks",
    "the file STOP",
)
PATIENCE = 600  # seconds for anything that is waited for
CLOCKED = ("time/", "speed/", "rank/", "save/", "data/")  # what no two attempts report alike
MEMORY = Path("/dev/shm")


def write_shard(path: Path, count: int = 40) -> Path:
    """Pictures of smooth colours, as JPEG: decoding processes have something to do."""
    with ShardWriter(path) as shard:
        for number in range(count):
            coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(file, "JPEG")
            shard.add(f"{number:05}", "jpg", file.getvalue(), None)
    return path


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """What the condition gives when it is true."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.02)
    return found


class Job:
    """A run's folder, and the command that goes on with it."""

    def __init__(self, folder: Path, name: str, watchdog: float) -> None:
        self.run, self._errors = folder / name, folder / f"{name}.err"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
        given = ["--run_dir", str(self.run), "--data.shards", str(folder / "shard.tar"), *OPTIONS.split()]
        given += ["--watchdog.seconds", str(watchdog)]
        self._command = [*launcher, "-m", "dcgan_dist.train", *given]
        quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GLOO_SOCKET_IFNAME": "lo"}
        self._variables = os.environ | quiet | {"XDG_CACHE_HOME": str(folder), "CUDA_VISIBLE_DEVICES": ""}
        self.members: set[psutil.Process] = set()
        """Every process that was seen of this attempt."""

    def start(self) -> subprocess.Popen[bytes]:
        self.members = set()
        with self._errors.open("ab") as errors:
            return subprocess.Popen(
                self._command,
                cwd=REPOSITORY,
                env=self._variables,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )

    def lines(self) -> list[bytes]:
        """The reports that are in metrics.jsonl now."""
        with contextlib.suppress(FileNotFoundError):
            return [line for line in (self.run / "metrics.jsonl").read_bytes().splitlines(True) if line[-1:] == b"\n"]
        return []

    def reports(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]

    def newest(self) -> int:
        """Images of the newest checkpoint; 0 if there is none."""
        with contextlib.suppress(FileNotFoundError):
            return int((self.run / "checkpoints" / "latest").read_text())
        return 0

    def ranks(self, launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """Both of them, in order; none as long as there is only one."""
        if launcher.poll() is not None:
            raise RuntimeError(f"the command ended: {self._errors.read_text()[-2000:]}")
        children = psutil.Process(launcher.pid).children(recursive=True)
        self.members |= {psutil.Process(launcher.pid), *children}
        found = {}
        for child in children:
            with contextlib.suppress(psutil.Error):
                if "dcgan_dist.train" in child.cmdline() and child.ppid() == launcher.pid:
                    found[child.environ()["RANK"]] = child
        return [found[rank] for rank in sorted(found)] if len(found) == RANKS else []

    def strike(self, launcher: subprocess.Popen[bytes], fault: str, rank: int) -> None:
        """Lets the fault happen, and waits until the whole job is gone."""
        ranks = self.ranks(launcher)
        if fault == "the file STOP":
            (self.run / "STOP").touch()
        else:
            whole = psutil.Process(launcher.pid)
            victims = [whole, *ranks] if "and ranks" in fault else [whole] if "launcher" in fault else [ranks[rank]]
            for victim in victims:
                victim.send_signal(signal.Signals[fault.partition(" ")[0]])
        if fault == "SIGSTOP of a rank":
            psutil.wait_procs([ranks[1 - rank]], timeout=PATIENCE)
            ranks[rank].resume()  # else the launcher waits 30 s for it
        launcher.wait(PATIENCE)
        _, alive = psutil.wait_procs(list(self.members), timeout=PATIENCE)
        if alive:
            raise TimeoutError(f"{fault}: processes are left: {alive}")


def disturb(job: Job, fault: str, chance: random.Random) -> dict[str, Any]:
    """One attempt with its fault, at a random moment and on a random rank."""
    victim, reports = chance.randrange(RANKS), chance.randint(1, 7)
    row: dict[str, Any] = {"fault": fault} | ({"rank": victim} if fault.endswith("of a rank") else {})
    old, begun = set(job.lines()), time.monotonic()
    launcher = job.start()

    def new() -> int:
        if launcher.poll() is not None:
            job.ranks(launcher)
        return len(set(job.lines()) - old)

    try:
        wait_until(new, "a first report")
        row["began_after"] = time.monotonic() - begun
        wait_until(lambda: new() >= reports, "more reports")
        time.sleep(chance.uniform(0, 0.05))
        struck = time.monotonic()
        job.strike(launcher, fault, victim)
    finally:
        for process in job.members:
            with contextlib.suppress(psutil.Error):
                process.kill()
        launcher.kill()
        launcher.wait()
    row["seconds_to_end"] = time.monotonic() - struck
    seen = max((report["images"] for report in job.reports()), default=0)
    return row | {"images": seen, "images_again": max(seen - job.newest(), 0)}


def learnt(job: Job) -> list[dict[str, Any]]:
    return [{k: v for k, v in report.items() if not k.startswith(CLOCKED)} for report in job.reports()]


def alike(ours: dict[str, float], theirs: dict[str, float]) -> bool:
    """The same but for rounding: a save adds the numbers of a report up in another order."""
    return ours.keys() == theirs.keys() and all(math.isclose(ours[k], theirs[k], rel_tol=1e-12) for k in ours)


def end(job: Job) -> dict[str, Any]:
    """The final checkpoint: its tensors' files, and its numbers but for the options and the time."""
    path = job.run / "checkpoints" / f"{LENGTH:09}"
    state = json.loads((path / "state.json").read_text())
    numbers = {name: value for name, value in state.items() if name not in ("config", "run_seconds")}
    return {file.name: file.read_bytes() for file in path.glob("*.safetensors")} | numbers


def left_over(job: Job, memory: set[Path]) -> dict[str, list[str]]:
    """Files in the run's folder that are none of the run's, processes, and names in shared memory."""
    hidden = [str(path.relative_to(job.run)) for path in job.run.rglob(".*") if path.name != ".owner.lock"]
    running = psutil.process_iter(["pid", "cmdline"])
    processes = [str(each.info["pid"]) for each in running if str(job.run) in (each.info["cmdline"] or [])]
    ends, new = time.monotonic() + 60, set(MEMORY.iterdir()) - memory
    while any(path.exists() for path in new) and time.monotonic() < ends:
        time.sleep(0.1)  # another program's will go
    shared = [path.name for path in new if path.exists()]
    return {"files": hidden, "processes": processes, "shared_memory": shared}


def complete(job: Job, straight: Job) -> float:
    """Goes on to the end; seconds until the first report. From then on the undisturbed run shares the cores."""
    old, begun, running = set(job.lines()), time.monotonic(), [job.start()]
    try:
        wait_until(lambda: set(job.lines()) - old, "a first report")
        seconds = time.monotonic() - begun
        running.append(straight.start())
        if {launcher.wait(PATIENCE) for launcher in running} != {0}:
            raise RuntimeError("an attempt that nothing disturbed failed")
    finally:
        for launcher in running:
            launcher.kill()  # the ranks see it, and end
            launcher.wait()
    return seconds


def by_kind(faults: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the faults of each kind cost at most."""
    costs = ("images_again", "seconds_to_end", "seconds_to_go_on")
    table = []
    for kind in dict.fromkeys(row["fault"] for row in faults):
        rows = [row for row in faults if row["fault"] == kind]
        table.append({"fault": kind, "injected": len(rows)} | {cost: max(row[cost] for row in rows) for cost in costs})
    return table


def soak(folder: Path, seed: int, count: int, watchdog: float) -> dict[str, Any]:
    """The whole of it; what came of each fault, and of the run."""
    write_shard(folder / "shard.tar")
    chance, memory = random.Random(seed), set(MEMORY.iterdir())
    straight, job = Job(folder, "straight", watchdog), Job(folder, "run", watchdog)
    faults = []
    for fault in itertools.islice(itertools.cycle(FAULTS), count):
        faults.append(disturb(job, fault, chance))
        print(f"  {fault:<32} at {faults[-1]['images']:,} images", file=sys.stderr, flush=True)
    went_on = complete(job, straight)
    # what a fault cost is seen in the attempt after it
    later = [*[row.pop("began_after") for row in faults][1:], went_on]
    for row, seconds in zip(faults, later, strict=True):
        row["seconds_to_go_on"] = seconds
    told = Counter(report["images"] for report in job.reports())
    wanted = range(REPORT, LENGTH + 1, REPORT)
    ours, theirs = end(job), end(straight)
    return {
        "seed": seed,
        "steps": STEPS,
        "faults": faults,
        "by_kind": by_kind(faults),
        "survived": len(faults),
        "images_lost": REPORT * len(set(wanted) - told.keys()),
        "images_twice": REPORT * sum(count - 1 for count in told.values()),
        "in_order": [report["images"] for report in job.reports()] == list(wanted),
        "different_tensors_or_numbers": sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)),
        "different_reports": sum(not alike(a, b) for a, b in zip(learnt(job), learnt(straight), strict=True)),
        "left_over": left_over(job, memory),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=2 * len(FAULTS), help="how many, of each kind in turn")
    parser.add_argument("--watchdog", type=float, default=5, help="seconds without progress that it takes for a hang")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for soak.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = soak(Path(folder), options.seed, options.faults, options.watchdog)
    print(json.dumps(results, indent=2))
    save(options.out, "soak", "benchmarks.soak", results)


if __name__ == "__main__":
    main()
