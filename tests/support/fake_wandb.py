"""A stand-in for the W&B server on 127.0.0.1: as much of its protocol as `wandb.init(mode="online")` needs.

    with FakeWandb() as server:
        os.environ.update(server.env())
        ...
        server.runs["abc123"].history      # [{'_step': 0, 'loss/g': ...}, ...]

It speaks GraphQL (create, resume and query a run), the file stream (history, summary, exit code) and file uploads, and
keeps all it is sent. `server.fault` breaks it: "down" drops connections, an HTTP status such as "500" is its answer,
"slow" takes every request and answers none while the server is open. Rows are kept by their number, as the real server
does, whatever happens in between; `silent`, `unknown`, `behind` and `deleted` break single queries.
"""

import gzip
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from support import fake_artifacts, fake_sweeps, fake_views

HISTORY, SUMMARY, EVENTS, OUTPUT = "wandb-history.jsonl", "wandb-summary.json", "wandb-events.jsonl", "output.log"


@dataclass
class Run:
    """What the server knows of one run."""

    entity: str
    project: str
    id: str
    config: dict[str, Any] = field(default_factory=dict)
    display_name: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    streams: dict[str, dict[int, str]] = field(default_factory=dict)  # file name -> line number -> line
    uploads: dict[str, bytes] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)  # what clients sent about it and themselves
    complete: bool = False
    exit_code: int | None = None
    preempting: bool = False
    alerts: list[dict[str, Any]] = field(default_factory=list)
    stop_requested: bool = False  # set it to press the stop button

    def lines(self, name: str) -> list[str]:
        return [line for _, line in sorted(self.streams.get(name, {}).items())]

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines(HISTORY)]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.lines(SUMMARY) or ["{}"])[-1])

    def add(self, message: dict[str, Any]) -> None:
        """One file-stream message: numbered lines of several files, and how the client is."""
        self.complete = message.get("complete", self.complete)
        self.exit_code = message.get("exitcode", self.exit_code)
        self.preempting |= bool(message.get("preempting"))
        for name, part in (message.get("files") or {}).items():
            self.streams.setdefault(name, {}).update(enumerate(part["content"], part["offset"]))


