"""Remote files against a real web server with every fault that one has."""

import base64
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import fsspec.config
import pytest
from support.http_server import (
    HttpServer,
    becomes,
    cut,
    reset,
    silent,
    status,
    stops,
    without_range,
    wrong_length,
)
from support.waiting import LIMIT, until

from dcgan_dist.data.remote import client as module
from dcgan_dist.data.remote.client import Remote, RemoteStat, is_remote
from dcgan_dist.data.remote.stores import Span
from dcgan_dist.errors import UsageError, UserError

DATA = random.Random(0).randbytes(300_000)
NAME = "folder/a.tar"
REMOTE = Remote(timeout=LIMIT, retries=3, pause=0.001)
SHORT = 3.0  # seconds; for a server that stops answering, and long enough for what it does answer


@pytest.fixture
def server():
    with HttpServer({NAME: DATA, "empty.tar": b""}) as served:
        yield served


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART", 40_000)


def downloaded(stat, remote=REMOTE):
    return b"".join(remote.download(stat))


@pytest.mark.parametrize(
    ("name", "remote"),
    [
        ("s3://bucket/key.tar", True),
        ("http://host/a.tar", True),
        ("HTTPS://host/a.tar", True),
        ("pipe:curl http://host/a.tar", False),
        ("/data/a.tar", False),
        ("folder/a.tar", False),
    ],
)
def test_what_is_remote(name, remote):
    assert is_remote(name) == remote


def test_size_and_version_change_with_the_file(server):
    url = server.url(NAME)
    old = REMOTE.stat(url)
    assert (old.url, old.size, old.ranges) == (url, len(DATA), True)
    server.files[NAME] = DATA[::-1]
    assert REMOTE.stat(url).size == old.size
    assert REMOTE.stat(url).version != old.version
    assert (REMOTE.stat(server.url("empty.tar")).size, downloaded(REMOTE.stat(server.url("empty.tar")))) == (0, b"")


def test_a_version_is_never_empty(server):
    server.etags = False
    assert REMOTE.stat(server.url(NAME)).version == "300000 bytes"


def test_ranges_are_the_files_own_bytes(server):
    draw = random.Random(1)
    spans = [(draw.randrange(299_000), draw.randrange(1000)) for _ in range(100)] + [(0, len(DATA)), (299_999, 1)]
    got = REMOTE.read_spans([Span(server.url(NAME), start, length) for start, length in spans])
    assert got == [DATA[start : start + length] for start, length in spans]
    assert REMOTE.read_spans([]) == []


FAULTS = {
    "503": status(503),
    "500": status(500),
    "429": status(429),
    "408": status(408),
    "reset": reset,
    "cut": cut(10),
    "cut at once": cut(0),
    "silent": silent,
    "stopped": stops(10),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_pass_are_survived(server, fault):
    remote = Remote(timeout=SHORT if fault in ("silent", "stopped") else LIMIT, retries=2, pause=0.001)
    server.fail(NAME, *[FAULTS[fault]] * 2)
    assert remote.read(server.url(NAME), 1000, 500) == DATA[1000:1500]
    assert server.requests()[NAME] == 3


ENDS_EARLY = "Payload|ends early"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (status(503), r"the server answers 503 \(Service Unavailable\); tried 3 times"),
        (status(599), r"the server answers 599 \(unknown\); tried 3 times"),
        (cut(0), ENDS_EARLY),
        (reset, "tried 3 times; check the server"),
        (silent, "no answer within 0.2 s; tried 3 times"),
    ],
)
@pytest.mark.parametrize("act", ["stat", "read", "download"])
def test_what_does_not_pass_ends_after_a_bounded_number_of_tries(server, act, fault, says):
    remote = Remote(timeout=0.2 if fault is silent else LIMIT, retries=2, pause=0.001)
    stat = REMOTE.stat(server.url(NAME))
    before = server.requests()[NAME]
    server.always[NAME] = fault
    if (act, says) == ("stat", ENDS_EARLY):
        assert remote.stat(stat.url) == stat, "the head says it all"
        return
    acts = {
        "stat": lambda: remote.stat(stat.url),
        "read": lambda: remote.read(stat.url, 5, 10),
        "download": lambda: downloaded(stat, remote),
    }
    with pytest.raises(UserError, match=f"^{stat.url}: .*{says}") as caught:
        acts[act]()
    assert "\n" not in str(caught.value)
    until(lambda: server.requests()[NAME] - before >= 3)  # it may be late to read a request that no client waits for
    tries = server.requests()[NAME] - before
    assert tries == 3


@pytest.mark.parametrize(
    ("code", "says"), [(404, "no such file"), (410, "no such file"), (403, "denied"), (401, "denied"), (400, "400")]
)
def test_what_lasts_is_tried_once(server, code, says):
    server.always[NAME] = status(code)
    for act in (REMOTE.stat, lambda url: REMOTE.read(url, 0, 10)):
        before = server.requests()[NAME]
        with pytest.raises(UserError, match=says):
            act(server.url(NAME))
        assert server.requests()[NAME] == before + 1


