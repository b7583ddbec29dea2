"""The node's cache of complete shards: one download, bounded, nothing left by killed processes."""

import bz2
import gzip
import lzma
import multiprocessing
import os
import random
import signal
import threading
import tracemalloc
import zlib
from types import SimpleNamespace

import pytest
import zstandard
from support.counting import CountedCache
from support.disk import no_file_larger_than
from support.http_server import HttpServer, cut, silent, status
from support.waiting import LIMIT

from dcgan_dist.data.remote.cache import ANY, EntryRequest, ShardCache, default_limit, entry_name
from dcgan_dist.data.remote.client import Remote, RemoteStat
from dcgan_dist.data.remote.source import contents, wanted_of
from dcgan_dist.errors import UserError

ENTRY = f"{0:032x}-entry.tar"
REMOTE = Remote(timeout=LIMIT, retries=2, pause=0.001)
DATA = {f"{number}.tar": random.Random(number).randbytes(1000) for number in range(8)}


@pytest.fixture
def server():
    with HttpServer(DATA) as served:
        yield served


def stats(server, names=tuple(DATA)):
    return [REMOTE.stat(server.url(name)) for name in names]


def content(shard):
    with shard:
        return os.pread(shard.fileno(), 10**7, 0)


def obtain(cache, source, request=ANY):
    shard = cache.acquire(source, request)
    assert shard is not None
    return shard


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir() if not path.name.startswith("."))


