"""What command_core of cryoSPARC 4.7 does; documents have the shape that its client reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fake_cryosparc.faults import HTTPError
from fake_cryosparc.job_operations import connect_output, disconnect_input
from fake_cryosparc.slots import SLOTS
from fake_cryosparc.state import State

Function = Callable[..., Any]
RPC: dict[str, Function] = {}


def rpc(name: str) -> Callable[[Function], Function]:
    """Register `function(state, *parameters)` for JSON-RPC."""
    return lambda function: RPC.setdefault(name, function)


def document(state: State, project: str, uid: str) -> dict[str, Any]:
    """Return a job as 4.7 describes it."""
    job = state.job(project, uid)
    spec = job["spec"]
    inputs, groups, results = [], [], []
    for name, found in spec["inputs"].items():
        connections = [
            {"job_uid": one["job_uid"], "group_name": one["output"]} for one in found["connections"]
        ]
        slots = [{**slot, "prefix": slot["name"]} for slot in found["slots"]]
        inputs.append({"name": name, "type": found["type"], "slots": slots, "connections": connections})
    for name, output in spec["outputs"].items():
        groups.append({"name": name, "type": output["type"], "passthrough": output.get("passthrough")})
        results += _results(name, output)
    kept = {
        key: job[key]
        for key in ("uid", "project_uid", "workspace_uids", "status", "title", "parents", "children")
    }
    kept |= {
        "description": job["description"],
        "errors_run": job["errors_run"],
        "params_spec": spec["params"],
    }
    kinds = {"job_type": spec["type"], "type": spec["type"]}
    return (
        kept
        | kinds
        | {"input_slot_groups": inputs, "output_result_groups": groups, "output_results": results}
    )


def _results(name: str, output: dict[str, Any]) -> list[dict[str, Any]]:
    registry = SLOTS[output["type"]]
    saved = {result["name"]: result for result in output["results"]}
    empty: dict[str, Any] = {"metafiles": [], "versions": [], "num_items": [], "passthrough": False}
    slots = [{"name": slot["name"], "dtype": slot["dtype"], **empty} for slot in output["slots"]]
    described = []
    for result in [one for one in slots if one["name"] not in saved] + output["results"]:
        fields = registry.get(result["dtype"], [])
        kind = f"{output['type']}.{result['dtype']}"
        described.append({**result, "group_name": name, "type": kind, "min_fields": fields})
    return described


@rpc("core.test_connection")
def reachable(state: State) -> bool:
    """Say that all is well."""
    return True


@rpc("core.get_id_by_email_password")
def get_id(state: State, email: str, password: str) -> str:
    """Check the login."""
    if (email, password) != (state.email, state.password):
        raise HTTPError(401, "Incorrect username or password")
    return f"{1:024x}"


@rpc("core.get_running_version")
def version(state: State) -> str:
    """Return the version of cryoSPARC."""
    return state.version


@rpc("core.get_scheduler_lanes")
def lanes(state: State) -> list[dict[str, str]]:
    """Return the lanes."""
    return [{"name": name, "type": "node", "title": name} for name in state.lanes]


@rpc("core.get_project")
def get_project(state: State, project_uid: str) -> dict[str, Any]:
    """Return a project."""
    state.folder(project_uid)
    return state.projects[project_uid]


@rpc("core.get_project_dir_abs")
def project_folder(state: State, project_uid: str) -> str:
    """Return a project's folder."""
    return str(state.folder(project_uid))


@rpc("core.get_workspace")
def get_workspace(state: State, project_uid: str, workspace_uid: str) -> dict[str, Any]:
    """Return a workspace."""
    return state.workspaces[project_uid, workspace_uid]


RPC["core.get_job"] = document


@rpc("core.get_job_dir_abs")
def job_folder(state: State, project_uid: str, job_uid: str) -> str:
    """Return a job's folder."""
    return str(state.folder(project_uid) / state.job(project_uid, job_uid)["uid"])


@rpc("core.make_job")
def make_job(
    state: State,
    job_type: str,
    project_uid: str,
    workspace_uid: str,
    title: str | None = None,
    desc: str | None = None,
    params: dict[str, Any] | None = None,
    input_group_connects: dict[str, list[str]] | None = None,
    **_: Any,
) -> str:
    """Add a job and connect it."""
    job = state.add_job(project_uid, workspace_uid, job_type, title or "", desc or "")
    job["spec"]["params"] = params or {}
    for name, sources in (input_group_connects or {}).items():
        for source in sources:
            connect_output(state, project_uid, job["uid"], name, *source.split("."))
    return str(job["uid"])


@rpc("core.job_connect_group")
def connect_group(state: State, project_uid: str, source_group: str, dest_group: str) -> bool:
    """Connect an input with an output, each "J1.name"."""
    uid, name = dest_group.split(".")
    connect_output(state, project_uid, uid, name, *source_group.split("."))
    return True


@rpc("core.job_connected_group_clear")
def disconnect_group(state: State, project_uid: str, dest_group: str, connect_idx: int) -> bool:
    """Take one connection of an input, "J1.name", away."""
    uid, name = dest_group.split(".")
    disconnect_input(state, project_uid, uid, name, connect_idx)
    return True


@rpc("core.job_set_param")
def set_param(state: State, project_uid: str, job_uid: str, param_name: str, param_new_value: Any) -> bool:
    """Set a parameter."""
    state.job(project_uid, job_uid)["spec"]["params"][param_name] = param_new_value
    return True


@rpc("core.enqueue_job")
def enqueue(state: State, project_uid: str, job_uid: str, lane: str | None = None, **_: Any) -> str:
    """Queue a job."""
    return str(state.enqueue(project_uid, job_uid, lane)["status"])


@rpc("core.kill_job")
def kill(state: State, project_uid: str, job_uid: str, **_: Any) -> None:
    """Kill a job."""
    state.kill(project_uid, job_uid)


@rpc("core.clear_job")
def clear(state: State, project_uid: str, job_uid: str) -> None:
    """Take a job back to building."""
    state.clear(project_uid, job_uid)


@rpc("core.run_external_job")
def run_external_job(state: State, project_uid: str, job_uid: str, status: str) -> None:
    """Start an external job."""
    state.start(project_uid, job_uid, status)


@rpc("core.set_job_status")
def set_job_status(state: State, project_uid: str, job_uid: str, status: str) -> None:
    """Complete or fail a job; 4.7 takes no error text."""
    if status == "completed":
        state.complete(project_uid, job_uid)
    else:
        state.fail(project_uid, job_uid, "")


@rpc("core.job_send_streamlog")
def send_log(
    state: State,
    project_uid: str,
    job_uid: str,
    message: str,
    error: bool = False,
    flags: tuple[str, ...] = (),
    imgfiles: tuple[Any, ...] = (),
) -> str:
    """Log a text or a plot."""
    kind = "image" if imgfiles else "error" if error else "text"
    event = state.add_event(project_uid, job_uid, type=kind, text=message, imgfiles=imgfiles, flags=flags)
    return str(event["_id"])


@rpc("core.job_checkpoint_streamlog")
def checkpoint(state: State, project_uid: str, job_uid: str, meta: dict[str, Any]) -> str:
    """Log a checkpoint."""
    return str(state.add_event(project_uid, job_uid, type="checkpoint", meta=meta)["_id"])
