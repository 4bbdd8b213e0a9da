"""The operations of the v5 API on the life of a job, its event log and its pictures."""

from __future__ import annotations

from typing import Any

from fake_cryosparc.faults import HTTPError
from fake_cryosparc.operations import operation
from fake_cryosparc.records import Job, now
from fake_cryosparc.state import State
from fake_cryosparc.wire import Call


@operation("jobs.mark_running")
def mark_running(state: State, call: Call, project: str, uid: str) -> Job:
    """Start an external job."""
    return state.start(project, uid, call.text("status", "running"))


@operation("jobs.mark_completed")
def mark_completed(state: State, call: Call, project: str, uid: str) -> Job:
    """Complete a job."""
    return state.complete(project, uid)


@operation("jobs.mark_failed")
def mark_failed(state: State, call: Call, project: str, uid: str) -> Job:
    """Fail a job; the whole error comes in the URL."""
    return state.fail(project, uid, call.text("error"))


@operation("jobs.clear")
def clear(state: State, call: Call, project: str, uid: str) -> Job:
    """Take a job back to building."""
    return state.clear(project, uid)


@operation("jobs.enqueue")
def enqueue(state: State, call: Call, project: str, uid: str) -> Job:
    """Queue a job."""
    return state.enqueue(project, uid, call.text("lane") or None)


@operation("jobs.kill")
def kill(state: State, call: Call, project: str, uid: str) -> Job:
    """Kill a job."""
    return state.kill(project, uid)


@operation("jobs.add_event_log")
def add_event_log(state: State, call: Call, project: str, uid: str) -> dict[str, Any]:
    """Log a text."""
    return state.add_event(project, uid, type=call.text("type", "text"), text=call.json())


@operation("jobs.update_event_log")
def update_event_log(state: State, call: Call, project: str, uid: str, event_id: str) -> dict[str, Any]:
    """Change a logged text in place."""
    for event in state.events_of(project, uid):
        if event["_id"] == event_id:
            event.update(text=call.json(), type=call.text("type", event["type"]), updated_at=now())
            return event
    raise HTTPError(404, f"Event {event_id} not found")


@operation("jobs.get_event_logs")
def get_event_logs(state: State, call: Call, project: str, uid: str) -> list[dict[str, Any]]:
    """Return a job's log."""
    return state.events_of(project, uid)


@operation("jobs.add_image_log")
def add_image_log(state: State, call: Call, project: str, uid: str) -> dict[str, Any]:
    """Log a plot; its pictures were uploaded before."""
    flags = call.request.query.get("flags", [])
    return state.add_event(
        project, uid, type="image", text=call.text("text"), imgfiles=call.json(), flags=flags
    )


@operation("jobs.add_checkpoint")
def add_checkpoint(state: State, call: Call, project: str, uid: str) -> dict[str, Any]:
    """Log a checkpoint."""
    return state.add_event(project, uid, type="checkpoint", meta=call.json())


@operation("jobs.set_output_image")
def set_output_image(state: State, call: Call, project: str, uid: str, name: str) -> Job:
    """Give an output its picture."""
    job = state.job(project, uid)
    job["spec"]["outputs"][name]["image"] = call.json()["fileid"]
    return job


@operation("jobs.set_tile_image")
def set_tile_image(state: State, call: Call, project: str, uid: str) -> Job:
    """Give a job its picture."""
    job, asset = state.job(project, uid), call.json()
    tile = {"name": asset["filename"], "fileid": asset["fileid"], "num_rows": 1, "num_cols": 1}
    job["ui_tile_images"] = [tile]
    return job