def left_over(folder):
    """What is neither an entry nor the folder's own lock."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock"]


def test_a_shard_is_downloaded_once_and_then_served(server, tmp_path):
    cache = CountedCache(tmp_path, 10_000, REMOTE)
    (source, *_) = stats(server)
    before = server.requests()["0.tar"]
    assert [content(obtain(cache, source)) for _ in range(3)] == [DATA["0.tar"]] * 3
    assert server.requests()["0.tar"] == before + 2, "the bytes, and the version afterwards"
    assert (cache.hits, cache.misses, cache.made) == (2, 1, 1000)
    assert left_over(tmp_path) == []
    assert entry_name(source).endswith("-0.tar")


def read_all(folder, sources, start, answers):
    cache = ShardCache(folder, 10_000, REMOTE)
    start.wait()
    answers.put([content(obtain(cache, source)) for source in sources])


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.dist
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_eight_processes_make_one_download(server, tmp_path, method):
    sources = stats(server, ["0.tar", "1.tar"])
    context = multiprocessing.get_context(method)
    start, answers = context.Barrier(8), context.Queue()
    before = server.requests()
    ranks = [context.Process(target=read_all, args=(tmp_path, sources, start, answers)) for _ in range(8)]
    for rank in ranks:
        rank.start()
    got = [answers.get(timeout=LIMIT) for _ in ranks]
    for rank in ranks:
        rank.join()
    assert got == [[DATA["0.tar"], DATA["1.tar"]]] * 8
    made = server.requests() - before
    assert made == {"0.tar": 2, "1.tar": 2}, "for each: the bytes, and the version afterwards"
    assert left_over(tmp_path) == []


def hang(folder, source):
    ShardCache(folder, 10_000, REMOTE).acquire(source)


@pytest.mark.dist
def test_what_a_killed_downloader_leaves_goes_and_the_next_succeeds(server, tmp_path):
    (source, *_) = stats(server)
    asked = threading.Event()

    def and_tell(handler, name):
        asked.set()
        silent(handler, name)

    server.fail("0.tar", and_tell)
    rank = multiprocessing.get_context("spawn").Process(target=hang, args=(tmp_path, source))
    rank.start()
    assert asked.wait(LIMIT)
    rank.kill()
    rank.join()
    assert left_over(tmp_path) == [f".{entry_name(source)}.tmp"]
    cache = ShardCache(tmp_path, 10_000, REMOTE)
    other = REMOTE.stat(server.url("1.tar"))
    assert content(obtain(cache, other)) == DATA["1.tar"]
    assert left_over(tmp_path) == [], "a process that reserves bytes removes it"
    assert content(obtain(cache, source)) == DATA["0.tar"]


@pytest.mark.parametrize("limit", [999, 10_000])
def test_what_a_killed_downloader_left_is_removed_also_without_space(server, tmp_path, limit):
    (source, *_) = stats(server)
    (tmp_path / f".{entry_name(source)}.tmp").write_bytes(b"1000")
    ShardCache(tmp_path, limit, REMOTE).acquire(source)
    assert left_over(tmp_path) == []


def test_a_failed_download_leaves_nothing(server, tmp_path):
    cache = ShardCache(tmp_path, 10_000, REMOTE)
    (source, *_) = stats(server)
    server.fail("0.tar", status(403))
    with pytest.raises(UserError, match="access denied"):
        cache.acquire(source)
    assert left_over(tmp_path) == []
    server.fail("0.tar", cut(10), status(503))
    assert content(obtain(cache, source)) == DATA["0.tar"]


def test_the_bound_holds_and_pinned_shards_stay(server, tmp_path):
    cache = ShardCache(tmp_path, 3500, REMOTE)
    sources = stats(server)
    held = [obtain(cache, source) for source in sources[:3]]
    assert cache.acquire(sources[3]) is None, "all are being read"
    held[1].close()
    assert content(cache.acquire(sources[3])) == DATA["3.tar"]
    assert [cache.get(source) is not None for source in sources[:4]] == [True, False, True, True]
    assert size_of(tmp_path) == 3000
    for shard in held:
        shard.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_pin_holds_against_other_processes_and_ends_with_them(server, tmp_path):
    sources = stats(server)
    cache = ShardCache(tmp_path, 1500, REMOTE)
    shard = obtain(cache, sources[0])
    child = os.fork()
    if child == 0:  # a process of its own, that asks for space in vain
        os._exit(0 if ShardCache(tmp_path, 1500, REMOTE).acquire(sources[1]) is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    shard.close()
    child = os.fork()
    if child == 0:  # dies with its pin
        ShardCache(tmp_path, 1500, REMOTE).acquire(sources[0])
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert content(obtain(cache, sources[1])) == DATA["1.tar"]


def test_what_is_no_entry_is_left_alone(server, tmp_path):
    """The folder may hold other files."""
    names = ["thesis.tar", ".thesis.lock", ".thesis.tmp", "0-0.tar", f"{ENTRY}~", f"x{ENTRY}"]
    for name in names:
        (tmp_path / name).write_bytes(bytes(900))
    (tmp_path / "folder").mkdir()
    cache = ShardCache(tmp_path, 1500, REMOTE)
    for source in stats(server)[:3]:
        obtain(cache, source).close()
        assert size_of_entries(tmp_path) == 1000
        assert len(cache.names()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {*names, "folder", ".lock", *cache.names()}


def size_of_entries(folder):
    return sum(path.stat().st_size for path in folder.glob("*-?.tar") if path.name != "0-0.tar")


def test_what_is_being_made_counts(server, tmp_path):
    cache = ShardCache(tmp_path, 1500, REMOTE)
    sources = stats(server)
    asked, go_on = threading.Event(), threading.Event()

    def late(handler, name):
        asked.set()
        return go_on.wait(LIMIT)

    server.fail("0.tar", late)
    with_result = []
    thread = threading.Thread(target=lambda: with_result.append(cache.acquire(sources[0])))
    thread.start()
    assert asked.wait(LIMIT)
    assert cache.acquire(sources[1]) is None
    go_on.set()
    thread.join()
    assert content(with_result[0]) == DATA["0.tar"]
    assert content(obtain(cache, sources[1])) == DATA["1.tar"]


def test_a_shard_larger_than_the_bound_is_refused_without_a_download(server, tmp_path):
    cache = ShardCache(tmp_path, 999, REMOTE)
    (source, *_) = stats(server)
    before = server.requests()
    assert cache.acquire(source) is None
    assert server.requests() == before


def fewest_misses(order, capacity):
    """Of all caches that may also leave a shard out, by trying everything."""
    costs = {frozenset(): 0}
    for number in order:
        following: dict[frozenset, int] = {}
        for kept, cost in costs.items():
            cost += number not in kept
            choices = [kept] if number in kept or len(kept) == capacity else [kept, kept | {number}]
            if number not in kept and len(kept) == capacity:
                choices += [kept - {other} | {number} for other in kept]
            for choice in choices:
                following[choice] = min(cost, following.get(choice, cost))
        costs = following
    return min(costs.values())


@pytest.mark.parametrize("capacity", [1, 2, 3, 5])
def test_eviction_by_next_use_is_the_best_there_is(server, tmp_path, capacity):
    order = random.Random(capacity).choices(range(8), k=60)
    sources = stats(server)
    numbers = {entry_name(source): number for number, source in enumerate(sources)}
    cache = CountedCache(tmp_path, capacity * 1000, REMOTE)
    for at, number in enumerate(order):

        def next_use(name, after=at + 1):
            return next((at for at in range(after, len(order)) if order[at] == numbers[name]), len(order))

        shard = cache.acquire(sources[number], EntryRequest(next_use=next_use))
        assert shard is None or content(shard) == DATA[f"{number}.tar"]
        assert size_of(tmp_path) <= capacity * 1000
    assert cache.misses == fewest_misses(order, capacity)


def test_of_unknown_use_the_oldest_goes_first(server, tmp_path):
    cache = ShardCache(tmp_path, 3000, REMOTE)
    sources = stats(server)
    for age, source in enumerate(sources[:3]):
        obtain(cache, source).close()
        os.utime(tmp_path / entry_name(source), (1000 + age, 1000 + age))
    obtain(cache, sources[0]).close()  # now the youngest
    obtain(cache, sources[3]).close()
    obtain(cache, sources[4], EntryRequest(next_use=lambda name: 5 if name == entry_name(sources[2]) else None)).close()
    assert cache.names() == {entry_name(source) for source in sources[2:5]}


def test_a_changed_file_is_another_entry(server, tmp_path):
    cache = ShardCache(tmp_path, 10_000, REMOTE)
    old = REMOTE.stat(server.url("0.tar"))
    obtain(cache, old).close()
    server.files["0.tar"] = bytes(500)
    new = REMOTE.stat(server.url("0.tar"))
    assert content(obtain(cache, new)) == bytes(500)
    assert content(obtain(cache, old)) == DATA["0.tar"]


@pytest.mark.parametrize(
    ("version", "same"),
    [
        ('"5d41402abc4b2a76b9719d911017c592-3"', True),
        ("1700000000000000", True),
        ('W/"5d41"', False),
        ("Wed, 21 Oct 2015 07:28:00 GMT", False),
        ("2024-01-01 00:00:00+00:00", False),
        ("2024-01-01T00:00:00.000Z", False),
        ("1000 bytes", False),
    ],
)
def test_a_url_with_a_new_signature_is_the_same_entry_if_its_version_is_reliable(version, same):
    def entry(query, version=version, size=1000):
        return entry_name(RemoteStat(url=f"https://host/folder/a.tar{query}", size=size, version=version))

    assert (entry("?Expires=1&Signature=x") == entry("?Expires=2&Signature=y")) is same
    assert entry("?a=1") == entry("?a=1")
    assert len({entry("?a=1"), entry("?a=1", size=999), entry("?a=1", version='"other"')}) == 3


def test_a_url_with_a_new_signature_downloads_nothing(server, tmp_path):
    cache = CountedCache(tmp_path, 10_000, REMOTE)
    first, second = (REMOTE.stat(server.url(f"0.tar?Signature={name}")) for name in "xy")
    obtain(cache, first).close()
    assert content(obtain(cache, second)) == DATA["0.tar"]
    assert (cache.hits, cache.made) == (1, 1000)


def test_a_shard_that_changes_during_the_run_is_an_error(server, tmp_path):
    cache = ShardCache(tmp_path, 10_000, REMOTE)
    old = REMOTE.stat(server.url("0.tar"))
    server.files["0.tar"] = bytes(1000)
    with pytest.raises(UserError, match="another version"):
        cache.acquire(old)
    assert size_of(tmp_path) == 0


def test_what_the_check_refuses_is_not_kept(server, tmp_path):
    cache = ShardCache(tmp_path, 10_000, REMOTE)
    (source, *_) = stats(server)

    def refuse(path):
        raise UserError(f"{path}: {len(path.read_bytes())} bytes, but no tar")

    with pytest.raises(UserError, match=r"^http://127.0.0.1:\d+/0.tar: 1000 bytes, but no tar$"):
        cache.acquire(source, EntryRequest(check=refuse))
    assert (size_of(tmp_path), left_over(tmp_path)) == (0, [])


def test_a_damaged_entry_is_downloaded_again(server, tmp_path):
    cache = ShardCache(tmp_path, 10_000, REMOTE)
    (source, *_) = stats(server)
    with obtain(cache, source) as damaged:
        assert cache.discard(source, os.fstat(damaged.fileno()))
    assert entry_name(source) not in cache.names()
    assert content(obtain(cache, source)) == DATA["0.tar"]


def test_what_has_replaced_a_damaged_entry_stays(server, tmp_path):
    cache = CountedCache(tmp_path, 10_000, REMOTE)
    (source, *_) = stats(server)
    with obtain(cache, source) as found:
        damaged = os.fstat(found.fileno())
        assert cache.discard(source, damaged)
        assert not cache.discard(source, damaged), "it is gone already"
        with obtain(cache, source) as new:
            good = os.fstat(new.fileno())
        downloaded = cache.made
        assert not cache.discard(source, damaged), "not the file that was damaged"
        with obtain(cache, source) as kept:
            assert os.path.samestat(os.fstat(kept.fileno()), good)
            assert cache.made == downloaded
    assert cache.discard(source, good)
    assert entry_name(source) not in cache.names()


def test_a_full_disk_is_a_used_up_quota_and_leaves_nothing(server, tmp_path):
    cache = ShardCache(tmp_path, 10**9, REMOTE)
    sources = stats(server)
    obtain(cache, sources[0]).close()
    server.files["big.tar"] = bytes(5000)
    with no_file_larger_than(3000):
        assert cache.acquire(REMOTE.stat(server.url("big.tar"))) is None
    assert (size_of(tmp_path), left_over(tmp_path)) == (1000, [])
    assert content(obtain(cache, sources[1])) == DATA["1.tar"], "and it goes on with what fits"
    assert size_of(tmp_path) == 1000


def test_a_disk_with_less_space_than_the_limit(server, tmp_path):
    cache = ShardCache(tmp_path, 10**15, REMOTE)
    huge = RemoteStat(url=server.url("0.tar"), size=10**14, version="1")
    assert cache.acquire(huge) is None


def test_a_folder_that_cannot_be_used_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="the cache cannot be used"):
        ShardCache(tmp_path / "file" / "folder", 1000, REMOTE)


PACKED = {
    "a.tar.gz": lambda data: gzip.compress(data),
    "b.tgz": lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:]) + bytes(700),
    "c.tar.zst": lambda data: zstandard.compress(data),
    "e.tar.bz2": lambda data: bz2.compress(data),
    "f.tbz2": lambda data: bz2.compress(data[:5]) + bz2.compress(data[5:]),
    "g.tar.xz": lambda data: lzma.compress(data, preset=0),
    "h.txz": lambda data: lzma.compress(data[:5], preset=0) + lzma.compress(data[5:], preset=0),
    "d.TAR.ZST": lambda data: zstandard.compress(data[:5]) + zstandard.compress(data[5:]),
}


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("name", PACKED)
def test_packed_tars_are_unpacked_once(server, tmp_path, name, remote):
    data = random.Random(1).randbytes(300_000) + bytes(5_000_000)
    server.files[name] = PACKED[name](data)
    (tmp_path / name).write_bytes(server.files[name])
    source = REMOTE.stat(server.url(name)) if remote else tmp_path / name
    cache = CountedCache(tmp_path / "cache", 6_000_000, REMOTE)
    before = server.requests()
    with obtain(cache, source) as shard:
        assert content(shard) == data
        assert shard.path.suffix == ".tar"
    obtain(cache, source).close()
    assert server.requests()[name] - before[name] == 2 * remote
    assert (cache.hits, cache.misses, cache.made) == (1, 1, len(data))


def test_a_packed_file_that_changed_is_unpacked_again(tmp_path):
    path = tmp_path / "a.tar.gz"
    cache = ShardCache(tmp_path / "cache", 10_000, REMOTE)
    for number in range(2):
        path.write_bytes(gzip.compress(bytes([number]) * 1000))
        os.utime(path, (number, number))
        assert content(obtain(cache, path)) == bytes([number]) * 1000


def damaged(data):
    return data[:200] + bytes([data[200] ^ 255]) + data[201:]


@pytest.mark.parametrize("kind", ["gz", "zst"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "cut or empty"),
        (lambda data: data[:100], "cut or empty"),
        (lambda data: b"", "cut or empty"),
        (damaged, "is damaged|cut or empty"),
        (lambda data: data + b"more", "is damaged"),
        (lambda data: b"<html>" + data, "has the wrong ending"),
    ],
)
def test_a_damaged_packed_file_is_an_error(tmp_path, kind, damage, message):
    pack = gzip.compress if kind == "gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    path = tmp_path / f"a.tar.{kind}"
    path.write_bytes(damage(pack(random.Random(1).randbytes(1000))))
    cache = ShardCache(tmp_path / "cache", 10_000, REMOTE)
    with pytest.raises(UserError, match=rf"a.tar.{kind}: .*({message})"):
        cache.acquire(path)
    assert (size_of(tmp_path / "cache"), left_over(tmp_path / "cache")) == (0, [])


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_bomb_is_refused(tmp_path, kind):
    pack = gzip.compress if kind == "gz" else zstandard.compress
    path = tmp_path / f"a.tar.{kind}"
    path.write_bytes(pack(bytes(40 * 2**20)))
    cache = ShardCache(tmp_path / "cache", 2**20, REMOTE)
    with pytest.raises(UserError, match="unpacks to more than the 1048576 bytes"):
        cache.acquire(path)
    assert (size_of(tmp_path / "cache"), left_over(tmp_path / "cache")) == (0, [])


COMPRESSORS = {
    "gz": lambda: zlib.compressobj(wbits=31),
    "bz2": bz2.BZ2Compressor,
    "xz": lambda: lzma.LZMACompressor(preset=0),
    "zst": lambda: zstandard.ZstdCompressor().compressobj(),
}


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_unpacking_takes_little_memory(tmp_path, kind):
    size = 256 * 2**20
    pack = COMPRESSORS[kind]()
    path = tmp_path / f"a.tar.{kind}"
    path.write_bytes(b"".join([pack.compress(bytes(2**20)) for _ in range(size >> 20)]) + pack.flush())
    tracemalloc.start()
    try:
        unpacked = sum(map(len, contents(path, wanted_of(path), REMOTE)))
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
    assert unpacked == size


def test_the_usual_bound_is_most_of_the_disk_and_does_not_shrink_by_what_is_cached(tmp_path, monkeypatch):
    free = 1_000_000
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    assert default_limit(tmp_path / "not" / "there") == 800_000
    (tmp_path / ENTRY).write_bytes(bytes(400_000))
    free -= 400_000
    (tmp_path / "another's").write_bytes(bytes(9))
    (tmp_path / f"{1:032x}-gone.tar").symlink_to("nowhere")  # as if it was removed after it was listed
    assert default_limit(tmp_path) == 800_000


def test_unpacking_removes_nothing_that_is_pinned(server, tmp_path):
    cache = ShardCache(tmp_path / "cache", 2500, REMOTE)
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(bytes(2000)))
    with obtain(cache, stats(server)[0]):
        assert cache.acquire(path) is None
        assert left_over(cache.folder) == []
    assert content(obtain(cache, path)) == bytes(2000)


def test_a_stopped_download_is_given_up(server, tmp_path):
    stop = threading.Event()
    stop.set()
    cache = ShardCache(tmp_path, 10_000, REMOTE)
    assert cache.acquire(stats(server)[0], EntryRequest(stop=stop)) is None
    assert (size_of(tmp_path), left_over(tmp_path)) == (0, [])