class FakeWandb:
    """The server; a context manager that listens on a free port while it is open."""

    def __init__(self, entity: str = "tester") -> None:
        self.entity = entity
        self.fault: str | None = None
        self.silent: set[str] = set()  # GraphQL operations that get no answer until they are removed here
        self.unknown: set[str] = set()  # those that this server does not know
        self.behind = 0  # how often the history is asked for until it shows the last rows
        self.deleted: set[str] = set()  # ids of runs that somebody deleted
        self.runs: dict[str, Run] = {}
        self.received: list[bytes] = []  # every path and every (unpacked) body, to search for what must not be there
        self.operations: list[str] = []
        self.views: dict[str, dict[str, Any]] = {}  # workspaces and reports, by id
        self.sweep = ""  # its configuration, YAML
        self.heartbeat: Callable[[dict[str, bool]], list[dict[str, Any]]] = lambda _: []  # trials that run -> commands
        self.artifacts: dict[str, fake_artifacts.Artifact] = {}  # by id
        self.versions = 0  # of all artifacts, deleted ones too
        self.keeps = False  # the key may not delete artifacts
        self.read_only = False  # the key may look at projects, not change them
        self.lock = threading.RLock()
        self.closed = threading.Event()
        self.http = _Server(self)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self.http.shutdown()
        self.http.server_close()

    def env(self) -> dict[str, str]:
        """The environment that leads a client here."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0" * 40}

    def _wait_until(self, happened: Callable[[], bool]) -> None:
        while not happened() and not self.closed.wait(0.02):
            pass

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """The status and JSON reply to a request."""
        if path == "/graphql" and _operation(json.loads(body)["query"]) in self.silent:
            self._wait_until(lambda: _operation(json.loads(body)["query"]) not in self.silent)
        with self.lock:
            self.received += [path.encode(), body]
            if path == "/graphql":
                return self._graphql(json.loads(body))
            if stream := re.match(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path):
                if stream[3] in self.deleted:
                    return 404, {}
                run = self.runs.setdefault(stream[3], Run(stream[1], stream[2], stream[3]))
                run.add(json.loads(body or b"{}"))
                return 200, {"limits": {}, "exitcode": None, "stopped": run.stop_requested}
            if upload := re.match(r"/upload/([^/]+)/(.+)", path):
                self.runs[upload[1]].uploads[upload[2]] = body
                return 200, {}
            if fake_artifacts.put(self, path, body):
                return 200, {}
            return (200 if method == "GET" else 404), {}

    def _graphql(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        query, variables = request["query"], request.get("variables") or {}
        operation = _operation(query)
        self.operations.append(operation)
        if operation == "UpsertBucket" and variables.get("name") in self.deleted:
            return 409, {"errors": [{"message": f"{variables['name']} was previously created and deleted"}]}
        if operation in OPERATIONS.keys() - self.unknown:
            answer = OPERATIONS[operation](self, variables)
            return 200, answer if "errors" in answer else {"data": answer}
        if "__type" in query:
            return 200, {"data": dict.fromkeys(re.findall(r"(\w+):\s*__type", query)) or {"__type": None}}
        return 200, {"errors": [{"message": f"the fake server does not know {operation}"}]}


def _operation(query: str) -> str:
    named = re.search(r"(?:query|mutation)\s+(\w+)", query)
    return named[1] if named else "?"


Operation = Callable[[FakeWandb, dict[str, Any]], dict[str, Any]]


def _bucket(run: Run) -> dict[str, Any]:
    project = {"id": "p1", "name": run.project, "entity": {"id": "e1", "name": run.entity}}
    return {
        "id": f"id-{run.id}",
        "name": run.id,
        "displayName": run.display_name or run.id,
        "description": "",
        "config": json.dumps(run.config),
        "sweepName": None,
        "historyLineCount": len(run.lines(HISTORY)),
        "project": project,
    }


def _upsert_bucket(server: FakeWandb, variables: dict[str, Any]) -> dict[str, Any]:
    run_id = variables.get("name") or (variables.get("id") or "").removeprefix("id-")
    inserted = not _is_there(server.runs.get(run_id), variables)
    entity, project = variables.get("entity") or server.entity, variables.get("project") or "uncategorized"
    if inserted:
        server.runs[run_id] = Run(entity, project, run_id)
    run = server.runs[run_id]
    run.about |= {name: value for name, value in variables.items() if value}
    run.config = json.loads(variables["config"]) if variables.get("config") else run.config
    run.display_name = variables.get("displayName") or run.display_name
    run.group = variables.get("groupName") or run.group
    run.tags = variables.get("tags") or run.tags
    return {"upsertBucket": {"bucket": _bucket(run), "inserted": inserted}}


def _is_there(run: Run | None, variables: dict[str, Any]) -> bool:
    """Whether it is in the project that is asked for; of a run's copies in several projects the last one is kept."""
    places = [(variables.get(name), getattr(run, name, None)) for name in ("entity", "project")]
    return run is not None and all(asked in (None, "", found) for asked, found in places)


def _resume_status(server: FakeWandb, variables: dict[str, Any]) -> dict[str, Any]:
    run = server.runs.get(variables.get("name") or "")
    run = run if _is_there(run, variables) else None
    model = {
        "id": "p1",
        "name": variables.get("project"),
        "entity": {"id": "e1", "name": server.entity},
        "bucket": None,
    }
    if run is not None:
        model["bucket"] = _bucket(run) | {
            "summaryMetrics": json.dumps(run.summary),
            "logLineCount": len(run.lines(OUTPUT)),
            "eventsLineCount": len(run.lines(EVENTS)),
            "historyTail": json.dumps(run.lines(HISTORY)[-1:]),
            "eventsTail": json.dumps(run.lines(EVENTS)[-1:]),
            "tags": run.tags,
            "wandbConfig": '{"t": 1}',
        }
    return {"model": model}


def _project(part: Callable[[FakeWandb, Run, dict[str, Any]], Any]) -> Operation:
    """A query for a part of a run, which is None for one that does not exist."""

    def answer(server: FakeWandb, variables: dict[str, Any]) -> dict[str, Any]:
        run = server.runs.get(variables.get("name") or variables.get("run") or variables.get("runName") or "")
        known = run is not None and _is_there(run, variables) and run.id not in server.deleted
        found = part(server, run, variables) if run is not None and known else None
        return {"project": {"internalId": "UHJvamVjdEludGVybmFsSWQ6MQ==", "run": found}}

    return answer