def test_bytes_beyond_the_end_are_an_error(server):
    for start in (len(DATA) - 5, len(DATA) + 5):
        with pytest.raises(UserError, match=r"folder/a\.tar: "):
            Remote(timeout=LIMIT, retries=1, pause=0.001).read(server.url(NAME), start, 10)


def test_no_server_at_all():
    with pytest.raises(UserError, match=r"^http://127.0.0.1:1/a.tar: .*tried 2 times"):
        Remote(timeout=1, retries=1, pause=0.001).stat("http://127.0.0.1:1/a.tar")


def test_a_server_that_ignores_ranges_is_noticed(server):
    server.fail(NAME, without_range)
    with pytest.raises(UserError, match="sends the complete file"):
        REMOTE.read(server.url(NAME), 0, 100)
    server.ranges = False
    stat = REMOTE.stat(server.url(NAME))
    assert not stat.ranges
    with pytest.raises(UserError, match="sends the complete file"):
        REMOTE.read(server.url(NAME), 100, 100)


def test_a_server_without_ranges_is_streamed_through_cuts(server):
    server.ranges = False
    stat = REMOTE.stat(server.url(NAME))
    server.fail(NAME, cut(100_000), status(503), cut(50_000), reset, cut(200_000))
    assert downloaded(stat, Remote(timeout=LIMIT, retries=5, pause=0.001)) == DATA
    server.fail(NAME, *[cut(number) for number in (1000, 999, 1500, 1501)])
    with pytest.raises(UserError, match="tried 4 times"):
        downloaded(stat)


def test_a_download_goes_on_at_the_last_good_byte(server, small_parts):
    stat = REMOTE.stat(server.url(NAME))
    server.log.clear()
    server.fail(NAME, stops(12_345))
    assert downloaded(stat, Remote(timeout=SHORT, retries=1, pause=0.001)) == DATA
    starts = sorted(int(asked.removeprefix("bytes=").partition("-")[0]) for _, asked in server.log[:-1])
    parts = range(0, len(DATA), 40_000)
    (again,) = set(starts) - set(parts)
    assert again - 12_345 in parts
    assert len(starts) == len(parts) + 1


def test_a_server_that_cuts_every_answer_gives_the_file_all_the_same(server):
    stat = REMOTE.stat(server.url(NAME))
    server.fail(NAME, *[stops(70_000)] * 2)
    assert downloaded(stat, Remote(timeout=SHORT, retries=1, pause=0.001)) == DATA


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_changes_in_between_is_never_mixed(server, small_parts, ranges):
    server.ranges = ranges
    stat = REMOTE.stat(server.url(NAME))
    server.fail(NAME, *[lambda handler, name: True] * 2 * ranges, becomes(DATA[::-1]))
    with pytest.raises(UserError, match=r"another version .*; tried 2 times"):
        downloaded(stat)


def test_a_file_that_changes_at_the_end_is_noticed_without_version_in_the_answers(server, small_parts):
    server.etags = False
    stat = REMOTE.stat(server.url(NAME))
    server.fail(NAME, *[lambda handler, name: True] * 8, becomes(DATA + b"more"))
    with pytest.raises(UserError, match="another version"):
        downloaded(stat)


def test_another_version_that_was_seen_once_is_looked_past(server, small_parts):
    stat = REMOTE.stat(server.url(NAME))
    server.fail(NAME, lambda handler, name: handler.file(DATA[::-1]))
    assert downloaded(stat) == DATA


def test_a_promise_of_more_bytes_than_there_are(server):
    server.ranges = False
    stat = REMOTE.stat(server.url(NAME))
    server.fail(NAME, wrong_length(10))
    with pytest.raises(UserError, match="10 bytes are missing"):
        downloaded(RemoteStat(url=stat.url, size=len(DATA) + 10, version=stat.version, ranges=False))


