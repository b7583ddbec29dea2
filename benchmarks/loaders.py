"""CPU time per image of our reader, of the loaders that people use today, and of the floors that none can be below.

    benchmarks/peers/install.sh                           once: LitData and MosaicML Streaming, in .venv/peers
    python -m benchmarks.loaders                          the embedded faces: 20,000 at 64 px, 4,000 at 178 px
    python -m benchmarks.loaders --images FOLDER          parts of the photographs in a folder instead

Every loader delivers shuffled batches of 256 on the CPU, made from the same JPEG files, or from the pixels that those
decode to. A turn takes one epoch from a loader in a process of its own and adds up the user and system time of the
whole process tree, from the opening of the files on; Python's start and imports are not counted. Rounds rotate the
order; ratios are medians within rounds. CPU time, because it is what loading takes away from training, and because
other programs disturb it less.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.corpora import face_corpus, photograph_corpus
from benchmarks.measure import RESULTS, interleave, save, summary
from benchmarks.promises import FLOORS, SIZES, Turns, name_of, promises, ratio, show_promises
from benchmarks.turns import BATCH, Server, Task, Turn, UnavailableError

REPOSITORY = Path(__file__).parent.parent
PEERS_PYTHON = REPOSITORY / ".venv" / "peers" / "bin" / "python"
HERE, LIT, MOSAIC = "benchmarks.contenders", "benchmarks.peers.lit", "benchmarks.peers.mosaic"
PYTHONS = {HERE: Path(sys.executable), LIT: PEERS_PYTHON, MOSAIC: PEERS_PYTHON}
OURS = ["ours, first epoch", "ours, later epochs"]
WEBDATASET = ["webdataset, documented", "webdataset, PIL, uint8", "webdataset, tuned"]
FOLDERS = ["ImageFolder, PIL", "ImageFolder, simplejpeg"]
# for each kind of file: module -> those of its LOADERS that read such files
LOADERS = {
    "jpg": {
        HERE: [*OURS, *WEBDATASET, *FOLDERS, *FLOORS["jpg"]],
        LIT: ["LitData"],
        MOSAIC: ["MosaicML Streaming"],
    },
    "ppm": {
        HERE: [*OURS, *WEBDATASET, *FLOORS["ppm"]],
        LIT: ["LitData, arrays", "LitData, bytes"],
        MOSAIC: ["MosaicML Streaming"],
    },
}


@dataclass
class Table:
    """All turns on one corpus in one form."""

    kind: str
    size: int
    images: int
    bytes: float
    """Of a file, on average."""
    turns: Turns

    def rows(self) -> Iterator[dict[str, Any]]:
        """For the results."""
        ours = self.turns[name_of("ours, later epochs", 1)]
        for name, turns in self.turns.items():
            row = {"kind": self.kind, "size": self.size, "images": self.images, "file_bytes": self.bytes}
            first = statistics.median(turn.first or 0.0 for turn in turns)
            row |= {"loader": name, "first_batch_seconds": first} | summary(turns)
            yield row | {"x_ours": ratio(turns, ours)}


# ---- the comparison


def start_servers() -> tuple[dict[str, Server], dict[str, str]]:
    """Those that can be had, by module, and the reasons why others cannot."""
    servers, left_out = {}, {}
    for module, python in PYTHONS.items():
        try:
            servers[module] = Server(python, module)
        except UnavailableError as error:
            left_out[module] = str(error)
            print(f"left out: {module}: {error}", flush=True)
    return servers, left_out


def compare(
    corpus: Path, kind: str, size: int, servers: dict[str, Server], left_out: dict[str, str], args: argparse.Namespace
) -> Table:
    """Rounds over all loaders on one form of a corpus; a peer that fails goes to `left_out`, with the reason."""
    files = [path.stat().st_size for path in (corpus / "folder" / "all").iterdir()]
    together = BATCH * max(1, *args.workers)
    images = len(files) // together * together  # whole batches for each of the workers, so that none works for nothing
    mean = sum(files) / len(files) if kind == "jpg" else size * size * 3.0
    print(f"{kind} at {size} px: {images:,} images a turn, {mean:,.0f} bytes each", flush=True)
    contenders: dict[str, Callable[[], Turn]] = {}
    for module, loader in [(name, loader) for name in servers for loader in LOADERS[kind][name]]:
        task = Task(corpus=str(corpus), kind=kind, size=size, workers=0, images=images)
        if module != HERE:
            try:
                servers[module].turn(loader, replace(task, images=BATCH))  # writes files of its own, unmeasured
            except RuntimeError as error:
                left_out[f"{loader}, {kind}, {size} px"] = str(error)
                continue
        for workers in sorted({0, *args.workers}) if loader not in FLOORS[kind] else [0]:
            contenders[name_of(loader, workers)] = partial(servers[module].turn, loader, replace(task, workers=workers))
    for path in corpus.rglob("*.*"):
        if path.is_file():
            path.read_bytes()  # from here on all of them read from memory
    return Table(kind, size, images, mean, interleave(contenders, args.rounds))


def show(tables: list[Table]) -> str:
    """The tables, in Markdown."""
    lines = []
    for table in tables:
        form = "JPEG" if table.kind == "jpg" else "pixels"
        lines += [f"**{table.size} x {table.size}, {form}**, {table.bytes:,.0f} bytes an image", ""]
        lines += ["| | CPU us/image | x ours | images/s | first batch, s |", "|---|---:|---:|---:|---:|"]
        for row in sorted(table.rows(), key=lambda row: row["cpu_us_per_image"]):
            cells = [row["loader"], f"{row['cpu_us_per_image']:,.1f}", f"{row['x_ours']:,.2f}"]
            cells += [f"{row['images_per_second']:,.0f}", f"{row['first_batch_seconds']:,.3f}"]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photographs, instead of the embedded faces")
    parser.add_argument("--samples", type=int, nargs=2, default=[20_000, 4_000], help=f"images at {SIZES} pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[2], help="worker processes, our threads; 0 always")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--name", default="loaders", help="the results are OUT/NAME.json")
    args = parser.parse_args()
    if min(args.samples) < BATCH * max(1, *args.workers):
        parser.error(f"--samples: at least {BATCH * max(1, *args.workers)}, a batch for each worker")
    return args


def main() -> None:
    args = options()
    corpora = {
        size: photograph_corpus(args.images, size, count) if args.images else face_corpus(size, count)
        for size, count in zip(SIZES, args.samples, strict=True)
    }
    servers, left_out = start_servers()
    results: dict[str, Any] = {
        "images": "photographs" if args.images else "the embedded faces",
        "versions": {module: server.versions for module, server in servers.items()},
        "left_out": left_out,
    }
    tables: list[Table] = []
    try:
        for size, corpus in corpora.items():
            for kind in LOADERS:
                tables.append(compare(corpus, kind, size, servers, left_out, args))
                results["rows"] = [row for table in tables for row in table.rows()]
                save(args.out, args.name, "benchmarks.loaders", results)  # all there is so far
    finally:
        for server in servers.values():
            server.close()
    results["promises"] = promises({(table.kind, table.size): table.turns for table in tables})
    print(show(tables) + "\n" + show_promises(results["promises"]))
    print(f"written: {save(args.out, args.name, 'benchmarks.loaders', results)}")


if __name__ == "__main__":
    main()
