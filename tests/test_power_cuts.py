"""What is reported as on disk survives a power cut: the order in which every writer syncs and renames its files."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.power import Disk
from support.shards import write_ours
from support.sources import make_folder as pictures
from support.training import TENSOR_FILES, TINY

from dcgan_dist import train
from dcgan_dist.data.remote.quota import Quota
from dcgan_dist.data.sources import find_source
from dcgan_dist.data.system.storage import atomic_file, make_folder, sync_folder, write_atomically
from dcgan_dist.data.writing.packing import Packing
from dcgan_dist.data.writing.writer import write_shards
from dcgan_dist.run import checkpoint
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.grid import save_png
from dcgan_dist.run.jsonl import MetricsFile
from dcgan_dist.run.lease import Lease


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def disk(root, monkeypatch):
    return Disk(root, monkeypatch)


def written(name: str, folder: str = ".") -> list[str]:
    """A file that appears in one piece, and stays."""
    prefix = "" if folder == "." else f"{folder}/"
    return [f"sync {prefix}~{name}", f"name {prefix}{name}", f"sync {folder}/"]


TENSORS = {name: {"weight": torch.ones(3)} for name in TENSOR_FILES}
NEW = "checkpoints/.tmp-0-000000100"
SAVED = [
    "sync ./",  # the folder of the checkpoints is new
    *(f"sync {NEW}/{name}.safetensors" for name in TENSOR_FILES),
    f"sync {NEW}/state.json",
    f"sync {NEW}/manifest.json",
    f"sync {NEW}/",
    "name checkpoints/000000100",
    "sync checkpoints/",
    "sync checkpoints/.tmp-0-latest",
    "name checkpoints/latest",
    "sync checkpoints/",
]

ENTRY = f"{0:032x}-a.tar"


def save(root: Path, images: int = 100) -> Path:
    return checkpoint.save(root / "checkpoints", images, TENSORS, {"images": images}, keep=3)


def rename(old: Path, new: Path) -> None:
    """Durably."""
    old.replace(new)
    sync_folder(new.parent)


def stream(root: Path) -> None:
    with atomic_file(root / "file") as file:
        file.write(b"data")


def report(root: Path) -> None:
    metrics = MetricsFile(root / "metrics.jsonl")
    metrics.append({"images": 8})
    metrics.sync()


def own(root: Path) -> None:
    lease = Lease(root)
    lease.take()
    lease.release()


def cache(root: Path) -> None:
    made = Quota(root, 10).reserve(ENTRY, 4, lambda _: None)
    assert made is not None
    os.write(made.descriptor, b"data")
    made.publish()
    made.close()


def place(root: Path) -> None:
    """A folder with what is in it."""
    make_folder(root / "a" / "b")
    write_atomically(root / "a" / "b" / "file", b"data")
    rename(root / "a", root / "z")


WRITERS = {
    "a small file": (lambda root: write_atomically(root / "file", b"data"), written("file")),
    "in new folders": (
        lambda root: write_atomically(root / "a" / "b" / "file", b"data"),
        ["sync a/", "sync ./", *written("file", "a/b")],
    ),
    "a stream": (stream, written("file")),
    "a picture": (lambda root: save_png(np.zeros((2, 2, 3), dtype=np.uint8), root / "p.png"), written("p.png")),
    "a shard": (lambda root: write_ours(root / "a.tar", 2), written("a.tar")),
    "reports": (report, ["sync metrics.jsonl", "sync ./"]),
    "DONE": (lambda root: RunFolder(root).mark(root / "DONE", "48"), written("DONE")),
    "the first checkpoint's note": (lambda root: RunFolder(root).note_checkpoint(48), written("first_checkpoint")),
    "the owner": (own, 2 * written("owner.json")),
    "a checkpoint": (save, SAVED),
    "an entry of the cache": (cache, [f"sync .{ENTRY}.tmp", f"name {ENTRY}"]),  # may be lost, and is never torn
    "a folder": (place, ["sync a/", "sync ./", *written("file", "a/b"), "name z", "sync ./"]),
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
def test_content_then_name_then_folder(root, disk, writer):
    write, events = WRITERS[writer]
    write(root)
    assert disk.events == events
    assert disk.torn == []


def test_the_best_checkpoint_is_left_behind_in_order(root, disk):
    path = save(root)
    write_atomically(path.with_name("best"), path.name.encode())
    disk.events.clear()
    checkpoint.leave_behind(path, Lease(root))
    assert disk.events == [*written("best", "checkpoints"), "name checkpoints/000000100-left", "sync checkpoints/"]


@pytest.mark.parametrize("again", [False, True])
def test_shards_are_published_with_the_manifest_last(root, disk, again):
    source = find_source(str(pictures(root.parent / "images")))
    packing = Packing(size=8, shard_size=3, processes=1, duplicates="keep", overwrite=again)
    if again:
        write_shards(source, root / "out", replace(packing, shard_size=4))
        disk.events.clear()
    write_shards(source, root / "out", packing)
    assert disk.torn == []
    named = [event for event in disk.events if event.startswith("name out/") and ".partial" not in event]
    shards = [f"name out/shard-{number:05d}.tar" for number in range(3)]
    assert named == [*shards, "name out/sizes.json", "name out/_info.json", "name out/manifest.json"]
    last = disk.events.index("name out/manifest.json")
    assert "sync out/" in disk.events[disk.events.index("name out/_info.json") : last]
    assert "sync out/" in disk.events[last:]
    # the old manifest is gone before anything of what it names is
    assert "sync out/" in disk.events[: disk.events.index(shards[0])] or not again


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("end", ["done", "stopped"])
def test_a_run_that_reports_how_it_ended_is_on_disk(root, disk, tmp_path, end):
    shard = write_ours(tmp_path / "a.tar", 12)
    options = [*TINY, "--images", "24", "--log.every", "16"]
    if end == "stopped":
        options += ["--stop.after_minutes", "1e-9"]
    code = train.main([*options, "--run_dir", str(root / "run"), "--data.shards", str(shard)])
    assert code == (0 if end == "done" else 75)
    assert disk.torn == []
    # the lock has no content; nothing depends on the log
    assert disk.at_risk() - {"."} == {"run/.owner.lock", "run/log.txt"}


# ---- that it would be seen


def unsynced(root):
    (root / ".tmp").write_bytes(b"data")
    rename(root / ".tmp", root / "file")


def written_afterwards(root):
    with (root / ".tmp").open("wb", 0) as file:
        file.write(b"data")
        os.fsync(file.fileno())
        file.write(b"more")
    rename(root / ".tmp", root / "file")


def without_its_folder(root):
    with (root / ".tmp").open("wb", 0) as file:
        file.write(b"data")
        os.fsync(file.fileno())
    (root / ".tmp").replace(root / "file")


def folder_first(root):
    sync_folder(root)
    without_its_folder(root)


def half_a_folder(root):
    (root / ".tmp").mkdir()
    write_atomically(root / ".tmp" / "one", b"data")
    (root / ".tmp" / "two").write_bytes(b"data")
    rename(root / ".tmp", root / "file")


@pytest.mark.parametrize(
    ("write", "torn"),
    [
        (unsynced, ["file"]),
        (written_afterwards, ["file"]),
        (half_a_folder, ["file"]),
        (without_its_folder, []),
        (folder_first, []),
    ],
)
def test_a_wrong_order_is_seen(root, disk, write, torn):
    write(root)
    assert disk.torn == torn
    assert disk.at_risk() - {"."}
