"""What command_vis of cryoSPARC 4.7 does: external jobs by JSON-RPC, files and datasets by path."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fake_cryosparc import datasets
from fake_cryosparc.faults import HTTPError
from fake_cryosparc.job_operations import add_input, add_output, connect_output, keep_upload
from fake_cryosparc.operations import OPERATIONS, inside
from fake_cryosparc.operations_v4 import Function, rpc
from fake_cryosparc.records import EXTERNAL
from fake_cryosparc.state import State
from fake_cryosparc.wire import Answer, Call

FILES: dict[str, Function] = {}
DATASET, BYTES = "application/x-cryosparc-dataset", "application/octet-stream"


def files(name: str) -> Callable[[Function], Function]:
    """Register `function(state, call, *path parameters)` for a path of its own."""
    return lambda function: FILES.setdefault(name, function)


@rpc("vis.create_external_job")
def create_external_job(
    state: State,
    project_uid: str,
    workspace_uid: str,
    user: str,
    title: str | None = None,
    desc: str | None = None,
) -> str:
    """Add an external job."""
    return str(state.add_job(project_uid, workspace_uid, EXTERNAL, title or "", desc or "")["uid"])


@rpc("vis.add_external_job_input")
def add_external_input(
    state: State, project_uid: str, job_uid: str, type: str, name: str | None, **spec: Any
) -> None:
    """Add an input."""
    described = {"type": type, "title": spec["title"] or name or type, "slots": spec["slots"]}
    counts = {"count_min": spec["min"], "count_max": spec["max"]}
    add_input(state, project_uid, job_uid, name or type, described | counts)


@rpc("vis.add_external_job_output")
def add_external_output(
    state: State, project_uid: str, job_uid: str, type: str, name: str | None, **spec: Any
) -> None:
    """Add an output."""
    described = {"type": type, "title": spec["title"] or name or type, "slots": spec["slots"]}
    add_output(state, project_uid, job_uid, name or type, {**described, "passthrough": spec["passthrough"]})


@rpc("vis.connect_external_job")
def connect_external_job(
    state: State,
    project_uid: str,
    source_job_uid: str,
    source_output: str,
    target_job_uid: str,
    target_input: str,
    slots: list[Any],
    **_: Any,
) -> None:
    """Connect an external job; an input that is not there is made."""
    job = state.job(project_uid, target_job_uid)
    if target_input not in job["spec"]["inputs"]:
        source = state.job(project_uid, source_job_uid)["spec"]["outputs"][source_output]
        described = {"type": source["type"], "title": target_input, "slots": slots, "count_min": 1}
        add_input(state, project_uid, target_job_uid, target_input, described)
    connect_output(state, project_uid, target_job_uid, target_input, source_job_uid, source_output)


@rpc("vis.list_project_files")
def list_files(state: State, project_uid: str, prefix: str = "", recursive: bool = False) -> list[str]:
    """List a folder."""
    base = inside(state, project_uid, prefix)
    found = base.rglob("*") if recursive else base.iterdir()
    return sorted(str(file.relative_to(state.folder(project_uid))) for file in found)


@rpc("vis.project_mkdir")
def mkdir(state: State, project_uid: str, path: str, parents: bool, exist_ok: bool) -> None:
    """Make a folder."""
    inside(state, project_uid, path).mkdir(parents=parents, exist_ok=exist_ok)


@files("vis.get_project_file")
def get_project_file(state: State, call: Call) -> Answer:
    """Read a file."""
    asked = call.json()
    file = inside(state, asked["project_uid"], asked["path"])
    if not file.is_file():
        raise HTTPError(404, f"{file} not found")
    return Answer(200, file, BYTES)


@files("vis.get_job_file")
def get_job_file(state: State, call: Call) -> Answer:
    """Return a picture or text."""
    return Answer(200, state.assets[call.json()["fileid"]].data, BYTES)


@files("vis.load_job_input")
def load_job_input(state: State, call: Call) -> Answer:
    """Return what is connected to an input."""
    asked = call.json()
    job = state.job(asked["project_uid"], asked["job_uid"])
    dataset = datasets.input_dataset(state, job, asked["input_name"], asked["slots"] or ["all"])
    return Answer(200, b"".join(dataset.stream()), DATASET)


@files("vis.save_output")
def save_output(state: State, call: Call, project: str, uid: str, name: str) -> Answer:
    """Keep an output."""
    keep_upload(state, call, project, uid, name)
    return Answer(200, b"{}")


@files("vis.upload_asset")
def upload_asset(state: State, call: Call, project: str, uid: str) -> Answer:
    """Keep a picture or text."""
    return Answer(201, json.dumps(OPERATIONS["assets.upload"](state, call, project, uid)).encode())


@files("vis.upload_file")
def upload_file(state: State, call: Call, project: str) -> Answer:
    """Write a file."""
    call.request.query["overwrite"] = ["true" if call.text("overwrite") == "1" else "false"]
    return Answer(201, json.dumps(OPERATIONS["projects.upload_file"](state, call, project)).encode())
