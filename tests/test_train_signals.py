"""A signal to all processes of a run, as by Ctrl-C in a terminal, by SLURM or by `kill -- -GROUP`: an orderly stop."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.output import unstamped
from support.processes import of_group
from support.waiting import LIMIT, until

from dcgan_dist.data.faces.dataset import ensure

TINY = (
    "--model.image_size 32 --model.nz 4 --model.ngf 4 --model.ndf 4 --batch_size 8 --images 100000000 --log.every 8 "
    "--log.samples 4 --log.samples_every 1000000 --trackers=wandb --data.faces 1000 --wandb.mode offline"
)
PROCESSES = "--data.decode processes --data.workers 2"
MOMENTS = {  # options, and the beginning of the line that tells that it is here
    "two processes draw the embedded faces": ("--data.faces 1e6", "data: drawing them, once, into "),
    "two processes that decode are started": (PROCESSES, "data: 1,000 images in "),
    "it trains": (PROCESSES, "0.0 %"),
    "it trains from a pipe": (
        "--data.shards 'pipe:sleep 0.2; cat {shard}' --data.reader stream --data.allow_pipe --data.prefetch 1",
        "0.0 %",
    ),
    "it trains from a user's pipeline with workers": (
        "--data.shards {shard} --data.reader stream --data.pipeline mine:make",
        "0.0 %",
    ),
}
PIPELINE = """
import numpy as np
import webdataset as wds

def make(shards, *, image_size, **_):
    dataset = wds.WebDataset(shards, shardshuffle=False, empty_check=False).decode("rgb8").to_tuple("ppm;jpg;png")
    return wds.WebLoader(dataset.map(lambda sample: (np.array(sample[0]), 0)), batch_size=None, num_workers=2)
"""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A short path, because sockets in it have at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="dd") as folder:
        yield Path(folder)


@pytest.fixture
def start(tmp_path, temporary) -> Iterator:
    processes: list[subprocess.Popen[str]] = []
    folders = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(temporary)}

    def start(options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-u", "-m", "dcgan_dist.train", *TINY.split(), "--run_dir", str(tmp_path / "run")]
        processes.append(
            subprocess.Popen(
                [*command, *shlex.split(options)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | folders | {"PYTHONPATH": os.pathsep.join([*sys.path, str(tmp_path)])},
                start_new_session=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def drawn(cache: Path) -> list[Path]:
    """The embedded faces, drawn in this test or before it."""
    return ensure(cache / "dcgan_dist" / "faces", size=32, channels=3, count=1000, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("two processes draw the embedded faces", signal.SIGTERM),
        ("two processes draw the embedded faces", signal.SIGHUP),
        ("two processes that decode are started", signal.SIGTERM),
        ("it trains", signal.SIGINT),
        ("it trains from a pipe", signal.SIGTERM),
        ("it trains from a user's pipeline with workers", signal.SIGINT),
        ("it trains from a user's pipeline with workers", signal.SIGTERM),
    ],
)
def test_it_stops_in_order_while(moment, number, start, tmp_path, temporary):
    options, sign = MOMENTS[moment]
    shard = None if "draw" in moment else drawn(tmp_path / "cache")[0]
    (tmp_path / "mine.py").write_text(PIPELINE)
    process = start(options.format(shard=shard))
    printed = []
    while not (printed and printed[-1].startswith(sign)):
        printed.append(unstamped(process.stdout.readline()))
        assert printed[-1], process.communicate()
        assert printed[-1].startswith("0.0 %") <= (sign == "0.0 %"), "".join(printed)
    everything = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)
    for child in everything:  # as SLURM does, whatever their group
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(number)
    out, errors = process.communicate(timeout=LIMIT)
    assert (process.returncode, errors) == (75, ""), out
    images, reason = (tmp_path / "run" / "PREEMPTED").read_text().splitlines()
    assert reason == number.name
    kept = tmp_path / "run" / "checkpoints" / "latest"
    assert int(images) == (int(kept.read_text()) if kept.exists() else 0)
    assert (int(images) > 0) == (sign == "0.0 %")
    assert f"stopped at {int(images):,} images" in out
    until(lambda: of_group(process.pid) == [])
    # a cache that torch makes for all programs of this user, and a socket of W&B's process, which the signal ended too
    others = ("torchinductor_", "wandb_symon-")
    assert [path.name for path in temporary.iterdir() if not path.name.startswith(others)] == []
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.tar")}
    assert "draw" in moment or before
    drawn(tmp_path / "cache")
    assert {path: path.stat().st_mtime_ns for path in before} == before  # complete, and not drawn again
