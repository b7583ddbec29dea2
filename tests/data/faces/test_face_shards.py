import hashlib
import io
import multiprocessing
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from support.waiting import until
from webdataset.compat import WebDataset

from dcgan_dist.data.faces import dataset as faces
from dcgan_dist.data.shards.index import read_index
from dcgan_dist.errors import UserError


def pixels(image):
    return np.asarray(image).astype(int)


def digests(paths):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture
def small_shards(monkeypatch):
    """Five shards of 40 faces, each of 8 tasks."""
    monkeypatch.setattr(faces, "SHARD_SIZE", 40)
    monkeypatch.setattr(faces, "TASK_SIZE", 5)
    monkeypatch.setattr(faces, "available_cores", lambda: 1)


def ensure(folder, count=200, size=32, channels=3, seed=0, **more):
    return faces.ensure(folder, size=size, channels=channels, count=count, seed=seed, **more)


def read_back(shard):
    with warnings.catch_warnings():
        # webdataset never closes the file that it reads
        warnings.simplefilter("ignore", ResourceWarning)
        return list(WebDataset(str(shard), shardshuffle=False))


@pytest.mark.parametrize(
    ("channels", "size", "suffix"), [(3, 32, "ppm"), (1, 32, "pgm"), (3, 64, "ppm"), (1, 48, "pgm")]
)
def test_webdataset_reads_the_pixels_back(tmp_path, channels, size, suffix):
    (shard,) = ensure(tmp_path, count=12, size=size, channels=channels, seed=2)
    samples = read_back(shard)
    assert [sample["__key__"] for sample in samples] == [f"{index:08d}" for index in range(12)]
    for index, sample in enumerate(samples):
        image = Image.open(io.BytesIO(sample[suffix]))
        expected = faces.draw_face(2, index, size)
        assert np.array_equal(pixels(image), pixels(expected if channels == 3 else expected.convert("L")))
        assert {key for key in sample if not key.startswith("__")} == {suffix}


@pytest.mark.parametrize("channels", [1, 3])
def test_large_faces_are_stored_as_jpeg(tmp_path, channels):
    (shard,) = ensure(tmp_path, count=3, size=96, channels=channels)
    for index, sample in enumerate(read_back(shard)):
        image = Image.open(io.BytesIO(sample["jpg"]))
        expected = faces.draw_face(0, index, 96).convert("RGB" if channels == 3 else "L")
        assert (image.mode, image.size) == (expected.mode, expected.size)
        assert np.abs(pixels(image) - pixels(expected)).mean() < 2


def test_the_faces_are_spread_over_shards_in_order(tmp_path, small_shards):
    paths = ensure(tmp_path, count=90)
    assert [path.name for path in paths] == [f"faces-v1-32px-3c-s0-n90-0000{number}.tar" for number in range(3)]
    assert sorted(tmp_path.iterdir()) == paths
    keys = [key for path in paths for key in (read_index(path) or pytest.fail("no index")).keys]
    assert keys == [f"{index:08d}" for index in range(90)]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 0, 10**6))
    with pytest.raises(UserError) as error:
        ensure(tmp_path, count=1_000)
    said = "1,000 embedded faces take at least 0.0 GB, and 0.0 GB are free"
    assert str(error.value) == f"{tmp_path}: {said}; lower --data.faces, or set XDG_CACHE_HOME to a larger disk"
    assert ensure(tmp_path, count=12)


@pytest.mark.parametrize("cores", [1, 2])
def test_drawing_that_is_interrupted_ends_at_once_and_is_finished_by_the_next_call(
    tmp_path, small_shards, monkeypatch, cores
):
    monkeypatch.setattr(faces, "available_cores", lambda: cores)

    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert total == 200_000
        if done >= 50:
            raise StopError

    with pytest.raises(StopError):
        ensure(tmp_path, count=200_000, progress=stop)
    assert len(list(tmp_path.iterdir())) == 1  # the shard that is complete, and no half of the second
    assert multiprocessing.active_children() == []


