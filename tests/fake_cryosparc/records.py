"""What the master keeps: projects, workspaces, jobs, event logs, assets, login tokens."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryosparc.dataset import Dataset

from fake_cryosparc.faults import HTTPError
from fake_cryosparc.slots import JOB_INPUTS

Job = dict[str, Any]
EXTERNAL = "snowflake"


@dataclass(frozen=True)
class Asset:
    """An uploaded picture or text."""

    fileid: str
    filename: str
    filetype: str
    data: bytes
    project: str
    job: str

    @property
    def reference(self) -> dict[str, str]:
        """Return what the API gives for it."""
        return {"fileid": self.fileid, "filename": self.filename, "filetype": self.filetype}


def now() -> str:
    """Return the time as the API writes it."""
    return datetime.now(UTC).isoformat()


class Records:
    """Projects, workspaces and jobs by uid ("P1", "W1", "J1"), events, assets, datasets by job and output."""

    email, password = "user@example.com", "secret"
    lanes: tuple[str, ...] = ("default",)

    def __init__(self, root: Path, version: str) -> None:
        self.root, self.version = Path(root), version
        self.tokens: set[str] = set()
        self.projects: dict[str, dict[str, Any]] = {}
        self.workspaces: dict[tuple[str, str], dict[str, Any]] = {}
        self.jobs: dict[tuple[str, str], Job] = {}
        self.events: list[dict[str, Any]] = []
        self.assets: dict[str, Asset] = {}
        self.datasets: dict[tuple[str, str, str], Dataset] = {}
        self.lock = threading.RLock()
        self._last_id = 0
        self._last_token = 0

    def next_id(self) -> str:
        """Return a fresh object id."""
        self._last_id += 1
        return f"{self._last_id:024x}"

    def new_token(self) -> str:
        """Return a login token that is valid until it is taken out of `tokens`."""
        self._last_token += 1
        token = f"token-{self._last_token}"
        self.tokens.add(token)
        return token

    def add_project(self, uid: str = "P1", symlinked: bool = False) -> Path:
        """Add a project with workspace W1 and return its folder (or the link to it that the API gives)."""
        folder = self.root / f"CS-{uid.lower()}"
        real = self.root / "elsewhere" / folder.name if symlinked else folder
        real.mkdir(parents=True, exist_ok=True)
        if symlinked:
            folder.symlink_to(real, target_is_directory=True)
        ids = {"_id": self.next_id(), "uid": uid, "uid_num": int(uid[1:]), "title": f"Project {uid}"}
        owner = {"owner_user_id": f"{1:024x}", "size_last_updated": now()}
        self.projects[uid] = {**ids, **owner, "project_dir": str(folder)}
        self.add_workspace(uid)
        return folder

    def add_workspace(self, project: str, title: str = "Workspace") -> dict[str, Any]:
        """Add the next workspace of a project."""
        number = 1 + sum(owner == project for owner, _ in self.workspaces)
        ids = {"_id": self.next_id(), "uid": f"W{number}", "uid_num": number, "project_uid": project}
        more = {"project_uid_num": int(project[1:]), "workspace_type": "base", "title": title}
        self.workspaces[project, f"W{number}"] = {**ids, **more}
        return self.workspaces[project, f"W{number}"]

    def add_job(self, project: str, workspace: str, kind: str, title: str = "", description: str = "") -> Job:
        """Add a job in building with the inputs of its type, and its folder."""
        self.folder(project)
        if (project, workspace) not in self.workspaces:
            raise HTTPError(404, f"Workspace {project}-{workspace} not found")
        number = 1 + sum(key[0] == project for key in self.jobs)
        uid = f"J{number}"
        (self.folder(project) / uid).mkdir(exist_ok=True)
        ids = {"_id": self.next_id(), "uid": uid, "uid_num": number, "job_dir": uid}
        owner = {"project_uid": project, "project_uid_num": int(project[1:]), "workspace_uids": [workspace]}
        times = {"job_dir_size_last_updated": now(), "created_at": now(), "updated_at": now()}
        texts = {"title": title, "description": description, "status": "building", "status_num": 0}
        empty: Job = {
            name: [] for name in ("build_errors", "errors_run", "parents", "children", "ui_tile_images")
        }
        tiles = {"ui_tile_width": 1, "ui_tile_height": 1, "resource_spec": {}}
        spec = {"type": kind, "params": {}, "inputs": {}, "outputs": {}, **tiles}
        self.jobs[project, uid] = {**ids, **owner, **times, **texts, **empty, "spec": spec}
        job = self.jobs[project, uid]
        for name, (data, least, slots) in JOB_INPUTS.get(kind, {}).items():
            required = [{"name": slot, "dtype": slot, "required": True} for slot in slots]
            described = {"type": data, "title": name, "slots": required, "count_min": least}
            job["spec"]["inputs"][name] = {**described, "connections": []}
        return job

    def folder(self, project: str) -> Path:
        """Return a project's folder; HTTPError 404."""
        if project not in self.projects:
            raise HTTPError(404, f"Project {project} not found")
        return Path(self.projects[project]["project_dir"])

    def job(self, project: str, uid: str) -> Job:
        """Return a job; HTTPError 404."""
        if (project, uid) not in self.jobs:
            raise HTTPError(404, f"Job {project}-{uid} not found")
        return self.jobs[project, uid]

    def external(self, project: str, uid: str, *allowed: str) -> Job:
        """Return an external job; HTTPError 422 for another, or with a status that is not allowed."""
        job = self.job(project, uid)
        if job["spec"]["type"] != EXTERNAL:
            raise HTTPError(422, f"Job {project}-{uid} is not an external job")
        self.require(job, *allowed)
        return job

    def require(self, job: Job, *allowed: str) -> None:
        """Raise HTTPError 422 if a job's status is not allowed."""
        if job["status"] not in allowed:
            name = f"{job['project_uid']}-{job['uid']}"
            raise HTTPError(422, f"Job {name} has status {job['status']}, expected one of {list(allowed)}")

    def add_event(self, project: str, uid: str, **fields: Any) -> dict[str, Any]:
        """Add an event to a job's log."""
        self.job(project, uid)
        times = {"created_at": now(), "updated_at": now()}
        event = {"_id": self.next_id(), "project_uid": project, "job_uid": uid, **times, **fields}
        self.events.append(event)
        return event

    def log(self, project: str, uid: str) -> list[str]:
        """Return the texts of a job's log."""
        return [event.get("text", "") for event in self.events_of(project, uid)]

    def events_of(self, project: str, uid: str) -> list[dict[str, Any]]:
        """Return the events of one job."""
        return [event for event in self.events if (event["project_uid"], event["job_uid"]) == (project, uid)]

    def add_asset(
        self, project: str, uid: str, data: bytes, filename: str | None, filetype: str | None
    ) -> Asset:
        """Keep an uploaded picture or text."""
        self.job(project, uid)
        kind = filetype or (filename or "file.bin").rsplit(".", 1)[-1]
        asset = Asset(self.next_id(), filename or f"file.{kind}", kind, data, project, uid)
        self.assets[asset.fileid] = asset
        return asset

    def output_image(self, project: str, uid: str, name: str) -> bytes | None:
        """Return the picture of an output."""
        fileid = self.job(project, uid)["spec"]["outputs"][name].get("image")
        return self.assets[fileid].data if fileid else None

    def tile_image(self, project: str, uid: str) -> bytes | None:
        """Return the picture of a job's tile."""
        tiles = self.job(project, uid)["ui_tile_images"]
        return self.assets[tiles[0]["fileid"]].data if tiles else None
