"""What the stand-in for the W&B server knows of sweeps: one sweep, and what its agents are to do."""

import json
from typing import Any

Variables = dict[str, Any]


def _sweep(server: Any, variables: Variables) -> Variables:
    about = {"id": "s", "name": variables["sweep"], "state": "RUNNING", "config": server.sweep, "runs": {"edges": []}}
    return {"project": {"sweep": about}}


def _agent(server: Any, variables: Variables) -> Variables:
    return {"createAgent": {"agent": {"id": "agent1"}}}


def _heartbeat(server: Any, variables: Variables) -> Variables:
    commands = server.heartbeat(json.loads(variables["runState"]))
    return {"agentHeartbeat": {"agent": {"id": "agent1"}, "commands": json.dumps(commands)}}


OPERATIONS = {"SweepWithRuns": _sweep, "CreateAgent": _agent, "Heartbeat": _heartbeat}
