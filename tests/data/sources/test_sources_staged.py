"""Copies of sources that cannot be read at random: made once, by whoever comes first, whole or not at all."""

import fcntl
import gzip
import multiprocessing
import os
import signal
import threading
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.disk import no_file_larger_than
from support.http_server import HttpServer
from support.sources import given, tar_bytes
from support.waiting import LIMIT

from dcgan_dist.data.sources import find_source, tars
from dcgan_dist.errors import UserError

COUNT = 8
PART = 2**17  # bytes, more than a file buffers
WANTED = [(b"%d" % number, None) for number in range(COUNT)]


@pytest.fixture
def source(tmp_path):
    """Eight compressed tars with a picture each."""
    for number in range(COUNT):
        (tmp_path / f"{number}.tgz").write_bytes(gzip.compress(tar_bytes([(f"{number}.png", b"%d" % number)])))
    return find_source(f"{tmp_path}/*.tgz")


def contents(folder):
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.glob("*.tar")}


def killed_at_the_third(source, folder):
    """Ends in the middle of a copy, as by the machine."""
    contents, count = tars.contents, 0

    def two(source, wanted, remote):
        nonlocal count
        count += 1
        if count == 3:
            yield bytes(PART)
            os.kill(os.getpid(), signal.SIGKILL)
        yield from contents(source, wanted, remote)

    tars.contents, tars.THREADS = two, 1
    source.prepared(folder, print)


def killed_in_a_download(source, folder):
    """Ends before all bytes are there."""

    class Cut(tars.Remote):
        def download(self, stat):
            yield bytes(PART)
            os.kill(os.getpid(), signal.SIGKILL)

    tars.Remote = Cut
    source.prepared(folder, print)


def start(*jobs):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=act, args=arguments) for act, *arguments in jobs]
    for process in processes:
        process.start()
    return processes


@pytest.mark.dist
def test_what_a_killed_process_has_copied_is_kept(tmp_path, source):
    (process,) = start((killed_at_the_third, source, tmp_path / "copies"))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    kept = contents(tmp_path / "copies")
    assert len(kept) == 2
    assert len(list((tmp_path / "copies").glob(".*.tmp"))) == 1
    lines = []
    assert given(source.prepared(tmp_path / "copies", lines.append), tmp_path) == WANTED
    assert len(lines) == COUNT - 2
    assert contents(tmp_path / "copies").items() >= kept.items()
    assert list((tmp_path / "copies").glob(".*")) == []


@pytest.mark.dist
def test_what_a_killed_process_has_downloaded_is_removed(tmp_path):
    with HttpServer({"a.tar": tar_bytes([("a.png", b"1")])}) as server:
        source = find_source(server.url("a.tar"))
        (process,) = start((killed_in_a_download, source, tmp_path / "copies"))
        process.join()
        assert process.exitcode == -signal.SIGKILL
        (part,) = (tmp_path / "copies").glob(".*")
        assert part.read_bytes() == bytes(PART)
        assert given(source, tmp_path / "copies") == [(b"1", None)]
    assert not part.exists()


def copy_together(source, folder, begin, queue):
    begin.wait()
    source.prepared(folder, queue.put)
    queue.put(None)


@pytest.mark.dist
def test_processes_share_the_work(tmp_path, source):
    context = multiprocessing.get_context("spawn")
    begin, queue = context.Barrier(2), context.Queue()
    processes = start(*[(copy_together, source, tmp_path / "copies", begin, queue)] * 2)
    lines = list(iter(queue.get, None)) + list(iter(queue.get, None))
    for process in processes:
        process.join()
    queue.close()
    queue.join_thread()
    assert [process.exitcode for process in processes] == [0, 0]
    copied = Counter(line.split()[1] for line in lines if line.startswith("copied"))
    assert copied == Counter(f"{tmp_path}/{number}.tgz" for number in range(COUNT))
    assert given(source, tmp_path / "copies") == WANTED


def test_the_copy_of_a_process_that_dies_while_others_wait(tmp_path, source):
    source.prepared(tmp_path / "copies", print)
    copies = sorted((tmp_path / "copies").glob("*.tar"))
    copies[3].unlink()
    lines = []
    waits = threading.Event()

    def report(line):
        lines.append(line.split()[0])
        waits.set()

    with copies[3].with_suffix(".lock").open("ab") as lock:  # as if another process were at it
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=source.prepared, args=(tmp_path / "copies", report))
        thread.start()
        assert waits.wait(LIMIT)
        assert not copies[3].exists()
    thread.join()
    assert copies[3].exists()
    assert lines == ["waiting"]
    assert given(source, tmp_path / "copies") == WANTED


def test_one_file_under_two_names_is_copied_once(tmp_path, source):
    (tmp_path / "more").mkdir()
    for number in range(COUNT):
        (tmp_path / "more" / f"{number}.tgz").symlink_to(tmp_path / "0.tgz")
    assert given(find_source(f"{tmp_path}/more/*.tgz"), tmp_path / "copies") == [(b"0", None)] * COUNT
    assert len(contents(tmp_path / "copies")) == 1


def test_a_changed_file_is_copied_again(tmp_path, source):
    assert given(source, tmp_path / "copies") == WANTED
    (tmp_path / "0.tgz").write_bytes(gzip.compress(tar_bytes([("0.png", b"changed")])))
    lines = []
    assert given(source.prepared(tmp_path / "copies", lines.append), tmp_path)[0] == (b"changed", None)
    assert lines == [f"copied {tmp_path}/0.tgz (1 of 8)"]
    with HttpServer({"a.tar": tar_bytes([("a.png", b"1")])}) as server:
        remote = find_source(server.url("a.tar"))
        assert given(remote, tmp_path / "copies") == [(b"1", None)]
        server.files["a.tar"] = tar_bytes([("a.png", b"2")])
        assert given(remote, tmp_path / "copies") == [(b"2", None)]


def test_a_file_that_is_gone(tmp_path, source):
    (tmp_path / "5.tgz").unlink()
    with pytest.raises(UserError, match=rf"^{tmp_path}/5\.tgz: cannot be read \(No such file or directory\)$"):
        source.prepared(tmp_path / "copies", print)


def test_a_place_that_cannot_be_written(tmp_path, source):
    with pytest.raises(UserError, match=r"0\.tgz: cannot be written \((Not a directory|File exists)\)$"):
        source.prepared(tmp_path / "0.tgz", print)


def test_a_full_disk(tmp_path, source):
    pq.write_table(pa.table({"image": [bytes(2_000)] * 9}), tmp_path / "a.parquet")
    for full in source, find_source(f"{tmp_path}/a.parquet"):
        with (
            no_file_larger_than(4_000),
            pytest.raises(UserError, match=r"copies: cannot be written \(File too large"),
        ):
            full.prepared(tmp_path / "copies", print)
    assert {path.suffix for path in (tmp_path / "copies").iterdir()} == {".lock"}
    assert given(source, tmp_path / "copies") == WANTED
