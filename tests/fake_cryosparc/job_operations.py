"""The job operations of the v5 API; the rules behind them are in `state`, `datasets` and `slots`."""

from __future__ import annotations

import contextlib
from typing import Any

from cryosparc.dataset import Dataset

from fake_cryosparc import datasets
from fake_cryosparc.faults import HTTPError
from fake_cryosparc.operations import operation
from fake_cryosparc.records import EXTERNAL, Job
from fake_cryosparc.requests import Upload
from fake_cryosparc.slots import Fields, expected_fields, full_slots
from fake_cryosparc.state import State
from fake_cryosparc.wire import Call

OPEN = ("building", "running", "waiting")


@operation("jobs.create")
def create(state: State, call: Call, project: str, workspace: str) -> Job:
    """Add a job."""
    job = state.add_job(project, workspace, call.text("type"), call.text("title"), call.text("description"))
    job["spec"]["params"] = call.json()
    return job


@operation("jobs.find_one")
def find_one(state: State, call: Call, project: str, uid: str) -> Job:
    """Return a job."""
    return state.job(project, uid)


@operation("jobs.find")
def find(state: State, call: Call) -> list[Job]:
    """Return the jobs that match, on one page."""
    if call.text("after"):
        return []
    query = call.request.query

    def wanted(job: Job) -> bool:
        values = {"project_uid": job["project_uid"], "uid": job["uid"], "status": job["status"]}
        values["type"] = job["spec"]["type"]
        spaces = query.get("workspace_uid")
        inside = spaces is None or bool(set(spaces) & set(job["workspace_uids"]))
        return inside and all(value in query.get(name, [value]) for name, value in values.items())

    return [job for job in state.jobs.values() if wanted(job)][: int(call.text("limit", "100"))]


@operation("jobs.get_status")
def get_status(state: State, call: Call, project: str, uid: str) -> str:
    """Return a job's status."""
    return str(state.job(project, uid)["status"])


@operation("jobs.get_directory")
def get_directory(state: State, call: Call, project: str, uid: str) -> str:
    """Return a job's folder."""
    state.job(project, uid)
    return str(state.folder(project) / uid)


@operation("jobs.set_title")
def set_title(state: State, call: Call, project: str, uid: str) -> Job:
    """Name a job."""
    job = state.job(project, uid)
    job["title"] = call.text("title")
    return job


@operation("jobs.set_description")
def set_description(state: State, call: Call, project: str, uid: str) -> Job:
    """Describe a job."""
    job = state.job(project, uid)
    job["description"] = call.json()
    return job


@operation("jobs.set_param")
def set_param(state: State, call: Call, project: str, uid: str, name: str) -> Job:
    """Set a parameter of a job in building."""
    job = state.job(project, uid)
    state.require(job, "building")
    job["spec"]["params"][name] = call.json()
    return job


@operation("jobs.set_cluster_custom_vars")
def set_cluster_vars(state: State, call: Call, project: str, uid: str) -> Job:
    """Set the variables of the cluster's script."""
    job = state.job(project, uid)
    job["cluster_job_custom_vars"] = call.json()
    return job


@operation("jobs.add_external_input")
def add_external_input(state: State, call: Call, project: str, uid: str, name: str) -> Job:
    """Add an input."""
    return add_input(state, project, uid, name, call.json())


@operation("jobs.add_external_output")
def add_external_output(state: State, call: Call, project: str, uid: str, name: str) -> Job:
    """Add an output."""
    return add_output(state, project, uid, name, call.json())


def add_input(state: State, project: str, uid: str, name: str, spec: dict[str, Any]) -> Job:
    """Add or replace an input of an external job."""
    job = state.external(project, uid, *OPEN)
    slots = full_slots(spec["slots"], spec["type"])
    job["spec"]["inputs"][name] = {**spec, "slots": slots, "connections": []}
    return job


def add_output(state: State, project: str, uid: str, name: str, spec: dict[str, Any]) -> Job:
    """Add or replace an output of an external job; what it inherits must have its type."""
    job = state.external(project, uid, *OPEN)
    slots = full_slots(spec["slots"], spec["type"])
    if inherited := spec.get("passthrough"):
        source = job["spec"]["inputs"].get(inherited)
        if source is None:
            raise HTTPError(422, f"Passthrough input {inherited} does not exist")
        if source["type"] != spec["type"]:
            raise HTTPError(422, f"Output {name} is a {spec['type']}, its passthrough a {source['type']}")
    job["spec"]["outputs"][name] = {**spec, "slots": slots, "results": [], "num_items": 0}
    return job


@operation("jobs.connect")
def connect(state: State, call: Call, project: str, uid: str, name: str) -> Job:
    """Connect an input with an output of another job."""
    source, output = call.text("source_job_uid"), call.text("source_output_name")
    return connect_output(state, project, uid, name, source, output)