def test_secrets_are_sent_and_not_shown(server):
    host = server.url("").removeprefix("http://")
    wanted = "Basic " + base64.b64encode(b"user:secret").decode()
    server.always[NAME] = lambda handler, name: handler.headers.get("Authorization") == wanted or handler.status(401)
    url = f"http://user:secret@{host}{NAME}?X-Amz-Signature=secret#secret"
    assert REMOTE.read(url, 3, 4) == DATA[3:7]
    for bad in (
        url.replace(NAME, "nope.tar"),
        url.replace("user:secret", "secret:secret"),
        "ftp://secret@host/?secret",
    ):
        with pytest.raises(UserError) as caught:
            REMOTE.stat(bad)
        assert "secret" not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_credentials_of_netrc_and_the_environments_proxy(server, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine else.where.invalid login user password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", server.url("").replace("http://", "http://me:word@"))
    seen = []
    server.always[NAME] = lambda handler, name: seen.append(handler.headers) or True
    url = f"http://else.where.invalid/{NAME}"
    assert Remote(timeout=LIMIT + 31, retries=0).read(url, 3, 4) == DATA[3:7]
    for header, text in (("Authorization", "user:secret"), ("Proxy-Authorization", "me:word")):
        assert seen[-1][header] == f"Basic {base64.b64encode(text.encode()).decode()}"
    monkeypatch.setenv("no_proxy", "else.where.invalid")
    with pytest.raises(UserError, match=r"else.where\.invalid/folder/a\.tar: .*check the server"):
        Remote(timeout=LIMIT + 32, retries=0).stat(url)


def test_headers_of_the_settings_and_no_other_settings(server, monkeypatch):
    settings: dict = {"headers": {"X-Key": "a"}, "client_kwargs": {"headers": {"X-More": "b"}}}
    monkeypatch.setitem(fsspec.config.conf, "http", settings)
    seen = []
    server.always[NAME] = lambda handler, name: seen.append(handler.headers) or True
    Remote(timeout=LIMIT + 33).stat(server.url(NAME))
    assert (seen[0]["X-Key"], seen[0]["X-More"]) == ("a", "b")
    monkeypatch.setitem(fsspec.config.conf, "http", {"proxy": "http://secret@host"})
    with pytest.raises(UserError, match=r"FSSPEC_HTTP sets proxy, but only headers are supported\)$"):
        Remote(timeout=LIMIT + 34).stat(server.url(NAME))


def test_redirections(server, monkeypatch):
    def send_on(location):
        def answer(handler, name):
            handler.send_response(307)
            handler.send_header("Location", location)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        return answer

    server.always["b.tar"] = send_on(f"/{NAME}?signature=x")
    assert REMOTE.read(server.url("b.tar"), 3, 4) == DATA[3:7]
    server.always["b.tar"] = send_on("b.tar")
    with pytest.raises(UserError, match=r"b.tar: the server answers 307"):
        REMOTE.stat(server.url("b.tar"))


def test_patterns_on_a_web_server(server):
    url = server.url("a.tar?x=[1]*")
    assert REMOTE.expand(url) == [url]
    with pytest.raises(UsageError, match="no listing"):
        REMOTE.expand(server.url("*.tar"))
    with pytest.raises(UsageError, match="'ftp' is none of"):
        REMOTE.expand("ftp://host/*.tar")


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("http", "urllib3")])
def test_a_missing_package_is_named(monkeypatch, protocol, package):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=r"pip install 'dcgan_dist\[remote\]'"):
        Remote(timeout=7.25).stat(f"{protocol}://bucket/key.tar")


def test_threads_share_a_remote(server):
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda start: REMOTE.read(server.url(NAME), start, 100), range(0, 20_000, 100)))
    assert b"".join(got) == DATA[:20_000]


def read_in_a_child(remote, url, answers):
    answers.put(remote.read(url, 10, 20))


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.dist
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_has_connections_of_its_own(server, method):
    url = server.url(NAME)
    assert REMOTE.read(url, 0, 5) == DATA[:5]
    assert pickle.loads(pickle.dumps(REMOTE)) == REMOTE  # noqa: S301
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    children = [context.Process(target=read_in_a_child, args=(REMOTE, url, answers)) for _ in range(3)]
    for child in children:
        child.start()
    assert [answers.get(timeout=LIMIT) for _ in children] == [DATA[10:30]] * 3
    for child in children:
        child.join()
    assert REMOTE.read(url, 0, 5) == DATA[:5]


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_in_the_middle_of_a_download_disturbs_nobody(server, small_parts):
    stat = REMOTE.stat(server.url(NAME))
    asked, go_on = threading.Event(), threading.Event()

    def wait(handler, name):
        asked.set()
        return go_on.wait(LIMIT)

    server.fail(NAME, wait)
    with ThreadPoolExecutor(1) as pool:
        complete = pool.submit(downloaded, stat)
        assert asked.wait(LIMIT)
        child = os.fork()
        if child == 0:
            os._exit(0 if REMOTE.read(stat.url, 7, 7) == DATA[7:14] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        go_on.set()
        assert complete.result() == DATA


HANGING = """
import sys, threading
from dcgan_dist.data.remote.client import Remote
hanging = threading.Thread(target=lambda: Remote(timeout=600).stat(sys.argv[1]), daemon=True)
hanging.start()
try:
    Remote(timeout=0.2, retries=1, pause=0.01).stat(sys.argv[1])
except Exception as error:
    print(error)
"""


def test_a_server_that_never_answers_does_not_hold_up_the_end(server):
    server.always[NAME] = silent
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", HANGING, server.url(NAME)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=True)
    assert "no answer within 0.2 s; tried 2 times" in ended.stdout
    assert ended.stderr == ""