def test_a_second_call_makes_nothing(tmp_path, small_shards):
    calls = []
    first = ensure(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 200) for done in range(5, 201, 5)]
    states = [path.stat() for path in first]
    assert ensure(tmp_path, progress=lambda done, total: pytest.fail("painted again")) == first
    assert [path.stat().st_mtime_ns for path in first] == [state.st_mtime_ns for state in states]


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign", "empty", "flipped index"])
def test_only_damaged_shards_are_made_again(tmp_path, small_shards, damage):
    paths = ensure(tmp_path)
    before, content = digests(paths), paths[3].read_bytes()
    kept = [path.stat().st_mtime_ns for path in paths if path != paths[3]]
    if damage == "missing":
        paths[3].unlink()
    else:
        flipped = bytearray(content)
        flipped[content.rindex(b"checksum")] ^= 1  # in the names of the index's arrays
        wrong = {"cut": content[:-700], "foreign": b"<html>" * 500, "empty": b"", "flipped index": bytes(flipped)}
        paths[3].write_bytes(wrong[damage])
    calls = []
    assert ensure(tmp_path, progress=lambda done, total: calls.append((done, total))) == paths
    assert calls[-1] == (40, 40)
    assert digests(paths) == before
    assert [path.stat().st_mtime_ns for path in paths if path != paths[3]] == kept


def test_sets_that_differ_in_anything_live_side_by_side(tmp_path, small_shards):
    sets = [
        ensure(tmp_path, count=10),
        ensure(tmp_path, count=11),
        ensure(tmp_path, count=10, seed=1),
        ensure(tmp_path, count=10, channels=1),
        ensure(tmp_path, count=10, size=48),
    ]
    assert len(set(digests([path for paths in sets for path in paths]).values())) == 5


def test_several_processes_make_the_same_bytes(tmp_path, small_shards, monkeypatch):
    alone = ensure(tmp_path / "alone", count=60)
    monkeypatch.setattr(faces, "available_cores", lambda: 2)
    calls = []
    together = ensure(tmp_path / "together", count=60, progress=lambda done, total: calls.append(done))
    assert digests(alone) == digests(together)
    assert calls == list(range(5, 61, 5))


GREEDY = """
import sys
from pathlib import Path
from dcgan_dist.data.faces import dataset as faces
faces.SHARD_SIZE, faces.TASK_SIZE, faces.available_cores = 200, 20, lambda: 2
faces.ensure(Path(sys.argv[1]), size=32, channels=3, count=100_000, seed=0)
"""


def test_a_killed_call_leaves_complete_shards_and_no_processes(tmp_path):
    folder = tmp_path / "cache"
    with subprocess.Popen([sys.executable, "-c", GREEDY, folder]) as process:
        try:
            until(lambda: process.poll() is not None or len(list(folder.glob("*.tar"))) >= 2)
            children = psutil.Process(process.pid).children(recursive=True)
            assert len(children) >= 2
        finally:
            process.kill()
    until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))
    for path in folder.glob("*.tar"):
        index = read_index(path)
        assert index is not None
        assert len(index) == 200


def test_a_killed_worker_is_one_clear_line(tmp_path, small_shards, monkeypatch):
    monkeypatch.setattr(faces, "available_cores", lambda: 2)

    def kill(done, total):
        for worker in multiprocessing.active_children():
            worker.kill()

    with pytest.raises(UserError, match="a process that draws the embedded faces was killed"):
        ensure(tmp_path, count=2_000, progress=kill)
    assert not list(tmp_path.glob(".*"))


def test_two_callers_at_once_agree(tmp_path):
    code = (
        "import sys; from pathlib import Path; from dcgan_dist.data.faces import dataset as faces\n"
        "faces.SHARD_SIZE = 20\n"
        "faces.ensure(Path(sys.argv[1]), size=32, channels=3, count=100, seed=0)"
    )
    callers = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "both"]) for _ in range(2)]
    assert [caller.wait() for caller in callers] == [0, 0]
    subprocess.run([sys.executable, "-c", code, tmp_path / "one"], check=True)
    assert digests((tmp_path / "both").iterdir()) == digests((tmp_path / "one").iterdir())


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/cache: the embedded faces cannot be written here \(Not a directory\)"):
        ensure(Path(tmp_path / "file" / "cache"), count=1)


def test_an_interrupted_call_leaves_no_temporary_file(tmp_path, small_shards):
    def stop(done, total):
        if done == 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(tmp_path, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["faces-v1-32px-3c-s0-n200-00000.tar"]
