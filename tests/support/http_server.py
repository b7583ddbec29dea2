"""A web server with ranges and ETags, and every fault that a real one has, asked for by the test."""

import hashlib
import threading
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from support.waiting import LIMIT


class HttpServer:
    """`with HttpServer({"a.tar": data}) as server: server.url("a.tar")`.

    A fault (see the foot of this file) serves one request instead: `server.fail(name, fault, ..)` in turn for the next
    requests, `server.always[name] = fault` for all after those. `log` holds (name, Range header) of every request.
    """

    def __init__(self, files=None):
        self.files = dict(files or {})
        self.etags = True
        self.ranges = True
        self.faults: dict[str, deque] = {}
        self.always: dict[str, Callable] = {}
        self.log = []
        self.lock = threading.Lock()
        self.over = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def url(self, name):
        return f"http://127.0.0.1:{self._server.server_port}/{name}"

    def fail(self, name, *faults):
        self.faults.setdefault(name, deque()).extend(faults)

    def requests(self):
        """Number of requests by name."""
        with self.lock:
            return Counter(name for name, _ in self.log)

    def fault(self, name):
        with self.lock:
            waiting = self.faults.get(name)
            return waiting.popleft() if waiting else self.always.get(name)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    owner: HttpServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and content are sent one after the other

    def log_message(self, format, *args):  # noqa: A002, for the base class says so
        pass

    def handle(self):
        with suppress(OSError):  # a client that goes away
            super().handle()

    def setup(self):
        super().setup()
        assert isinstance(self.server, _Server)
        self.owner = self.server.owner
        self.connection.settimeout(LIMIT)

    def do_GET(self):
        name = urlsplit(self.path).path.lstrip("/")
        with self.owner.lock:
            self.owner.log.append((name, self.headers.get("Range")))
        fault = self.owner.fault(name)
        if fault is not None and fault(self, name) is not True:
            return
        if name not in self.owner.files:
            self.status(404)
        else:
            self.file(self.owner.files[name])

    def status(self, code):
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def file(self, data, *, sent=None, ranges=True):
        """Answers with a file, of which only `sent` bytes are sent before the connection ends."""
        asked = self.headers.get("Range") if self.owner.ranges and ranges else None
        code, part, headers = _part(data, asked)
        if self.owner.etags:
            headers["ETag"] = f'"{hashlib.md5(data).hexdigest()}"'
        self.send_response(code)
        for header in (headers | {"Content-Length": str(len(part))}).items():
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(part[:sent])
        self.close_connection = self.close_connection or (sent is not None and sent < len(part))


def _part(data, asked):
    if not asked:
        return 200, data, {}
    first, _, last = asked.removeprefix("bytes=").partition("-")
    part = data[int(first) : int(last) + 1]
    if not part:
        return 416, b"", {"Content-Range": f"bytes */{len(data)}"}
    return 206, part, {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"}


def status(code):
    """An answer without content."""
    return lambda handler, name: handler.status(code)


def cut(sent):
    """The connection ends after `sent` bytes of the content."""
    return lambda handler, name: handler.file(handler.owner.files[name], sent=sent)


def reset(handler, name):
    """The connection ends without an answer."""
    handler.close_connection = True


def silent(handler, name):
    """Accepted, and never answered."""
    handler.owner.over.wait()
    handler.close_connection = True


def stops(sent):
    """`sent` bytes of the answer come, and then nothing."""

    def answer(handler, name):
        handler.file(handler.owner.files[name], sent=sent)
        silent(handler, name)

    return answer


def without_range(handler, name):
    """The complete file, whatever was asked for."""
    handler.file(handler.owner.files[name], ranges=False)


def becomes(data):
    """The file changes before this request is answered."""

    def change(handler, name):
        handler.owner.files[name] = data
        return True

    return change


def wrong_length(more):
    """A Content-Length that promises more bytes than there are."""

    def answer(handler, name):
        data = handler.owner.files[name]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data) + more))
        handler.end_headers()
        handler.wfile.write(data)
        handler.close_connection = True

    return answer
