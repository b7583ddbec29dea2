"""What the stand-in for the W&B server knows of views: workspaces and reports of its projects."""

from typing import Any

Variables = dict[str, Any]
DENIED = {"errors": [{"message": "permission denied", "path": ["upsertView"]}]}


def _has(server: Any, entity: str, project: str) -> bool:
    """Whether there is such a project: one that has runs."""
    return any((run.entity, run.project) == (entity, project) for run in server.runs.values())


def _default_entity(server: Any, variables: Variables) -> Variables:
    return {"viewer": {"id": "u1", "entity": server.entity}}


def _project(server: Any, variables: Variables) -> Variables:
    entity, project = variables["entity"], variables["name"]
    about = {"id": "p1", "name": project, "entityName": entity, "createdAt": "", "isBenchmark": False, "user": None}
    return {"project": about if _has(server, entity, project) else None}


def _projects(server: Any, variables: Variables) -> Variables:
    places = sorted({(run.entity, run.project) for run in server.runs.values()})
    found = [_project(server, {"entity": entity, "name": name})["project"] for entity, name in places]
    edges = [{"node": about} for about in found if about["entityName"] == variables["entity"]]
    return {"models": {"pageInfo": {"hasNextPage": False, "endCursor": None}, "edges": edges}}


def _internal_id(server: Any, variables: Variables) -> Variables:
    there = _has(server, variables["entityName"], variables["projectName"])
    return {"project": {"id": "p1", "internalId": "1"} if there else None}


def _view(server: Any, variables: Variables) -> Variables:
    if not _has(server, variables["entityName"], variables["name"]):
        return {"project": None}
    place = variables["entityName"], variables["name"], variables["viewName"]
    found = [view for view in server.views.values() if (view["entityName"], view["projectName"], view["name"]) == place]
    return {"project": {"allViews": {"edges": [{"node": view} for view in found]}}}


def _upsert_view(server: Any, variables: Variables) -> Variables:
    """With an id the view of that id is replaced; without one there is a new one, whatever its name."""
    if server.read_only:
        return DENIED
    new = variables.get("id") is None
    known = {} if new else server.views[variables["id"]]
    view = known | variables | {"id": variables.get("id") or f"view{len(server.views) + 1}"}
    server.views[view["id"]] = view
    project = {"id": "p1", "name": view["projectName"], "entityName": view["entityName"]}
    return {"upsertView": {"view": view | {"project": project, "updatedAt": None}, "inserted": new}}


OPERATIONS = {
    "GetDefaultEntity": _default_entity,
    "GetProject": _project,
    "GetProjects": _projects,
    "ProjectInternalId": _internal_id,
    "View": _view,
    "UpsertView2": _upsert_view,
    "upsertView": _upsert_view,
}
