"""What the stand-in for the W&B server knows of artifacts: collections with versions, aliases, files and lineage.

As in the real one, content that a collection has already is that version, an alias is on one version of a collection,
and a version that has aliases is deleted only by force.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

Variables = dict[str, Any]


@dataclass
class Artifact:
    """A version of a collection."""

    id: str
    collection: str
    kind: str
    version: int
    digest: str
    metadata: dict[str, Any]
    project: str
    run: str | None  # the one that made it
    aliases: set[str] = field(default_factory=set)
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False
    used_by: list[str] = field(default_factory=list)  # runs


def _of(server: Any, collection: str) -> list[Artifact]:
    return [one for one in server.artifacts.values() if one.collection == collection]


def _create(server: Any, variables: Variables) -> Variables:
    given = variables["input"]
    if server.read_only:
        return {"errors": [{"message": "permission denied"}]}
    others = _of(server, given["artifactCollectionName"])
    number = others[-1].version + 1 if others else 0
    found = next((one for one in others if one.digest == given["digest"] and one.committed), None)
    if found is None:
        server.versions += 1
        place = given["artifactCollectionName"], given["artifactTypeName"], number
        made = given["digest"], {}, given["projectName"], given["runName"]
        found = Artifact(f"artifact{server.versions}", *place, *made)
        server.artifacts[found.id] = found
    found.metadata = json.loads(given["metadata"] or "{}")
    for alias in {one["alias"] for one in given["aliases"]}:
        for other in others:
            other.aliases.discard(alias)
        found.aliases.add(alias)
    state = "COMMITTED" if found.committed else "PENDING"
    newest = {"id": others[-1].id} if others else None
    return {
        "createArtifact": {"artifact": {"id": found.id, "state": state, "artifactSequence": {"latestArtifact": newest}}}
    }


def _url(server: Any, artifact: str, name: str) -> str:
    return f"{server.url}/artifact/{artifact}/{name}"


def _manifest(server: Any, variables: Variables) -> Variables:
    artifact = variables.get("artifactID") or variables["artifactManifestID"].removeprefix("m-")
    upload = {"id": "f1", "uploadUrl": _url(server, artifact, "manifest"), "uploadHeaders": []}
    name = "createArtifactManifest" if "artifactID" in variables else "updateArtifactManifest"
    return {name: {"artifactManifest": {"id": f"m-{artifact}", "file": upload}}}


def _files(server: Any, variables: Variables) -> Variables:
    nodes = []
    for file in variables["input"]["artifactFiles"]:
        url = _url(server, file["artifactID"], f"files/{file['name']}")
        about = {"storagePath": f"x/{file['name']}", "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
        nodes.append({"node": about | {"artifact": {"id": file["artifactID"]}}})
    return {"createArtifactFiles": {"files": {"edges": nodes}}}


def _commit(server: Any, variables: Variables) -> Variables:
    artifact = server.artifacts[variables["artifactID"]]
    artifact.committed = True
    return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}


def _use(server: Any, variables: Variables) -> Variables:
    artifact = server.artifacts[variables["input"]["artifactID"]]
    artifact.used_by.append(variables["input"]["runName"])
    return {"useArtifact": {"artifact": {"id": artifact.id}}}


def _shown(server: Any, artifact: Artifact) -> Variables:
    project = {"id": "p1", "internalId": "1", "name": artifact.project, "entity": {"name": server.entity}}
    collection = {"__typename": "ArtifactSequence", "name": artifact.collection, "project": project}
    aliases = [
        {"__typename": "ArtifactAlias", "id": name, "alias": name, "artifactCollection": collection}
        for name in sorted(artifact.aliases)
    ]
    return {
        "__typename": "Artifact", "id": artifact.id, "artifactSequence": collection, "versionIndex": artifact.version,
        "artifactType": {"name": artifact.kind}, "description": None, "metadata": json.dumps(artifact.metadata),
        "ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [], "historyStep": None,
        "state": "COMMITTED" if artifact.committed else "PENDING", "size": sum(map(len, artifact.files.values())),
        "digest": artifact.digest, "commitHash": "c", "fileCount": len(artifact.files),
        "createdAt": "2026-01-01T00:00:00Z", "updatedAt": None, "aliases": aliases,
    }  # fmt: skip


def _by_id(server: Any, variables: Variables) -> Variables:
    artifact = server.artifacts.get(variables["id"])
    return {"artifact": artifact and _shown(server, artifact)}


def _list(server: Any, variables: Variables) -> Variables:
    found = [one for one in _of(server, variables["collection"]) if one.committed]
    edges = [{"version": f"v{one.version}", "node": _shown(server, one)} for one in reversed(found)]
    page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
    listed = {
        "__typename": "ArtifactSequence",
        "artifacts": {"totalCount": len(edges), "pageInfo": page, "edges": edges},
    }
    return {"project": {"artifactType": {"artifactCollection": listed}}}


def _delete(server: Any, variables: Variables) -> Variables:
    given = variables["input"]
    artifact = server.artifacts[given["artifactID"]]
    if server.keeps or (artifact.aliases and not given["deleteAliases"]):
        return {"errors": [{"message": "permission denied"}]}
    del server.artifacts[artifact.id]
    return {"result": {"artifact": {"id": artifact.id}}}


def put(server: Any, path: str, body: bytes) -> bool:
    """Takes an upload; whether the path is that of a file of an artifact."""
    found = re.fullmatch(r"/artifact/([^/]+)/(files/)?(.+)", path)
    if found and found[2]:
        server.artifacts[found[1]].files[found[3]] = body
    return bool(found)


OPERATIONS = {
    "ArtifactType": lambda server, variables: {"project": {"artifact": None}},
    "CreateArtifact": _create,
    "CreateArtifactManifest": _manifest,
    "UpdateArtifactManifest": _manifest,
    "CreateArtifactFiles": _files,
    "CommitArtifact": _commit,
    "UseArtifact": _use,
    "ArtifactByID": _by_id,
    "ProjectArtifacts": _list,
    "DeleteArtifact": _delete,
}