def _run(server: FakeWandb, run: Run, variables: dict[str, Any]) -> dict[str, Any]:
    about = {"tags": run.tags, "state": "finished" if run.complete else "running", "group": run.group}
    about |= {"user": {"name": run.entity, "username": run.entity}, "projectId": "1"}
    return _bucket(run) | about | {"summaryMetrics": json.dumps(run.summary)}


def _history_keys(server: FakeWandb, run: Run, variables: dict[str, Any]) -> dict[str, Any]:
    steps = [row["_step"] for row in run.history]
    if server.behind:
        server.behind -= 1
        del steps[-1:]
    return {"historyKeys": {"lastStep": max(steps, default=-1)}}


def _parquet_history(server: FakeWandb, run: Run, variables: dict[str, Any]) -> dict[str, Any]:
    return {"parquetHistory": {"parquetUrls": [], "liveData": [{"_step": row["_step"]} for row in run.history]}}


def _history_page(server: FakeWandb, run: Run, variables: dict[str, Any]) -> dict[str, Any]:
    asked = range(variables["minStep"], variables["maxStep"])
    return {"history": [json.dumps(row) for row in run.history if row["_step"] in asked]}


def _files(server: FakeWandb, run: Run, variables: dict[str, Any]) -> dict[str, Any]:
    """Those of the names that are asked for, on one page."""
    names = [name for name in variables["fileNames"] or run.uploads if name in run.uploads]
    nodes = [{"id": name, "name": name, "sizeBytes": str(len(run.uploads[name]))} for name in names]
    page = {"endCursor": None, "hasNextPage": False}
    return {"fileCount": len(run.uploads), "files": {"edges": [{"node": node} for node in nodes], "pageInfo": page}}


def _create_run_files(server: FakeWandb, variables: dict[str, Any]) -> dict[str, Any]:
    run_id = variables["run"]
    files = [{"name": name, "uploadUrl": f"{server.url}/upload/{run_id}/{name}"} for name in variables.get("files", [])]
    return {"createRunFiles": {"runID": run_id, "uploadHeaders": [], "files": files}}


def _stopped_status(server: FakeWandb, variables: dict[str, Any]) -> dict[str, Any]:
    run = server.runs.get(variables.get("runId") or variables.get("run") or "")
    return {"project": {"run": {"stopped": run is not None and run.stop_requested}}}


def _viewer(server: FakeWandb, variables: dict[str, Any]) -> dict[str, Any]:
    user = {"id": "u1", "entity": server.entity, "username": server.entity, "flags": "{}", "teams": {"edges": []}}
    return {"viewer": user}


def _server_info(server: FakeWandb, variables: dict[str, Any]) -> dict[str, Any]:
    versions = {"min_cli_version": "0.8.0", "max_cli_version": "99"}
    info = {"cliVersionInfo": versions, "latestLocalVersionInfo": None, "features": []}
    return {"viewer": {"id": "u1", "entity": server.entity}, "serverInfo": info}


def _alert(server: FakeWandb, variables: dict[str, Any]) -> dict[str, Any]:
    server.runs[variables["runName"]].alerts.append(variables)
    return {"notifyScriptableRunAlert": {"success": True}}


OPERATIONS: dict[str, Operation] = {
    "NotifyScriptableRunAlert": _alert,
    "UpsertBucket": _upsert_bucket,
    "RunResumeStatus": _resume_status,
    "Run": _project(_run),
    "RunHistoryKeys": _project(_history_keys),
    "RunParquetHistory": _project(_parquet_history),
    "HistoryPage": _project(_history_page),
    "RunFiles": _project(_files),
    "CreateRunFiles": _create_run_files,
    "RunStoppedStatus": _stopped_status,
    "Viewer": _viewer,
    "ValidateApiKey": _viewer,
    "ServerInfo": _server_info,
    "ServerFeaturesQuery": _server_info,
    **fake_artifacts.OPERATIONS,
    **fake_views.OPERATIONS,
    **fake_sweeps.OPERATIONS,
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, fake: FakeWandb) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fake = fake

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Tests stay quiet."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _serve(self) -> None:
        assert isinstance(self.server, _Server)
        fake = self.server.fake
        if fake.fault == "slow":
            fake.closed.wait()
        if fake.fault in ("down", "slow"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self._body()
        status, reply = (int(fake.fault), {}) if fake.fault else fake.answer(self.command, self.path, body)
        payload = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = do_PUT = _serve  # noqa: N815
