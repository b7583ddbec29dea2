"""Both trainers as programs, from images on disk to networks: ours on shards of pixels, the plain loop on a folder.

They take turns. A turn is a process; it is measured between two lines of its progress file, after the first ones, so
that neither starting nor warming up counts.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.corpora import face_corpus
from benchmarks.measure import interleave, summary
from benchmarks.turns import Turn

REPOSITORY = Path(__file__).parent.parent
SKIPPED = 2  # lines of progress: the first iterations
LINES = 8  # lines that a turn is measured over
POLL = 0.02  # seconds


def compare_trainers(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rounds for every size and batch; one row per contender."""
    for size in args.sizes:
        corpus = face_corpus(size, args.faces)
        for batch in args.batches:
            print(f"{size} px, batch {batch}, with data loading", flush=True)
            contenders = {name: _contender(name, corpus, size, batch, args) for name in args.contenders}
            turns = interleave(contenders, args.rounds)
            for name in contenders:
                row = {"size": size, "batch": batch, "ngf": args.ngf, "ndf": args.ndf, "contender": f"{name} + data"}
                yield row | summary(turns[name], turns.get("plain"))


def _contender(name: str, corpus: Path, size: int, batch: int, args: argparse.Namespace) -> Callable[[], Turn]:
    every = max(1, args.images // (LINES * batch)) * batch
    images = every * (SKIPPED + LINES + 1)  # still at it when the last reading is taken

    def turn() -> Turn:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            common = [f"--images={images}", "--size" if name == "plain" else "--model.image_size", str(size)]
            if name == "plain":
                progress = Path(folder) / "progress.jsonl"
                command = [
                    "benchmarks.plain_loop",
                    *common,
                    "--folder",
                    str(corpus / "folder"),
                    "--progress",
                    str(progress),
                ]
                command += [f"--batch={batch}", f"--every={every}", f"--ngf={args.ngf}", f"--ndf={args.ndf}"]
            else:
                progress = run / "metrics.jsonl"
                command = [
                    "dcgan_dist.train",
                    *common,
                    "--data.shards",
                    str(corpus / "ppm" / "*.tar"),
                    f"--run_dir={run}",
                ]
                command += [
                    f"--batch_size={batch}",
                    f"--log.every={every}",
                    f"--precision={name}",
                    "--wandb.mode=disabled",
                ]
                command += [f"--model.ngf={args.ngf}", f"--model.ndf={args.ndf}"]
                # both once, at the end
                command += [f"--log.samples_every={images}", f"--checkpoint.every={images}"]
            return _measure(command, progress, Path(folder) / "output.txt", every * LINES)

    return turn


def _measure(command: list[str], progress: Path, output: Path, images: int) -> Turn:
    """Runs `python -m COMMAND` and reads the clocks when its progress file has SKIPPED and SKIPPED + LINES lines."""
    # the launcher's own choice of threads would bind the plain loop's too
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with output.open("w") as file:
        program = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            readings = [_reading(program, progress, lines) for lines in (SKIPPED, SKIPPED + LINES)]
        except EOFError as error:
            raise RuntimeError(f"{' '.join(command)} ended early:\n{output.read_text()[-3000:]}") from error
        finally:
            program.terminate()
            program.wait()
    (wall, cpu), (wall_end, cpu_end) = readings
    return Turn(images, wall_end - wall, cpu_end - cpu)


def _reading(program: subprocess.Popen[bytes], progress: Path, lines: int) -> tuple[float, float]:
    """Wall clock and CPU seconds of the process tree as soon as there are so many lines of progress."""
    tree = psutil.Process(program.pid)
    while True:
        if progress.exists() and progress.read_bytes().count(b"\n") >= lines:
            return time.perf_counter(), _cpu(tree)
        if program.poll() is not None:
            raise EOFError
        time.sleep(POLL)


def _cpu(tree: psutil.Process) -> float:
    """User and system seconds of a process, its descendants, and those of them that have ended."""
    return sum(sum(process.cpu_times()[:4]) for process in [tree, *tree.children(recursive=True)])