def connect_output(state: State, project: str, uid: str, name: str, source: str, output: str) -> Job:
    """Connect an input of a job in building; required slots that are missing become build errors."""
    job, parent = state.job(project, uid), state.job(project, source)
    state.require(job, *(OPEN if job["spec"]["type"] == EXTERNAL else ("building",)))
    if output not in parent["spec"]["outputs"]:
        raise HTTPError(422, f"{source} has no output {output}")
    described = parent["spec"]["outputs"][output]
    blank = {"type": described["type"], "title": name, "slots": [], "connections": []}
    target = job["spec"]["inputs"].setdefault(name, blank)
    if target["type"] != described["type"]:
        found = f"{source}.{output} is a {described['type']}"
        raise HTTPError(422, f"Input {name} takes a {target['type']}, {found}")
    have = {slot["name"] for slot in described["slots"]}
    with contextlib.suppress(HTTPError):  # not yet saved
        have |= set(datasets.output_dataset(state, parent, output, ["all"]).prefixes())
    missing = [slot["name"] for slot in target["slots"] if slot.get("required") and slot["name"] not in have]
    problem = {"type": "missing", "input": None, "input_type": "slot"}
    job["build_errors"] += [{**problem, "loc": ["inputs", name, slot]} for slot in missing]
    target["connections"].append({"job_uid": source, "output": output, "results": []})
    job["parents"].append(source)
    parent["children"].append(uid)
    return job


@operation("jobs.connect_result")
def connect_result(
    state: State, call: Call, project: str, uid: str, name: str, index: str, result: str
) -> Job:
    """Take one slot of a connection from elsewhere."""
    job = state.job(project, uid)
    source, output = call.text("source_job_uid"), call.text("source_output_name")
    slot = call.text("source_result_name")
    state.job(project, source)["spec"]["outputs"][output]
    connection = job["spec"]["inputs"][name]["connections"][int(index)]
    connection["results"] = [one for one in connection["results"] if one["name"] != result]
    origin = {"job_uid": source, "output": output, "result": slot, "version": "F"}
    connection["results"].append({"name": result, "dtype": slot, **origin})
    return job


@operation("jobs.disconnect")
def disconnect(state: State, call: Call, project: str, uid: str, name: str, index: str) -> Job:
    """Take one connection away."""
    return disconnect_input(state, project, uid, name, int(index))


def disconnect_input(state: State, project: str, uid: str, name: str, index: int) -> Job:
    """Take one connection of an input away, and the build errors of the input."""
    job = state.job(project, uid)
    del job["spec"]["inputs"][name]["connections"][index]
    job["build_errors"] = [error for error in job["build_errors"] if error["loc"][1] != name]
    return job


@operation("jobs.disconnect_all")
def disconnect_all(state: State, call: Call, project: str, uid: str, name: str) -> Job:
    """Take all connections of an input away."""
    job = state.job(project, uid)
    job["spec"]["inputs"][name]["connections"].clear()
    job["build_errors"] = [error for error in job["build_errors"] if error["loc"][1] != name]
    return job


@operation("jobs.get_output_fields")
def get_output_fields(state: State, call: Call, project: str, uid: str, name: str) -> Fields:
    """Return the columns an output must have."""
    output = state.job(project, uid)["spec"]["outputs"].get(name)
    if output is None:
        raise HTTPError(404, f"Job {project}-{uid} has no output {name}")
    return expected_fields(output)


@operation("jobs.load_input")
def load_input(state: State, call: Call, project: str, uid: str, name: str) -> Dataset:
    """Return what is connected to an input."""
    slots = call.request.query.get("slots", ["default"])
    return datasets.input_dataset(state, state.job(project, uid), name, slots)


@operation("jobs.load_output")
def load_output(state: State, call: Call, project: str, uid: str, name: str) -> Dataset:
    """Return an output."""
    slots = call.request.query.get("slots", ["default"])
    return datasets.output_dataset(state, state.job(project, uid), name, slots)


@operation("jobs.save_output")
def save_output(state: State, call: Call, project: str, uid: str, name: str) -> Job:
    """Keep an output."""
    return keep_upload(state, call, project, uid, name)


def keep_upload(state: State, call: Call, project: str, uid: str, name: str) -> Job:
    """Keep an uploaded output and note in the request log what came."""
    dataset = datasets.read_dataset(call.body)
    call.request.upload = Upload(project, uid, name, len(dataset), tuple(dataset.fields()), len(call.body))
    return datasets.save_output(state, project, uid, name, dataset, int(call.text("version", "0")))


@operation("jobs.create_external_result")
def create_external_result(state: State, call: Call, project: str, workspace: str) -> Job:
    """Add an external job with one output, and the input it inherits from."""
    body = call.json()
    spec = body["spec"]
    job = state.add_job(project, workspace, EXTERNAL, spec.get("title", ""), spec.get("description", ""))
    spec["slots"] = full_slots(spec["slots"], spec["type"])
    if source := body.get("connection"):
        spec["passthrough"] = spec.get("passthrough") or source["output"]
        connect_output(state, project, job["uid"], spec["passthrough"], source["job_uid"], source["output"])
    add_output(state, project, job["uid"], body["name"], spec)
    return job
