"""What the stand-in server (`wandb_state.py`) remembers, and how it answers the client's GraphQL operations."""

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import yaml

ENTITY = "tester"


@dataclass
class Run:
    """What the server was told about one run."""

    id: str
    project: str
    entity: str
    name: str = ""
    sweep: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: list["Artifact"] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def state(self) -> str:
        return "running" if self.exit_code is None else "failed" if self.exit_code else "finished"


@dataclass
class Artifact:
    """One version of an artifact; `files` holds the contents that were uploaded."""

    id: str
    name: str
    type: str
    aliases: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


@dataclass
class Sweep:
    """A sweep: its configuration and the parameters of the runs that no agent has started yet."""

    id: str
    config: dict[str, Any]
    queue: list[dict[str, Any]]
    started: dict[str, dict[str, Any]] = field(default_factory=dict)


class ServerState:
    """All that the server was told, readable at any time.

    Args:
        run_cap: how many runs a sweep has whose configuration does not say so itself.
    """

    def __init__(self, run_cap: int = 2) -> None:
        self.run_cap = run_cap
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.unknown_operations: list[str] = []
        self.url = ""

    def execute(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Answer one GraphQL operation."""
        if operation not in OPERATIONS:
            self.unknown_operations.append(operation)
            return {"errors": [{"message": f"unknown operation {operation}"}]}
        return {"data": OPERATIONS[operation](self, variables)}

    def receive_stream(self, run_id: str, body: dict[str, Any]) -> None:
        """Take what `file_stream` brings: history rows, the summary, and how the run ended."""
        run = self.runs[run_id]
        for name, chunk in body.get("files", {}).items():
            if name == "wandb-history.jsonl":
                # The step tells rows apart: `wandb sync` sends all of a run's rows once more, behind those of the run.
                rows = [json.loads(line) for line in chunk["content"]]
                steps = {row["_step"]: row for row in [*run.history, *rows]}
                run.history = [steps[step] for step in sorted(steps)]
            elif name == "wandb-summary.json":
                run.summary.update(json.loads(chunk["content"][-1]))
        if body.get("complete"):
            run.exit_code = body.get("exitcode", 0)

    def receive_file(self, kind: str, owner: str, name: str, content: bytes) -> None:
        """Take an uploaded file of a run or of an artifact."""
        (self.runs if kind == "run" else self.artifacts)[owner].files[name] = content


def _viewer(state: ServerState, variables: dict[str, Any]) -> dict[str, Any]:
    viewer = {"id": "user", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": {"edges": []}}
    return {"viewer": viewer}


def _resume_status(state: ServerState, variables: dict[str, Any]) -> dict[str, Any]:
    run = state.runs.get(variables["name"])
    if run is None:
        return {"model": None}
    config = {name: {"value": value} for name, value in run.config.items()}
    bucket = {
        "id": run.id, "name": run.id, "displayName": run.name, "tags": [], "notes": "",
        "summaryMetrics": json.dumps(run.summary), "config": json.dumps(config),
        "logLineCount": 0, "historyLineCount": len(run.history), "eventsLineCount": 0,
        "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]), "eventsTail": "[]",
        "wandbConfig": json.dumps({"t": 1}),
    }  # fmt: skip
    return {"model": {**_project(run.project, run.entity), "bucket": bucket}}


def _upsert_run(state: ServerState, variables: dict[str, Any]) -> dict[str, Any]:
    run_id = variables.get("name") or variables["id"]
    inserted = run_id not in state.runs
    project, entity = variables.get("project") or "uncategorized", variables.get("entity") or ENTITY
    run = state.runs.setdefault(run_id, Run(run_id, project, entity))
    run.name = variables.get("displayName") or run.name
    run.sweep = variables.get("sweep") or run.sweep
    config = json.loads(variables.get("config") or "{}")
    run.config.update({name: entry["value"] for name, entry in config.items()})
    bucket = {
        "id": run_id, "name": run_id, "displayName": run.name, "description": "", "config": json.dumps(config),
        "sweepName": run.sweep, "project": _project(run.project, run.entity), "historyLineCount": len(run.history),
    }  # fmt: skip
    return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}


def _project(name: str, entity: str) -> dict[str, Any]:
    return {"id": name, "name": name, "entity": {"id": entity, "name": entity}}


def _create_run_files(state: ServerState, variables: dict[str, Any]) -> dict[str, Any]:
    run_id = variables["run"]
    files = [{"name": name, "uploadUrl": _upload_url(state, "run", run_id, name)} for name in variables["files"]]
    return {"createRunFiles": {"runID": run_id, "uploadHeaders": [], "files": files}}


def _upload_url(state: ServerState, kind: str, owner: str, name: str) -> str:
    return f"{state.url}/upload/{kind}/{owner}/{quote(name)}"


def _create_artifact(state: ServerState, variables: dict[str, Any]) -> dict[str, Any]:
    given = variables["input"]
    artifact = Artifact(
        id=f"artifact-{len(state.artifacts)}",
        name=given["artifactCollectionName"],
        type=given["artifactTypeName"],
        aliases=[alias["alias"] for alias in given.get("aliases") or []],
    )
    state.artifacts[artifact.id] = artifact
    if given.get("runName") in state.runs:
        state.runs[given["runName"]].artifacts.append(artifact)
    sequence = {"latestArtifact": None}
    return {"createArtifact": {"artifact": {"id": artifact.id, "state": "PENDING", "artifactSequence": sequence}}}


def _create_manifest(state: ServerState, variables: dict[str, Any]) -> dict[str, Any]:
    artifact_id = variables.get("artifactID") or variables["artifactManifestID"]
    url = _upload_url(state, "artifact", artifact_id, "wandb_manifest.json")
    return {"artifactManifest": {"id": artifact_id, "file": {"id": artifact_id, "uploadUrl": url, "uploadHeaders": []}}}


def _create_artifact_files(state: ServerState, variables: dict[str, Any]) -> dict[str, Any]:
    edges = []
    for spec in variables["input"]["artifactFiles"]:
        url = _upload_url(state, "artifact", spec["artifactID"], spec["name"])
        node = {"storagePath": spec["name"], "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
        edges.append({"node": {**node, "artifact": {"id": spec["artifactID"]}}})
    return {"createArtifactFiles": {"files": {"edges": edges}}}


def _commit_artifact(state: ServerState, variables: dict[str, Any]) -> dict[str, Any]:
    artifact = state.artifacts[variables["artifactID"]]
    artifact.committed = True
    return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": ""}}}


def _upsert_sweep(state: ServerState, variables: dict[str, Any]) -> dict[str, Any]:
    config = yaml.safe_load(variables["config"])
    sweep = Sweep(f"sweep{len(state.sweeps)}", config, suggestions(config, state.run_cap))
    state.sweeps[sweep.id] = sweep
    project = _project(variables.get("projectName") or "uncategorized", ENTITY)
    return {"upsertSweep": {"sweep": {"name": sweep.id, "project": project}, "configValidationWarnings": []}}


def _sweep_with_runs(state: ServerState, variables: dict[str, Any]) -> dict[str, Any]:
    sweep = state.sweeps[variables["sweep"]]
    answer = {"id": sweep.id, "name": sweep.id, "state": "RUNNING", "config": yaml.safe_dump(sweep.config)}
    return {"project": {"sweep": {**answer, "runs": {"edges": []}}}}


def _heartbeat(state: ServerState, variables: dict[str, Any]) -> dict[str, Any]:
    sweep = state.sweeps[variables["id"]]
    commands: list[dict[str, Any]] = []
    if not json.loads(variables["runState"]):  # an agent runs one at a time, and `exit` would kill what runs
        if sweep.queue:
            run_id = f"{sweep.id}-run{len(sweep.started)}"
            sweep.started[run_id] = sweep.queue.pop(0)
            arguments = {name: {"value": value} for name, value in sweep.started[run_id].items()}
            program = sweep.config.get("program")
            commands = [{"type": "run", "run_id": run_id, "program": program, "args": arguments, "logs": []}]
        else:
            commands = [{"type": "exit"}]
    return {"agentHeartbeat": {"agent": {"id": sweep.id}, "commands": json.dumps(commands)}}


def suggestions(config: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Parameters of the first `count` runs of a sweep (`run_cap` in its configuration goes first)."""
    parameters = config["parameters"]
    count = config.get("run_cap", count)
    if config["method"] == "grid":
        choices = [entry.get("values", [entry.get("value")]) for entry in parameters.values()]
        return [dict(zip(parameters, values, strict=True)) for values in itertools.product(*choices)][:count]
    generator = random.Random(0)
    return [{name: _draw(entry, generator) for name, entry in parameters.items()} for _ in range(count)]


def _draw(entry: dict[str, Any], generator: random.Random) -> Any:
    if "min" not in entry:
        return generator.choice(entry.get("values", [entry.get("value")]))
    whole = isinstance(entry["min"], int) and isinstance(entry["max"], int)
    return (generator.randint if whole else generator.uniform)(entry["min"], entry["max"])


OPERATIONS: dict[str, Callable[[ServerState, dict[str, Any]], dict[str, Any]]] = {
    "Viewer": _viewer,
    "OrganizationCoreWeaveOrganizationID": lambda state, variables: {"entity": {"organization": None}},
    "ServerFeaturesQuery": lambda state, variables: {"serverInfo": {"features": []}},
    "RunResumeStatus": _resume_status,
    "UpsertBucket": _upsert_run,
    "CreateRunFiles": _create_run_files,
    "ArtifactType": lambda state, variables: {"project": {"artifact": None}},
    "CreateArtifact": _create_artifact,
    "CreateArtifactManifest": lambda state, variables: {"createArtifactManifest": _create_manifest(state, variables)},
    "UpdateArtifactManifest": lambda state, variables: {"updateArtifactManifest": _create_manifest(state, variables)},
    "CreateArtifactFiles": _create_artifact_files,
    "CommitArtifact": _commit_artifact,
    "UpsertSweep": _upsert_sweep,
    "SweepWithRuns": _sweep_with_runs,
    "CreateAgent": lambda state, variables: {"createAgent": {"agent": {"id": variables["sweep"]}}},
    "Heartbeat": _heartbeat,
}
