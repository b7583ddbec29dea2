"""The key for the W&B server: where it is found, and whether the server accepts it. The key is never shown."""

import base64
import http.client
import json
import netrc
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dcgan_dist.config.run_groups import WandbConfig
from dcgan_dist.location import Location
from dcgan_dist.run.wandb_settings import Mode, asked_mode, variables

DEFAULT_URL = "https://api.wandb.ai"
DEFAULT_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # keys are stored under W&B's new host or its old one


@dataclass(frozen=True)
class Credentials:
    """What W&B will log in with."""

    where: str
    key: str | None = field(repr=False)  # None: a token in a file, which W&B exchanges for one


@dataclass(frozen=True)
class Answer:
    """The server's answer, and what to print of it."""

    what: str
    reached: bool = False
    accepted: bool = False


def credentials(env: Mapping[str, str]) -> Credentials | None:
    """Those that W&B finds, if any."""
    for name, is_key in (("WANDB_API_KEY", True), ("WANDB_IDENTITY_TOKEN_FILE", False)):
        if env.get(name):
            return Credentials(f"{name} is set", env[name] if is_key else None)
    base_url = env.get("WANDB_BASE_URL")
    hosts = (urlsplit(base_url).netloc,) if base_url else DEFAULT_HOSTS
    home = Path(env.get("HOME", "."))
    for path in [Path(env["NETRC"])] if env.get("NETRC") else [home / ".netrc", home / "_netrc"]:
        try:
            known = netrc.netrc(path).hosts
        except (OSError, netrc.NetrcParseError):
            continue
        for host in hosts:
            if host in known:
                return Credentials(f"{path} has a key for {host.rpartition('@')[2]}", known[host][2])
    return None


def ask_server(timeout: float) -> Answer:
    """Asks the server who owns the key. `timeout`: seconds for each wait."""
    env = variables(os.environ)
    found = credentials(env)
    base = Location(env.get("WANDB_BASE_URL") or DEFAULT_URL)
    url, host = base.reveal(), urlsplit(base).netloc
    if found is None:
        return Answer("there is no API key")
    if not url.startswith(("https://", "http://")):
        return Answer("WANDB_BASE_URL is no http(s) address")
    try:
        viewer = _query(url, found, timeout, {"query": "query Viewer { viewer { id } }"}).get("viewer")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            return Answer(f"{host} refuses the key", reached=True)
        return Answer(f"{host} answers with error {error.code}")
    except TimeoutError:
        return Answer(f"{host} does not answer within {timeout:g} s")
    except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
        reason = base.hide_in(str(getattr(error, "reason", None) or error))
        return Answer(f"{host} cannot be reached ({reason})")
    if found.key is None:
        return Answer(f"{host} answers; the token was not tried", reached=True, accepted=True)
    what = f"{host} accepts the key" if viewer else f"{host} does not know the key"
    return Answer(what, reached=True, accepted=viewer is not None)


def is_stopped(entity: str, project: str, run_id: str, timeout: float) -> bool:
    """Whether W&B has stopped this run: a person did, or its sweep. Without an answer in `timeout` seconds, False."""
    env = variables(os.environ)
    found, url = credentials(env), Location(env.get("WANDB_BASE_URL") or DEFAULT_URL).reveal()
    query = (
        "query RunStoppedStatus($projectName: String, $entityName: String, $runId: String!) "
        "{ project(name: $projectName, entityName: $entityName) { run(name: $runId) { stopped shouldStop } } }"
    )
    question = {"query": query, "variables": {"projectName": project, "entityName": entity, "runId": run_id}}
    try:
        return found is not None and any(_query(url, found, timeout, question)["project"]["run"].values())
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError):
        return False


def _query(url: str, found: Credentials, timeout: float, question: dict[str, Any]) -> dict[str, Any]:
    """The data of the server's answer. Raises OSError, HTTPException, and ValueError or AttributeError."""
    body, headers = json.dumps(question).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url.rstrip('/')}/graphql", data=body, headers=headers)
    if found.key is not None:  # not passed on where the server redirects
        login = base64.b64encode(f"api:{found.key}".encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {login}")
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        return json.load(reply).get("data") or {}


def resolve_mode(config: WandbConfig, env: Mapping[str, str]) -> tuple[Mode, str]:
    """W&B's mode, and the reason."""
    asked = asked_mode(env)
    if config.mode != "auto":
        instead = f", not {asked[1]}" if asked and asked[0] != config.mode else ""
        return config.mode, f"--wandb.mode {config.mode}{instead}"
    if asked:
        return asked
    if found := credentials(variables(env)):
        return "online", found.where
    return "disabled", "no API key; `wandb login` or --wandb.mode offline turns it on"
